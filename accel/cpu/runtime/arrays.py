"""Arrays as kernels take them: an address, bytes from head to head and from row to row, and how numbers are stored."""

from __future__ import annotations

from collections.abc import Sequence
from ctypes import c_int64

import ml_dtypes
import numpy as np
from numpy.lib.stride_tricks import as_strided

from accel.cpu.simd import BF16, F16, F32, GROUP, Q8
from reference.int8 import GROUP as NUMBERS
from reference.int8 import Int8

_KINDS = {np.dtype(np.float32): F32, np.dtype(np.float16): F16, np.dtype(ml_dtypes.bfloat16): BF16}
_HEAD = object.__basicsize__  # bytes of a Python object before the first field of its own; an array's is its address
_WORDS = (c_int64 * (1 << 59)).from_address(0)  # all memory


def _asked(array: np.ndarray) -> int:
    """Where the first element stands, as NumPy tells it."""
    return array.__array_interface__["data"][0]


def _read(array: np.ndarray) -> int:
    """The same, read from the object itself: asking costs as much as a small kernel."""
    return _WORDS[(id(array) + _HEAD) >> 3]


_laid_out = all(_read(x) == _asked(x) for x in (np.empty(3), np.empty((2, 9))[:, 4:], np.empty(5, np.int8)[1:]))
address = _read if _laid_out else _asked


def readable(array: np.ndarray) -> np.ndarray:
    """The array itself if kernels can read it as it is, else a copy: float64 becomes float32, the last axis contiguous,
    and elements aligned. Leading axes may have any stride."""
    if array.dtype not in _KINDS:
        return array.astype(np.float32, order="C")
    if array.strides[-1] == array.itemsize and array.flags.aligned:
        return array
    return np.ascontiguousarray(array) if array.size != 1 else array.copy()


class Grouped:
    """A weight matrix in 8 bits as kernels read it, as in GGUF's Q8_0: a row is its groups, each a float16 scale and 32
    numbers, zeros after the last of a row."""

    stored, dtype = "int8", np.dtype(np.float32)  # of the numbers that it stands for

    def __init__(self, groups: np.ndarray, width: int) -> None:
        self.groups = groups  # (out, ⌈in / 32⌉ · GROUP) bytes
        self.shape = len(groups), width
        self.nbytes = groups.nbytes

    def __len__(self) -> int:
        return len(self.groups)

    def some(self, chosen: np.ndarray) -> Grouped:
        """Some of its rows, (K, in), as they are."""
        return Grouped(self.groups[chosen], self.shape[1])

    def rows(self, chosen: np.ndarray) -> Int8:
        """Some of its rows, (K, in), numbers and scales by themselves."""
        count = self.groups.shape[1] // GROUP
        each = self.groups[chosen].reshape(len(chosen), count, GROUP)
        scales = np.ascontiguousarray(each[:, :, :2]).view(np.float16)[:, :, 0]
        values = np.ascontiguousarray(each[:, :, 2:]).view(np.int8).reshape(len(chosen), count * NUMBERS)
        return Int8(values[:, : self.shape[1]], scales)


Matrix = np.ndarray | Int8 | Grouped  # what a linear map may be stored as


def row_of_groups(width: int) -> int:
    """Bytes of a row of `Grouped`."""
    return -(-width // NUMBERS) * GROUP


def write_groups(weight: Int8, out: np.ndarray) -> Grouped:
    """The matrix as `Grouped`, in these bytes (out, `row_of_groups`), which are zeros."""
    (rows, width), whole = weight.shape, weight.shape[1] // NUMBERS  # groups
    each = out.reshape(rows, weight.scales.shape[1], GROUP)
    each[:, :, :2] = np.ascontiguousarray(weight.scales)[:, :, None].view(np.uint8)
    values, end = np.ascontiguousarray(weight.values).view(np.uint8), whole * NUMBERS
    each[:, :whole, 2:] = values[:, :end].reshape(rows, whole, NUMBERS)
    if end < width:
        each[:, whole, 2 : 2 + width - end] = values[:, end:]
    return Grouped(out, width)


def readable_matrix(weight: Matrix) -> np.ndarray | Grouped:
    """As `readable`, of a weight matrix."""
    if isinstance(weight, Grouped):
        return weight
    if isinstance(weight, Int8):
        return write_groups(weight, np.zeros((len(weight), row_of_groups(weight.shape[1])), np.uint8))
    return readable(weight)


def under_each_other(parts: Sequence[np.ndarray]) -> np.ndarray | None:
    """A view of all rows, where the parts lie under each other in one memory without gaps: (T_1, …), (T_2, …), … ->
    (ΣT, …)."""
    first, end, count = parts[0], address(parts[0]), 0
    for part in parts:
        alike = part.base is first.base is not None and part.shape[1:] == first.shape[1:] and part.dtype == first.dtype
        if not alike or not part.flags.c_contiguous or address(part) != end:
            return None
        end += part.nbytes
        count += len(part)
    return as_strided(first, (count, *first.shape[1:]))


def rows(array: np.ndarray) -> tuple[int, int, int, int]:
    """(address, bytes from head to head, bytes from row to row, kind) of a readable array of 2 or 3 axes."""
    strides = array.strides
    return address(array), strides[0] if len(strides) == 3 else 0, strides[-2], _KINDS[array.dtype]


def matrix(array: np.ndarray | Grouped) -> tuple[int, int, int]:
    """(address, bytes from row to row, kind) of a readable matrix."""
    if isinstance(array, Grouped):
        return address(array.groups), array.groups.strides[0], Q8
    return address(array), array.strides[0], _KINDS[array.dtype]
