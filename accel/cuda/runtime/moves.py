"""Copies on the device: into memory without gaps, into another type, and columns gathered by index."""

from __future__ import annotations

import numpy as np
from numba import cuda

from accel.cuda.ptx.numbers import narrow, wide
from accel.cuda.runtime.arrays import F32, I64, Array, empty
from accel.cuda.runtime.kernels import Kernel, blocks, kernel
from accel.cuda.runtime.reduce import THREADS


def packed(x: Array) -> Array:
    """The same numbers without gaps: x itself where it has none."""
    if x.contiguous:
        return x
    return _fill(_copy, x, empty(x.shape, x.dtype, activation=x.activation))


def cast(x: Array, dtype: np.dtype) -> Array:
    """The same numbers as another floating-point type: x itself where it has that type."""
    return x if x.dtype == dtype else _fill(_cast, x, empty(x.shape, dtype))


def take(x: Array, columns: Array) -> Array:
    """Columns of each KV head: x (KV, S, D) or (KV, S), columns (KV, R) -> (KV, R, D) or (KV, R)."""
    out = empty((*columns.shape, *x.shape[2:]), x.dtype)
    if out.size:
        rows, flat = (a if a.ndim == 3 else a.split(1, max(a.shape[1], 1)) for a in (x, out))  # (KV, S, 1)
        _take[(*columns.shape[::-1],), THREADS](rows, columns, flat)
    return out


def joined(parts: list[Array], dtype: np.dtype) -> Array:
    """Rows under each other: (T_1, E), (T_2, E), … -> (ΣT, E)."""
    out = empty((sum(len(part) for part in parts), *parts[0].shape[1:]), dtype, activation=True)
    start = 0
    for part in parts:
        put(part, out[start : start + len(part)])
        start += len(part)
    return out


def put(x: Array, out: Array) -> None:
    """Copy x to out of the same shape, into out's type."""
    _fill(_copy if x.dtype == out.dtype else _cast, x, out)


def zeros(shape: tuple[int, ...], dtype: np.dtype = F32) -> Array:
    """A new array of zeros."""
    out = empty(shape, dtype)
    flat = out.seen(out.address, (out.size,), (out.dtype.itemsize,))
    if out.size:
        _zero[blocks(out.size, THREADS), THREADS](flat)
    return out


def counted(start: int, stop: int) -> Array:
    """start … stop - 1 as int64."""
    out = empty((stop - start,), I64)
    if out.size:
        _count[blocks(out.size, THREADS), THREADS](start, out)
    return out


def _fill(move: Kernel, x: Array, out: Array) -> Array:
    if not x.size:
        return out
    seen, made = _planes(x), _planes(out)
    rows = seen.shape[0] * seen.shape[1]
    move[(rows, blocks(seen.shape[2], THREADS)), THREADS](seen, made)
    return out


def _planes(x: Array) -> Array:
    """A view with three axes; ValueError where more than three do not lie together."""
    while x.ndim > 3:
        fewer = x.join(0)
        if fewer is None:
            raise ValueError(f"array: got shape {x.shape} with gaps, wanted at most three axes")
        x = fewer
    shape, strides = (1,) * (3 - x.ndim) + x.shape, (0,) * (3 - x.ndim) + x.strides
    return x.seen(x.address, shape, strides)


@kernel
def _copy(x, out):
    r, i = cuda.blockIdx.x, cuda.blockIdx.y * cuda.blockDim.x + cuda.threadIdx.x
    if i < x.shape[2]:
        out[r // x.shape[1], r % x.shape[1], i] = x[r // x.shape[1], r % x.shape[1], i]


@kernel
def _cast(x, out):
    r, i = cuda.blockIdx.x, cuda.blockIdx.y * cuda.blockDim.x + cuda.threadIdx.x
    if i < x.shape[2]:
        out[r // x.shape[1], r % x.shape[1], i] = narrow(out, wide(x[r // x.shape[1], r % x.shape[1], i]))


@kernel
def _take(x, columns, out):
    j, head = cuda.blockIdx.x, cuda.blockIdx.y
    i = cuda.threadIdx.x
    while i < x.shape[2]:
        out[head, j, i] = x[head, columns[head, j], i]
        i += cuda.blockDim.x


@kernel
def _zero(out):
    i = cuda.blockIdx.x * cuda.blockDim.x + cuda.threadIdx.x
    if i < out.shape[0]:
        out[i] = 0


@kernel
def _count(start, out):
    i = cuda.blockIdx.x * cuda.blockDim.x + cuda.threadIdx.x
    if i < out.shape[0]:
        out[i] = start + i
