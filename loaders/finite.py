"""NaN and infinity have no place in weights: they are found when a file is read, not where they surface later."""

from __future__ import annotations

import numpy as np

BLOCK = 1 << 20  # elements looked at together, so that a check needs little memory beside a mapped file


def check_finite(where: str, stored: np.ndarray, cast: np.ndarray) -> None:
    """ValueError naming the first entry of `cast` that is NaN or infinite, and whether the cast made it so."""
    flat = cast.reshape(-1)
    for start in range(0, flat.size, BLOCK):
        bad = ~np.isfinite(flat[start : start + BLOCK])
        if bad.any():
            index = tuple(int(i) for i in np.unravel_index(start + int(bad.argmax()), cast.shape))
            wanted = f"one that fits {cast.dtype}" if np.isfinite(stored[index]) else "a finite number"
            raise ValueError(f"{where}: got {stored[index]} at index {index}, wanted {wanted}")
