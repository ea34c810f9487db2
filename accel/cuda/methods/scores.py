"""What H2O, TOVA and SnapKV rank by, from the attention that keys receive."""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import cuda

from accel.cuda.attention.received import attention_mass
from accel.cuda.runtime.arrays import F32, Array, empty
from accel.cuda.runtime.device import here
from accel.cuda.runtime.kernels import blocks, kernel
from accel.cuda.runtime.moves import put
from accel.cuda.runtime.reduce import THREADS
from reference import contract


def tova_scores(
    q: Array, k: Any, q_positions: Any, k_positions: Any, *, scale: float | None = None, cap: float | None = None
) -> Array:
    """Attention row of the last query: q (H, T, D), k (KV, S, D), positions as in `attention` -> (H, S) float32."""
    contract.tova_scores(q, k, q_positions, k_positions, scale, cap)
    return _newest_mass(q, k, q_positions, k_positions, 1, scale, cap)


def snapkv_scores(
    q: Array,
    k: Any,
    q_positions: Any,
    k_positions: Any,
    *,
    window: int = 32,
    kernel: int = 5,
    scale: float | None = None,
    cap: float | None = None,
) -> Array:
    """Attention of the last min(window, T) queries, summed, then averaged along the keys: shapes as above -> (H, S)."""
    contract.snapkv_scores(q, k, q_positions, k_positions, window, kernel, scale, cap)
    mass = _newest_mass(q, k, q_positions, k_positions, window, scale, cap)
    out = empty(mass.shape, F32)
    if out.size:
        _pool[(blocks(out.shape[1], THREADS), len(out)), THREADS](mass, kernel, out)
    return out


def group_mean(h: Array, kv_heads: int) -> Array:
    """Scores per query head averaged over each group: (H, S) -> (KV, S) float32."""
    out = empty((kv_heads, h.shape[1]), F32)
    if out.size:
        _group_mean[(blocks(out.shape[1], THREADS), kv_heads), THREADS](h, out)
    return out


def last_queries(held: Array | None, q: Array, window: int) -> Array:
    """The newest `window` of the queries held (H, W, D) and a chunk's (H, T, D) -> (H, min(W + T, window), D)."""
    before = 0 if held is None else held.shape[1]
    new = min(q.shape[1], window)
    old = min(before, window - new)
    out = empty((q.shape[0], old + new, q.shape[2]), q.dtype)
    if held is not None and old:
        put(held[:, before - old :], out[:, :old])
    put(q[:, q.shape[1] - new :], out[:, old:])
    if here.given and held is not None and held.shape == out.shape:  # a pass that is recorded finds them there again
        put(out, held)
        return held
    return out


def _newest_mass(
    q: Array, k: Any, q_positions: Any, k_positions: Any, count: int, scale: float | None, cap: float | None
) -> Array:
    """attention_mass of the last `count` queries."""
    skipped = max(q.shape[1] - count, 0)
    newest = q_positions + skipped if isinstance(q_positions, int) else q_positions[skipped:]
    return attention_mass(q[:, skipped:], k, newest, k_positions, scale=scale, cap=cap)


@kernel
def _pool(mass, width, out):
    j, head = cuda.blockIdx.x * cuda.blockDim.x + cuda.threadIdx.x, cuda.blockIdx.y
    if j < out.shape[1]:
        total = 0.0
        for i in range(max(j - width // 2, 0), min(j + width // 2 + 1, out.shape[1])):
            total += np.float64(mass[head, i])
        out[head, j] = total / width


@kernel
def _group_mean(h, out):
    j, kv = cuda.blockIdx.x * cuda.blockDim.x + cuda.threadIdx.x, cuda.blockIdx.y
    group = h.shape[0] // out.shape[0]
    if j < out.shape[1]:
        total = 0.0
        for head in range(kv * group, (kv + 1) * group):
            total += np.float64(h[head, j])
        out[kv, j] = np.float32(total / group)
