"""What a query sees: a range of columns, since positions ascend along both axes."""

from __future__ import annotations

from typing import Any

from numba import cuda

from accel.cuda.runtime.arrays import I32, I64, Array, empty
from accel.cuda.runtime.kernels import blocks, device, kernel
from accel.cuda.runtime.reduce import THREADS
from accel.cuda.runtime.views import Columns, Positions
from accel.shared.lazy import Chosen


def known_start(first: Any, tokens: int, k_positions: Any) -> int | None:
    """The column of the first query's own key, where the queries are the last columns of what is read: then query t
    sees all before it and t + 1 of its own."""
    held, start = k_positions, k_positions.shape[1] - tokens
    if isinstance(k_positions, Chosen) and isinstance(k_positions.columns, Columns):
        held, start = k_positions.held, k_positions.columns.start
        if k_positions.columns.stop - start != tokens:
            return None
    if not (isinstance(first, int) and isinstance(held, Positions) and tokens):
        return None
    if held.at(start) != first or held.at(start + tokens - 1) != first + tokens - 1:
        return None
    return k_positions.shape[1] - tokens


def visible_ranges(q_positions: Array | int, k_positions: Array, tokens: int, window: int | None) -> Array:
    """The first column that each query sees and the first after them: (KV, T, 2) int32."""
    out = empty((k_positions.shape[0], tokens, 2), I32)
    if out.size:
        first, listed = (q_positions, empty((0,), I64)) if isinstance(q_positions, int) else (0, q_positions)
        grid = blocks(tokens, THREADS), k_positions.shape[0]
        _ranges[grid, THREADS](first, listed, k_positions, window or 0, out)
    return out


def own_ranges(start: int, tokens: int, kv_heads: int, window: int | None) -> Array:
    """The same where query t's own key stands at column start + t."""
    out = empty((kv_heads, tokens, 2), I32)
    if out.size:
        _own_ranges[(blocks(tokens, THREADS), kv_heads), THREADS](start, window or 0, out)
    return out


@device
def _place(positions, head, wanted):
    """How many positions of a head are at most `wanted`."""
    low, high = 0, positions.shape[1]
    while low < high:
        middle = (low + high) >> 1
        if positions[head, middle] <= wanted:
            low = middle + 1
        else:
            high = middle
    return low


@kernel
def _own_ranges(start, window, out):
    t, head = cuda.blockIdx.x * cuda.blockDim.x + cuda.threadIdx.x, cuda.blockIdx.y
    if t < out.shape[1]:
        out[head, t, 1] = start + t + 1
        lo = 0
        if window > 0:
            lo = max(start + t + 1 - window, 0)
        out[head, t, 0] = lo


@kernel
def _ranges(first, listed, positions, window, out):
    t, head = cuda.blockIdx.x * cuda.blockDim.x + cuda.threadIdx.x, cuda.blockIdx.y
    if t < out.shape[1]:
        p = first + t
        if listed.shape[0] > 0:
            p = listed[t]
        out[head, t, 1] = _place(positions, head, p)
        lo = 0
        if window > 0:
            lo = _place(positions, head, p - window)
        out[head, t, 0] = lo
