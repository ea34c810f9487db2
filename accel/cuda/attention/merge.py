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


AHEAD = 4  # parts that a thread looks at together


def merge(part: Array, stats: Array, out: Array, unit: float) -> None:
    """part (C, P, KV, R, D) and stats (C, P, KV, R, 2), peaks and sums, of rows t·G + g -> out (C·T, H, D). A peak is
    in units of `unit` of the exponential's argument: log 2 where a tier counts in powers of two."""
    chunks, parts, kv_heads, rows, dim = part.shape
    group = out.shape[1] // kv_heads
    flat, found = (x.join(0).join(1) for x in (part, stats))  # type: ignore[union-attr]  # (C·P, KV·R, …)
    _merge[(rows // group, kv_heads, chunks), min(THREADS, 32 * -(-dim // 32))](flat, found, out, parts, group, unit)


@kernel
def _merge(part, stats, out, parts, group, unit):
    t, head, chunk = cuda.blockIdx.x, cuda.blockIdx.y, cuda.blockIdx.z
    tokens, first = cuda.gridDim.x, chunk * parts
    last = first + parts - 1
    for g in range(group):
        place = (head * tokens + t) * group + g
        peak = np.float32(-3e38)
        p = first
        while p <= last:
            for u in range(AHEAD):  # asked for together, or each would be waited for
                m, weight = stats[min(p + u, last), place, 0], stats[min(p + u, last), place, 1]
                if weight != 0:
                    peak = max(peak, m)
            p += AHEAD
        d = cuda.threadIdx.x
        while d < part.shape[2]:
            total, x = np.float32(0), np.float32(0)
            p = first
            while p <= last:
                for u in range(AHEAD):
                    m, weight = stats[min(p + u, last), place, 0], stats[min(p + u, last), place, 1]
                    y = part[min(p + u, last), place, d]
                    if p + u <= last and weight != 0:
                        e = math.exp((m - peak) * np.float32(unit))
                        total += e * weight
                        x += e * y
                p += AHEAD
            if total != 0:
                x /= total
            out[chunk * tokens + t, head * group + g, d] = narrow(out, x)
            d += cuda.blockDim.x
