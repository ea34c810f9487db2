"""What a query sees: a range of columns, since positions ascend along both axes."""

from __future__ import annotations

from functools import cache
from typing import Any

from numba import cuda

from accel.cuda.runtime.arrays import I32, I64, Array, empty
from accel.cuda.runtime.errors import rising
from accel.cuda.runtime.kernels import blocks, device, kernel
from accel.cuda.runtime.reduce import THREADS
from accel.cuda.runtime.views import Columns, Positions, plain
from accel.shared.lazy import Chosen


def what_is_seen(
    q_positions: Any, k_positions: Any, tokens: int, window: int | None
) -> tuple[int | None, Array | None]:
    """The column of the first query's own key, where the queries are the last columns of what is read, or else the
    range of columns that each of them sees, (KV, T, 2) int32."""
    cached = isinstance(k_positions, Positions)
    if cached and k_positions.places is not None and tokens == 1:
        return None, k_positions.places.ranges
    start = None
    if window is None or (cached and k_positions.at(0) is not None):  # else a window's begin is no matter of counting
        start = known_start(q_positions, tokens, k_positions)
    return start, visible_ranges(q_positions, k_positions, tokens, window) if start is None else None


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


def visible_ranges(q_positions: Array | int, k_positions: Any, tokens: int, window: int | None) -> Array:
    """The first column that each query sees and the first after them: (KV, T, 2) int32. Positions that do not rise are
    noted in the error word."""
    held = k_positions.held if isinstance(k_positions, Chosen) else k_positions
    places = held.places if isinstance(held, Positions) else None
    among = plain(k_positions)
    if not isinstance(q_positions, int):
        rising("q_positions", q_positions)
    rising("k_positions", among)
    out = empty((among.shape[0], tokens, 2), I32)
    if out.size:
        first, listed = (q_positions, _none()) if isinstance(q_positions, int) else (0, q_positions)
        grid = blocks(tokens, THREADS), among.shape[0]
        _ranges[grid, THREADS](first, listed, among, window or 0, _none() if places is None else places.new, out)
    return out


@cache
def _none() -> Array:
    return empty((0,), I64)


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
def _ranges(first, listed, positions, window, new, out):
    t, head = cuda.blockIdx.x * cuda.blockDim.x + cuda.threadIdx.x, cuda.blockIdx.y
    if t < out.shape[1]:
        p = first + t
        if new.shape[0] > 0:  # the queries end with the new token
            p = new[1] + t + 1 - out.shape[1]
        if listed.shape[0] > 0:
            p = listed[t]
        out[head, t, 1] = _place(positions, head, p)
        lo = 0
        if window > 0:
            lo = _place(positions, head, p - window)
        out[head, t, 0] = lo
