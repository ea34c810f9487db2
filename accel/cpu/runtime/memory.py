"""Memory for results, for work within a call, and for weights."""

from __future__ import annotations

import ctypes
import mmap
import os
import sys
import threading
from collections.abc import Iterable
from math import prod

import numpy as np

from accel.cpu.runtime.arrays import Grouped, Matrix, address, row_of_groups, write_groups
from reference.int8 import Int8

LINE = 32  # float32 in two cache lines, which processors fetch together
SMALL = 4096  # float32 that one core fills by itself
PAGE = 1 << 21  # bytes of a large page
FEW_PAGES = 4  # of less than so many, what is not filled would be much
PERIOD = 1 << 12  # bytes from row to row, or a multiple, that make a column of a matrix fight over few lines of a cache


_MMAP_THRESHOLD, _TRIM_THRESHOLD = -3, -1  # glibc's names for two of its parameters
MAPPED = 32 << 20  # bytes from which on an array has pages of its own: the most that glibc grants
KEPT = 64 << 20  # freed bytes that are kept for the next arrays


def keep_freed() -> None:
    """Let the C library keep freed memory for the next arrays, as it does by itself after a while, but from the start.

    A pass makes and frees the same arrays for every layer. Each time their pages came anew from the system, which
    zeroes them one by one, for all threads in turn: on two cores a twentieth of a prompt's time. Who sets glibc's
    variables is left alone.
    """
    known = sys.platform == "linux" and not {"MALLOC_MMAP_THRESHOLD_", "MALLOC_TRIM_THRESHOLD_"} & os.environ.keys()
    if known and (tune := getattr(ctypes.CDLL(None), "mallopt", None)):
        tune(_MMAP_THRESHOLD, MAPPED)
        tune(_TRIM_THRESHOLD, KEPT)


keep_freed()


def fresh(*shape: int) -> np.ndarray:
    """A float32 array to be filled, from the start of a cache line on, so that cores that fill neighbouring parts of it
    do not fight over a line."""
    if prod(shape) < SMALL:
        return np.empty(shape, np.float32)
    block = np.empty(prod(shape) + LINE, np.float32)
    skipped = -address(block) % (4 * LINE) // 4
    return block[skipped : skipped + block.size - LINE].reshape(shape)


class Scratch:
    """Memory that workers write to during a call, kept for the next: fresh pages cost more than small kernels do."""

    def __init__(self) -> None:
        self.renew()

    def renew(self) -> None:
        """Begin with nothing, as a forked child must: another thread of its parent may have held the lock."""
        self._free: list[np.ndarray] = []
        self._lock = threading.Lock()

    def take(self, floats: int) -> np.ndarray:
        """At least so many float32 from the start of a cache line on, to be given back."""
        with self._lock:
            for n, block in enumerate(self._free):
                if block.size >= floats:
                    return self._free.pop(n)
            if self._free:
                self._free.pop()  # too small for today's calls: make room for a larger one
        return fresh(floats)

    def give(self, block: np.ndarray) -> None:
        """Back to the pool."""
        with self._lock:
            self._free.append(block)


scratch = Scratch()
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=scratch.renew)


class Room:
    """Room for a model's weights in large pages, where the system has them and a few are filled: from a file's small
    pages they would be read at half the memory's speed. Rows of a matrix start on cache lines, and not a power of two
    apart."""

    def __init__(self, arrays: Iterable[Matrix]) -> None:
        size = sum(prod(array.shape[:-1]) * _row(array) for array in arrays)
        large = size >= FEW_PAGES * PAGE
        start = PAGE if large else 4 * LINE
        self._bytes = np.frombuffer(_pages(size + start) if large else bytearray(size + start), np.uint8)
        self._used = -address(self._bytes) % start

    def put(self, array: Matrix) -> np.ndarray | Grouped:
        """A copy of a matrix or vector, float64 as float32, 8 bits as `Grouped`."""
        row, rows = _row(array), prod(array.shape[:-1])
        part = self._bytes[self._used : self._used + rows * row].reshape(rows, row)
        self._used += rows * row
        if isinstance(array, Grouped):
            part[:, : array.groups.shape[1]] = array.groups
            return Grouped(part[:, : array.groups.shape[1]], array.shape[1])
        if isinstance(array, Int8):
            return write_groups(array, part[:, : row_of_groups(array.shape[1])])
        dtype = _stored(array)
        held = part[:, : array.shape[-1] * dtype.itemsize].view(dtype).reshape(array.shape)
        held[...] = array
        return held


def _stored(array: np.ndarray) -> np.dtype:
    return np.dtype(np.float32) if array.dtype == np.float64 else array.dtype


def _row(array: Matrix) -> int:
    """Bytes from row to row."""
    if not isinstance(array, np.ndarray):  # groups lie across cache lines anyway
        return -(-row_of_groups(array.shape[1]) // 4) * 4
    row = -(-array.shape[-1] * _stored(array).itemsize // (4 * LINE)) * 4 * LINE
    return row + 4 * LINE if array.ndim > 1 and row % PERIOD == 0 else row


def _pages(size: int) -> mmap.mmap | bytearray:
    """So many zero bytes, in large pages where the system has them."""
    if not hasattr(mmap, "MADV_HUGEPAGE"):
        return bytearray(size)
    pages = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    pages.madvise(mmap.MADV_HUGEPAGE)
    return pages
