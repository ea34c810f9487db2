"""Amounts of memory, as people write and read them."""

from __future__ import annotations

import re

UNITS = {
    "": 1,
    "b": 1,
    **{letter + "b": 1000**n for n, letter in enumerate("kmgt", 1)},
    **{letter + "ib": 1024**n for n, letter in enumerate("kmgt", 1)},
}
WRITTEN = re.compile(r"\s*(\d+(?:\.\d+)?)\s*([a-z]*)\s*", re.IGNORECASE)


def size(count: float) -> str:
    """Bytes in the largest binary unit that keeps the number above 1."""
    for unit in ("B", "KiB", "MiB"):
        if count < 1024:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1024
    return f"{count:.2f} GiB"


def read_size(name: str, value: int | str) -> int:
    """Bytes out of a number of them or a text such as "2GB" or "1.5 GiB". ValueError that begins with `name`."""
    found = WRITTEN.fullmatch(value) if isinstance(value, str) else None
    if found is not None and found[2].lower() in UNITS:
        return int(float(found[1]) * UNITS[found[2].lower()])
    if not isinstance(value, int) or isinstance(value, bool) or value < 0:
        raise ValueError(f"{name}: got {value!r}, wanted bytes, such as 2GB, 500MiB or 0")
    return value
