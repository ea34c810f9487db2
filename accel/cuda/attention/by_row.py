"""Attention for any device, head_dim and type: one block for one query, over a range of its keys.

Every thread scores one key of a tile at a time; then every thread sums some of the output's numbers over the tile.
Long ranges are cut into parts of at most SPAN keys, merged afterwards, so that float32 sums stay short. What limits it:
keys and values are read once for every query.
"""

from __future__ import annotations

import math

import numpy as np
from numba import cuda

from accel.cuda.attention.merge import merge
from accel.cuda.ptx.numbers import wide
from accel.cuda.runtime.arrays import F32, Array, empty
from accel.cuda.runtime.capped import capped
from accel.cuda.runtime.kernels import blocks, device, kernel
from accel.cuda.runtime.reduce import THREADS, block_max, block_sum

SPAN = 4096  # keys of a part at most
MOST_DIM = 512


def attend(q: Array, k: Array, v: Array, ranges: Array, scale: float, cap: float | None, out: Array) -> None:
    """q (H, T, D), k and v (KV, S, D), ranges (KV, T, 2) -> out (T, H, D)."""
    (heads, tokens, dim), kv_heads = q.shape, k.shape[0]
    if dim > MOST_DIM:
        raise ValueError(f"q: got D={dim}, wanted at most {MOST_DIM}")
    parts = blocks(k.shape[1], SPAN)
    rows = heads // kv_heads * tokens
    part, stats = empty((1, parts, kv_heads, rows, dim), F32), empty((1, parts, kv_heads, rows, 2), F32)
    _attend[(tokens, heads, parts), THREADS](q, k, v, ranges, float(scale), float(cap or 0), part[0], stats[0])
    merge(part, stats, out, 1.0)


@device
def score(q, k, head, t, kv, j, scale, cap):
    """scale · q_t · k_j of one head, capped unless the cap is 0."""
    s = np.float32(0)
    for d in range(q.shape[2]):
        s += wide(q[head, t, d]) * wide(k[kv, j, d])
    return capped(s * np.float32(scale), np.float32(cap))


@kernel
def _attend(q, k, v, ranges, scale, cap, part, stats):
    weights = cuda.shared.array(THREADS, np.float32)
    memory = cuda.shared.array(THREADS, np.float32)
    sums = cuda.shared.array(MOST_DIM, np.float32)
    t, head, p = cuda.blockIdx.x, cuda.blockIdx.y, cuda.blockIdx.z
    thread = cuda.threadIdx.x
    group = q.shape[0] // k.shape[0]
    kv = head // group
    row = t * group + head % group
    start = max(ranges[kv, t, 0], p * SPAN)
    stop = min(ranges[kv, t, 1], (p + 1) * SPAN)
    d = thread
    while d < q.shape[2]:
        sums[d] = 0
        d += THREADS
    peak, total = np.float32(-3e38), np.float32(0)
    while start < stop:
        j = start + thread
        s = np.float32(-3e38)
        if j < stop:
            s = score(q, k, head, t, kv, j, scale, cap)
        highest = block_max(s, memory)
        if not highest > peak:
            highest = peak
        fade = math.exp(peak - highest)
        peak = highest
        w = np.float32(0)
        if j < stop:
            w = math.exp(s - peak)
        total = total * fade + block_sum(w, memory)
        weights[thread] = w
        cuda.syncthreads()
        count = min(stop - start, THREADS)
        d = thread
        while d < q.shape[2]:
            x = np.float32(0)  # a tile by itself: a long sum, one key at a time, would lose what is small beside it
            for i in range(count):
                x += weights[i] * wide(v[kv, start + i, d])
            sums[d] = sums[d] * fade + x
            d += THREADS
        cuda.syncthreads()
        start += THREADS
    d = thread
    while d < q.shape[2]:
        part[p, kv, row, d] = sums[d]
        d += THREADS
    if thread == 0:
        stats[p, kv, row, 0] = peak
        stats[p, kv, row, 1] = total
