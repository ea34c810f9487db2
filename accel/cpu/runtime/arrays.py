"""Arrays as kernels take them: an address, bytes from head to head and from row to row, and how numbers are stored."""

from __future__ import annotations

from ctypes import c_void_p

import ml_dtypes
import numpy as np

from accel.cpu.simd import BF16, F16, F32

_KINDS = {np.dtype(np.float32): F32, np.dtype(np.float16): F16, np.dtype(ml_dtypes.bfloat16): BF16}
_HEAD = object.__basicsize__  # bytes of a Python object before the first field of its own; an array's is its address


def _asked(array: np.ndarray) -> int:
    """Where the first element stands, as NumPy tells it."""
    return array.__array_interface__["data"][0]


def _read(array: np.ndarray) -> int:
    """The same, read from the object itself: asking costs as much as a small kernel."""
    return c_void_p.from_address(id(array) + _HEAD).value or 0


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


def rows(array: np.ndarray) -> tuple[int, int, int, int]:
    """(address, bytes from head to head, bytes from row to row, kind) of a readable array of 2 or 3 axes."""
    strides = array.strides
    return address(array), strides[0] if len(strides) == 3 else 0, strides[-2], _KINDS[array.dtype]


def matrix(array: np.ndarray) -> tuple[int, int, int]:
    """(address, bytes from row to row, kind) of a readable matrix."""
    return address(array), array.strides[0], _KINDS[array.dtype]
