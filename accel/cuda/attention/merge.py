"""Putting together what blocks found over different keys.

    o = Σ_p e^(m_p - m) o_p / Σ_p e^(m_p - m) l_p,     m the largest peak m_p

with o_p the weighted values and l_p the weights' sum of part p, both relative to its peak. A part that saw nothing has
l_p = 0 and is not looked at. The order of p is the order of the sum: the same bits on every call.
"""

from __future__ import annotations

import math

import numpy as np
from numba import cuda

from accel.cuda.ptx.numbers import narrow
from accel.cuda.runtime.arrays import Array
from accel.cuda.runtime.kernels import kernel
from accel.cuda.runtime.reduce import THREADS

AHEAD, MOST_PARTS = 4, 1024  # parts that a thread looks at together, and that there may be


def merge(part: Array, stats: Array, out: Array, unit: float) -> None:
    """part (C, P, KV, R, D) and stats (C, P, KV, R, 2), peaks and sums, of rows t·G + g -> out (C·T, H, D). A peak is
    in units of `unit` of the exponential's argument: log 2 where a tier counts in powers of two."""
    chunks, parts, kv_heads, rows, dim = part.shape
    group = out.shape[1] // kv_heads
    flat, found = (x.join(0).join(1) for x in (part, stats))  # type: ignore[union-attr]  # (C·P, KV·R, …)
    grid, threads = (rows // group, out.shape[1], chunks), min(THREADS, 32 * -(-dim // 32))
    _merge[grid, threads](flat, found, out, parts, group, unit)


@kernel
def _merge(part, stats, out, parts, group, unit):
    peaks = cuda.shared.array(MOST_PARTS, np.float32)
    sums = cuda.shared.array(MOST_PARTS, np.float32)
    shares = cuda.shared.array(MOST_PARTS, np.float32)
    t, head, chunk, thread = cuda.blockIdx.x, cuda.blockIdx.y, cuda.blockIdx.z, cuda.threadIdx.x
    tokens, first, kv = cuda.gridDim.x, chunk * parts, head // group
    place = (kv * tokens + t) * group + head - kv * group
    p = thread
    while p < parts:
        peaks[p], sums[p] = stats[first + p, place, 0], stats[first + p, place, 1]
        p += cuda.blockDim.x
    cuda.syncthreads()
    p = thread
    while p < parts:  # a thread for each part's share: all threads need all of them
        peak, total = np.float32(-3e38), np.float32(0)
        for i in range(parts):
            if sums[i] != 0:
                peak = max(peak, peaks[i])
        for i in range(parts):
            if sums[i] != 0:
                total += math.exp((peaks[i] - peak) * np.float32(unit)) * sums[i]
        shares[p] = 0
        if sums[p] != 0:
            shares[p] = math.exp((peaks[p] - peak) * np.float32(unit)) / total
        p += cuda.blockDim.x
    cuda.syncthreads()
    found, line = part[first : first + parts, place], out[chunk * tokens + t, head]
    d = thread
    while d < line.shape[0]:
        x = np.float32(0)
        p = 0
        while p < parts:
            for u in range(AHEAD):  # asked for together, or each would be waited for
                y = found[min(p + u, parts - 1), d]
                if p + u < parts and shares[p + u] != 0:
                    x += shares[p + u] * y
            p += AHEAD
        line[d] = narrow(line, x)
        d += cuda.blockDim.x
