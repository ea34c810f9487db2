"""What is wrong with an argument, in one line: its name, what it was, what was wanted.

Every contract function names its axes once through `match`; a user's mistake is a ValueError here and never a broadcast
or a NaN further down.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import cache
from typing import Any

import numpy as np


def require(holds: bool, message: str) -> None:
    """Raise ValueError(message) unless `holds`."""
    if not holds:
        raise ValueError(message)


@cache
def is_float(dtype: np.dtype) -> bool:
    """True for float16, bfloat16, float32 and float64: what may be stored. bfloat16 is known by its name."""
    return dtype.name in ("float16", "bfloat16", "float32", "float64")


def widen(x: np.ndarray) -> np.ndarray:
    """The array in the dtype that sums are kept in: float64 stays, everything narrower becomes float32."""
    return x if x.dtype in (np.float32, np.float64) else x.astype(np.float32)


def match(**arguments: tuple[Any, str]) -> dict[str, int]:
    """Sizes of the named axes, from arguments given as name=(array, "KV S D").

    One letter stands for one size throughout the call. Raises ValueError with the argument, its shape and the shape
    wanted; names that end in "positions" must hold integers, all others floats.
    """
    sizes: dict[str, int] = {}
    for name, (array, spec) in arguments.items():
        axes = spec.split()
        shape, dtype = tuple(array.shape), np.dtype(array.dtype)
        # Messages are put together only where they are needed: a decoding step makes a thousand of these checks.
        if len(shape) != len(axes) or any(sizes.get(a, n) != n for a, n in zip(axes, shape, strict=True)):
            wanted = ", ".join(f"{axis}={sizes[axis]}" if axis in sizes else axis for axis in axes)
            raise ValueError(f"{name}: got shape {shape}, wanted ({wanted})")
        sizes.update(zip(axes, shape, strict=True))
        kind = "an integer" if name.endswith("positions") else "a floating-point"
        if not (dtype.kind in "iu" if kind == "an integer" else is_float(dtype)):
            raise ValueError(f"{name}: got dtype {dtype}, wanted {kind} type")
    if "H" in sizes and "KV" in sizes:
        require(
            sizes["KV"] > 0 and sizes["H"] % sizes["KV"] == 0,
            f"{next(iter(arguments))}: got H={sizes['H']} query heads, wanted a multiple of KV={sizes['KV']}",
        )
    return sizes


def ascending(name: str, positions: np.ndarray) -> None:
    """Raise ValueError unless positions rise strictly along the last axis: the same token twice, or out of order, is
    a broken cache."""
    step = np.diff(positions, axis=-1)
    if (step <= 0).any():
        where = tuple(int(i) for i in np.argwhere(step <= 0)[0])
        before, after = positions[where], positions[(*where[:-1], where[-1] + 1)]
        raise ValueError(
            f"{name}: got {before} followed by {after} at index {where}, wanted strictly ascending positions"
        )


def whole(name: str, value: Any, least: int = 1) -> int:
    """`value` as an int of at least `least`, or a ValueError that names it."""
    good = isinstance(value, (int, np.integer)) and not isinstance(value, (bool, np.bool_)) and value >= least
    require(bool(good), f"{name}: got {value!r}, wanted a whole number of at least {least}")
    return int(value)


def one_of(name: str, value: Any, allowed: Iterable[str]) -> None:
    """Raise ValueError unless `value` is one of the names allowed."""
    allowed = tuple(allowed)
    require(value in allowed, f"{name}: got {value!r}, wanted one of {', '.join(allowed)}")
