"""Attention that each key receives, Σ_t a_tj: first every query's peak and sum, then every key's share of each.

Both read the keys once for every query. What limits it: the cache of each multiprocessor. Keys of 16 bits go to the
tensor cores instead (received_tensor.py).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numba import cuda

from accel.cuda.attention.by_row import score
from accel.cuda.attention.call import attention_each
from accel.cuda.attention.lines import lined, on_tensor_cores
from accel.cuda.attention.visible import own_ranges, what_is_seen
from accel.cuda.runtime.arrays import F32, Array, empty
from accel.cuda.runtime.kernels import blocks, kernel
from accel.cuda.runtime.moves import cast
from accel.cuda.runtime.reduce import THREADS, block_max, block_sum
from accel.cuda.runtime.views import plain
from reference import contract


def attention_mass(
    q: Array,
    k: Any,
    q_positions: Any,
    k_positions: Any,
    *,
    scale: float | None = None,
    window: int | None = None,
    cap: float | None = None,
) -> Array:
    """Attention that each key receives: q (H, T, D), k (KV, S, D), positions as in `attention` -> (H, S) float32."""
    sizes = contract.attention_mass(q, k, q_positions, k_positions, scale, window, cap)
    heads, tokens, kv_heads, size = (sizes[axis] for axis in ("H", "T", "KV", "S"))
    out = empty((heads, size), F32)
    if not out.size:
        return out
    start, ranges = what_is_seen(q_positions, k_positions, tokens, window)
    rate = 1 / math.sqrt(sizes["D"]) if scale is None else scale
    keys = plain(k)
    if tokens and on_tensor_cores(keys, rate):
        from accel.cuda.attention import received_tensor

        q, keys = (lined(x) for x in (q if q.dtype == F32 else cast(q, keys.dtype), keys))
        received_tensor.mass(q, keys, ranges, start or 0, rate, window or 0, cap, out)
        return out
    if ranges is None:
        ranges = own_ranges(start or 0, tokens, kv_heads, window)
    stats = empty((heads, max(tokens, 1), 2), F32)
    if tokens:
        _peaks[(tokens, heads), THREADS](q, keys, ranges, float(rate), float(cap or 0), stats)
    _mass[(blocks(size, THREADS), heads), THREADS](q, keys, ranges, float(rate), float(cap or 0), stats, out)
    return out


def attention_and_mass_each(
    reads: Sequence[tuple[Any, Any, Any, Any, Any]],
    *,
    scale: float | None = None,
    window: int | None = None,
    cap: float | None = None,
) -> list[tuple[Array, Array]]:
    """`attention_each`, and `attention_mass` of every read, which finds peaks and sums again: (T, H·D) and (H, S)
    each."""
    rows = attention_each(reads, scale=scale, window=window, cap=cap)
    mass = [attention_mass(q, k, *places, scale=scale, window=window, cap=cap) for q, k, _, *places in reads]
    return list(zip(rows, mass, strict=True))


@kernel
def _peaks(q, k, ranges, scale, cap, stats):
    memory = cuda.shared.array(THREADS, np.float32)
    sums = cuda.shared.array(THREADS, np.float64)
    t, head, thread = cuda.blockIdx.x, cuda.blockIdx.y, cuda.threadIdx.x
    kv = head // (q.shape[0] // k.shape[0])
    peak, total = np.float32(-3e38), 0.0
    j = ranges[kv, t, 0] + thread
    while j < ranges[kv, t, 1]:
        s = score(q, k, head, t, kv, j, scale, cap)
        if not s <= peak:
            total *= math.exp(peak - s)
            peak = s
        total += math.exp(s - peak)
        j += THREADS
    highest = block_max(peak, memory)
    whole = block_sum(total * math.exp(peak - highest), sums)
    if thread == 0:
        stats[head, t, 0], stats[head, t, 1] = highest, whole


@kernel
def _mass(q, k, ranges, scale, cap, stats, out):
    j, head = cuda.blockIdx.x * cuda.blockDim.x + cuda.threadIdx.x, cuda.blockIdx.y
    kv = head // (q.shape[0] // k.shape[0])
    if j < k.shape[1]:
        total = 0.0
        for t in range(q.shape[1]):
            if ranges[kv, t, 0] <= j and j < ranges[kv, t, 1]:
                s = score(q, k, head, t, kv, j, scale, cap)
                total += math.exp(s - stats[head, t, 0]) / stats[head, t, 1]
        out[head, j] = total
