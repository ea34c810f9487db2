"""What is wrong with an argument, in one line: its name, what it was, what was wanted.

Every contract function names its axes once through `match`; a user's mistake is a ValueError here and never a broadcast
or a NaN further down.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import cache, lru_cache
from types import MappingProxyType
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


def match(**arguments: tuple[Any, str]) -> Mapping[str, int]:
    """Sizes of the named axes, from arguments given as name=(array, "KV S D").

    One letter stands for one size throughout the call. Raises ValueError with the argument, its shape and the shape
    wanted; names that end in "positions" must hold integers, all others floats.
    """
    described: list[Any] = []
    for name, (array, axes) in arguments.items():
        described += (name, axes, array.shape, array.dtype)
    return _sizes(*described)


@lru_cache(maxsize=4096)  # a decoding step makes a thousand of these checks, most of them the same in every layer
def _sizes(*described: Any) -> Mapping[str, int]:
    """What `match` returns: a name, the letters of its axes, a shape and a dtype, then the next."""
    sizes: dict[str, int] = {}
    for name, axes, shape, dtype in zip(*[iter(described)] * 4, strict=True):
        letters = axes.split()
        known = {letter: sizes[letter] for letter in letters if letter in sizes}
        if len(shape) == len(letters):
            for letter, n in zip(letters, shape, strict=True):
                sizes.setdefault(letter, n)
        if tuple(shape) != tuple(sizes.get(letter) for letter in letters):
            wanted = ", ".join(f"{letter}={known[letter]}" if letter in known else letter for letter in letters)
            raise ValueError(f"{name}: got shape {tuple(shape)}, wanted ({wanted})")
        if not (dtype.kind in "iu" if name.endswith("positions") else is_float(dtype)):
            kind = "an integer" if name.endswith("positions") else "a floating-point"
            raise ValueError(f"{name}: got dtype {dtype}, wanted {kind} type")
    if "H" in sizes and "KV" in sizes and (sizes["KV"] == 0 or sizes["H"] % sizes["KV"]):
        raise ValueError(f"{described[0]}: got H={sizes['H']} query heads, wanted a multiple of KV={sizes['KV']}")
    return MappingProxyType(sizes)


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


def listed(name: str, chosen: Any, count: int) -> None:
    """Raise ValueError unless `chosen` (K,) are integers that rise strictly and lie in 0 … count-1."""
    require(
        chosen.ndim == 1 and chosen.dtype.kind in "iu",
        f"{name}: got shape {chosen.shape} of {chosen.dtype}, wanted (K,) of an integer type",
    )
    ascending(name, chosen)
    if chosen.size and not (chosen[0] >= 0 and chosen[-1] < count):
        raise ValueError(f"{name}: got {chosen[0]} to {chosen[-1]}, wanted 0 to {count - 1}")


def whole(name: str, value: Any, least: int = 1) -> int:
    """`value` as an int of at least `least`, or a ValueError that names it."""
    good = isinstance(value, (int, np.integer)) and not isinstance(value, (bool, np.bool_)) and value >= least
    if not good:
        raise ValueError(f"{name}: got {value!r}, wanted a whole number of at least {least}")
    return int(value)


def one_of(name: str, value: Any, allowed: Iterable[str]) -> None:
    """Raise ValueError unless `value` is one of the names allowed."""
    allowed = tuple(allowed)
    require(value in allowed, f"{name}: got {value!r}, wanted one of {', '.join(allowed)}")
