"""Arrays as kernels take them: an address, bytes from head to head and from row to row, and how numbers are stored."""

from __future__ import annotations

import threading

import ml_dtypes
import numpy as np

from accel.cpu.simd import BF16, F16, F32

_KINDS = {np.dtype(np.float32): F32, np.dtype(np.float16): F16, np.dtype(ml_dtypes.bfloat16): BF16}


def address(array: np.ndarray) -> int:
    """Where the first element stands."""
    return array.__array_interface__["data"][0]


def readable(array: np.ndarray) -> np.ndarray:
    """The array itself if kernels can read it as it is, else a copy: float64 becomes float32, the last axis contiguous,
    and elements aligned. Leading axes may have any stride."""
    if array.dtype not in _KINDS:
        return array.astype(np.float32)
    if array.strides[-1] == array.itemsize and array.flags.aligned:
        return array
    return np.ascontiguousarray(array) if array.size != 1 else array.copy()


def rows(array: np.ndarray) -> tuple[int, int, int, int]:
    """(address, bytes from head to head, bytes from row to row, kind) of a readable array of 2 or 3 axes."""
    return address(array), array.strides[0] if array.ndim == 3 else 0, array.strides[-2], _KINDS[array.dtype]


def matrix(array: np.ndarray) -> tuple[int, int, int]:
    """(address, bytes from row to row, kind) of a readable matrix."""
    return address(array), array.strides[0], _KINDS[array.dtype]


class Scratch:
    """Memory that workers write to during a call, kept for the next: fresh pages cost more than small kernels do."""

    def __init__(self) -> None:
        self._free: list[np.ndarray] = []
        self._lock = threading.Lock()

    def take(self, floats: int) -> np.ndarray:
        """At least so many float32, to be given back."""
        with self._lock:
            for n, block in enumerate(self._free):
                if block.size >= floats:
                    return self._free.pop(n)
            if self._free:
                self._free.pop()  # too small for today's calls: make room for a larger one
        return np.empty(floats + 16, np.float32)

    def give(self, block: np.ndarray) -> None:
        """Back to the pool."""
        with self._lock:
            self._free.append(block)


scratch = Scratch()
