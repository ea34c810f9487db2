"""TOVA and SnapKV: the attention mass of a chunk's last queries. H2O's is that of all of them.

`average` and `receive` are what an evictor does with the mass of a decoded token, and by `shift` SnapKV remembers its
query.
"""

from __future__ import annotations

import numpy as np

from accel.cpu.attention.received import attention_mass
from accel.cpu.linear.columns import copy_bytes
from accel.cpu.linear.rows import copy_row
from accel.cpu.runtime.arrays import address
from accel.cpu.runtime.kernels import kernel
from accel.cpu.simd import carray, doubles_at, fetch_add, floats_at
from reference import contract
from reference.attention import as_positions


def tova_scores(
    q: np.ndarray,
    k: np.ndarray,
    q_positions: np.ndarray | int,
    k_positions: np.ndarray,
    *,
    scale: float | None = None,
    cap: float | None = None,
) -> np.ndarray:
    """Attention row of the last query: q (H, T, D), k (KV, S, D), positions (T,) and (KV, S) -> (H, S) float32."""
    contract.tova_scores(q, k, q_positions, k_positions, scale, cap)
    return _newest_mass(q, k, q_positions, k_positions, 1, scale, cap)


def snapkv_scores(
    q: np.ndarray,
    k: np.ndarray,
    q_positions: np.ndarray | int,
    k_positions: np.ndarray,
    *,
    window: int = 32,
    kernel: int = 5,
    scale: float | None = None,
    cap: float | None = None,
) -> np.ndarray:
    """Attention of the last min(window, T) queries, summed, then averaged along the keys: shapes as above -> (H, S)."""
    contract.snapkv_scores(q, k, q_positions, k_positions, window, kernel, scale, cap)
    mass = _newest_mass(q, k, q_positions, k_positions, window, scale, cap)
    pooled = np.empty_like(mass)
    pool(address(mass), address(pooled), *mass.shape, kernel)
    return pooled


def _newest_mass(
    q: np.ndarray,
    k: np.ndarray,
    q_positions: np.ndarray | int,
    k_positions: np.ndarray,
    count: int,
    scale: float | None,
    cap: float | None,
) -> np.ndarray:
    """Attention mass of the last `count` queries."""
    places = as_positions(q_positions, q.shape[1])[-count:]
    return attention_mass(q[:, -count:], k, places, k_positions, scale=scale, cap=cap)


@kernel
def average(task, worker, mass, scores, heads, kv_heads, keys):
    """scores (KV, S) = the mean over each group of mass (H, S), as `group_mean`."""
    group = heads // kv_heads
    received, found = carray(floats_at(mass), (kv_heads, group, keys)), carray(floats_at(scores), (kv_heads, keys))
    while True:
        kv = fetch_add(task, 1)
        if kv >= kv_heads:
            return
        for s in range(keys):
            total = received[kv, 0, s]
            for g in range(1, group):
                total += received[kv, g, s]
            found[kv, s] = total / np.float32(group)


@kernel
def receive(task, worker, mass, so_far, room, scores, heads, kv_heads, keys):
    """Add mass (H, S) to what was received before the newest key, float64 in rows of `room`, and write the mean over
    each group to scores (KV, S), float64."""
    group = heads // kv_heads
    received, found = carray(floats_at(mass), (heads, keys)), carray(doubles_at(scores), (kv_heads, keys))
    sums = carray(doubles_at(so_far), (heads, room))
    while True:
        kv = fetch_add(task, 1)
        if kv >= kv_heads:
            return
        for head in range(kv * group, (kv + 1) * group):
            sums[head, keys - 1] = 0.0
            for s in range(keys):
                sums[head, s] += np.float64(received[head, s])
        for s in range(keys):
            total = sums[kv * group, s]
            for head in range(kv * group + 1, (kv + 1) * group):
                total += sums[head, s]
            found[kv, s] = total / np.float64(group)


@kernel
def pool(task, worker, mass, pooled, heads, keys, width):
    """pooled (H, S) = the mean of `width` neighbouring keys of mass (H, S), zeros beyond both ends counted."""
    received, found = carray(floats_at(mass), (heads, keys)), carray(floats_at(pooled), (heads, keys))
    while True:
        head = fetch_add(task, 1)
        if head >= heads:
            return
        for s in range(keys):
            total = np.float32(0.0)
            for i in range(max(s - width // 2, 0), min(s + width // 2 + 1, keys)):
                total += received[head, i]
            found[head, s] = total / np.float32(width)


@kernel
def shift(task, worker, queries, q, q_head, heads, window, dim):
    """Forget the oldest of the queries held (H, W, D), and add one (H, 1, D) after the newest; float32 all."""
    while True:
        head = fetch_add(task, 1)
        if head >= heads:
            return
        held, row = queries + 4 * head * window * dim, 4 * dim
        copy_bytes(held + row, held, (window - 1) * row)
        copy_row(q + head * q_head, held + (window - 1) * row, dim, 1.0)
