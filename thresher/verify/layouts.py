"""How an array may lie in memory, and copies that lie alike.

Every copy stands in memory of its own, with NaN (for integers -1) around it and in its gaps: a kernel that reads beside
a row shows it in its answer, and one that writes there is found out.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

LINE = 64  # bytes of a cache line
LAYOUTS = (
    *("contiguous", "every other row", "transposed", "strided", "reversed", "unaligned", "read-only"),
    *("one row", "one head"),  # stride 0: every row, or every head, is the first one
)


class Layout(NamedTuple):
    """Bytes from index to index along each axis, where the first element stands in its cache line, and whether NumPy
    lets it be written to."""

    strides: tuple[int, ...]
    offset: int = 0
    writeable: bool = True


def layout_of(x: np.ndarray) -> Layout:
    """How an array lies."""
    return Layout(x.strides, x.__array_interface__["data"][0] % LINE, bool(x.flags.writeable))


def place(values: np.ndarray, layout: Layout) -> tuple[np.ndarray, np.ndarray]:
    """The values laid out like that, and the bytes of the memory that they stand in."""
    reach = [stride * (n - 1) for stride, n in zip(layout.strides, values.shape, strict=True)]
    before, after = -sum(min(r, 0) for r in reach), sum(max(r, 0) for r in reach) + values.itemsize
    if values.size == 0:
        before = after = 0
    memory = np.full(before + after + 3 * LINE, 0xFF, np.uint8)
    first = LINE + before
    first += (layout.offset - memory.__array_interface__["data"][0] - first) % LINE
    array: np.ndarray = np.ndarray(values.shape, values.dtype, memory, first, layout.strides)
    array[...] = values
    array.flags.writeable = layout.writeable
    return array, memory


def laid_out(values: np.ndarray, name: str) -> np.ndarray:
    """The values in one of LAYOUTS; where an array has too few axes for it, contiguous."""
    size, axes = values.itemsize, values.ndim
    order = list(range(axes))
    if name == "transposed" and axes > 1:
        order[0], order[1] = 1, 0
    strides, step = [0] * axes, size * (3 if name == "strided" else 1)
    for axis in reversed(order):
        doubled = name == "every other row" and axis == axes - 2
        strides[axis] = step * (2 if doubled else 1)
        step = strides[axis] * values.shape[axis]
    row, head = axes - 2, axes - 3
    if name == "reversed":
        strides[max(row, 0)] *= -1
    for wanted, axis in (("one row", row), ("one head", head)):
        if name == wanted and axis >= 0:
            values = np.repeat(values.take([0], axis), values.shape[axis], axis) if values.size else values
            strides[axis] = 0
    offset = 1 if name == "unaligned" else 0 if name == "contiguous" else size
    return place(values, Layout(tuple(strides), offset, name != "read-only"))[0]
