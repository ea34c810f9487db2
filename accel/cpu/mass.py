"""The attention that every key receives, without ever holding the weights.

    mass_j = Σ_t 2^(x_tj - peak_t) / sum_t

Two passes over the tiles of `attention`: the first finds each row's peak and sum, the second computes the scores again
and adds their weights down the columns. Twice the score products are what it costs to hold nothing of size T × S. An
item of the second pass is a KV head and a range of keys, which no other item writes to.
"""

from __future__ import annotations

import numpy as np
from numba import carray, njit

from accel.cpu.attention import (
    FEW_ROWS,
    KEYS,
    MOST_ROWS,
    Plan,
    _scratch_size,
    finite,
    hide,
    pack_keys,
    pack_queries,
    padded,
    score_block,
    score_few,
)
from accel.cpu.compiled import THREADS, kernel
from accel.cpu.simd import LANES, exp2, fetch_add, floats_at, load, real, splat, store, unpack, words_at
from accel.cpu.views import address, rows, scratch


def attention_mass(
    q: np.ndarray,
    k: np.ndarray,
    q_positions: np.ndarray,
    k_positions: np.ndarray,
    *,
    scale: float | None = None,
    window: int | None = None,
) -> np.ndarray:
    """Attention that each key receives, Σ_t a_tj, from shapes as in `attention` -> (H, S) float32."""
    plan = Plan(q, k, q_positions, k_positions, scale, window)
    _, stats = plan.attend(None)  # (P, H, T, 2)
    peaks = stats[..., 0].max(axis=0)  # (H, T)
    sums = np.where(stats[..., 1] > 0, stats[..., 1] * np.exp2(stats[..., 0] - np.maximum(peaks, -1e38)), 0).sum(axis=0)
    rates = np.divide(1, sums, out=np.zeros_like(sums), where=sums != 0)  # a query that sees nothing gives nothing
    rows_of = np.ascontiguousarray(np.stack([peaks, rates], axis=-1), np.float32)  # (H, T, 2)
    mass = np.zeros((plan.heads, plan.keys), np.float32)
    block = max(1, min(plan.tokens, MOST_ROWS // plan.group))
    size = _scratch_size(block * plan.group, plan.dim)
    parts = max(1, min(-(-8 * THREADS // plan.kv), -(-plan.keys // (4 * KEYS))))
    span = -(-plan.keys // (parts * KEYS)) * KEYS
    memory = scratch.take(size * THREADS)
    _mass(
        *rows(plan.q), *rows(plan.k), address(plan.bounds), address(rows_of), address(mass), address(memory), size,
        plan.heads, plan.kv, plan.tokens, plan.keys, plan.dim, block, parts, span, plan.scale,
    )  # fmt: skip
    scratch.give(memory)
    return mass


@njit(forceinline=True)
def add_weights(row, count, peak, rate, sums):
    """sums += rate · 2^(row - peak), over the first `count` columns and those up to the next multiple of LANES."""
    offset, by = splat(finite(peak)), splat(rate)
    for i in range(0, count, LANES):
        store(sums + 4 * i, load(sums + 4 * i) + exp2(load(row + 4 * i) - offset) * by)


@kernel
def _mass(task, worker):
    (
        q, q_head, q_row, q_kind, k, k_head, k_row, k_kind, seen, stats, mass, memory, size,
        heads, kv_heads, tokens, keys, dim, block, parts, span, scale,
    ) = unpack(task + 8, 22)  # fmt: skip
    group, wide_dim = heads // kv_heads, padded(dim, LANES)
    limits = carray(words_at(seen), (kv_heads, tokens, 2))
    summary = carray(floats_at(stats), (heads, tokens, 2))
    received = carray(floats_at(mass), (heads, keys))
    most = block * group
    queries = memory + 4 * size * worker
    scores = queries + 4 * most * wide_dim
    panels = scores + 4 * most * KEYS
    wide = panels + 4 * KEYS * wide_dim
    sums = wide + 4 * KEYS * wide_dim
    lines = sums + 4 * KEYS
    lines += -lines % 8
    columns = carray(floats_at(sums), KEYS)
    stand = carray(words_at(lines), KEYS)
    while True:
        item = fetch_add(task, 1)
        if item >= kv_heads * parts:
            return
        part, kv = item % parts, item // parts
        for first_token in range(0, tokens, block):
            here = min(block, tokens - first_token)
            rows = here * group
            source = q + kv * group * q_head + first_token * q_row
            pack_queries(source, q_head, q_row, q_kind, group, here, dim, queries, real(scale))
            begin = max(part * span, limits[kv, first_token, 0] // KEYS * KEYS)
            end = min((part + 1) * span, limits[kv, first_token + here - 1, 1])
            for start in range(begin, end, KEYS):
                count = min(KEYS, end - start)
                for i in range(count):
                    stand[i] = k + kv * k_head + (start + i) * k_row
                if rows <= FEW_ROWS:
                    score_few(queries, rows, lines, k_kind, count, dim, wide, scores)
                else:
                    pack_keys(lines, k_kind, count, dim, wide, panels)
                    score_block(queries, rows, dim, panels, count, scores)
                for g in range(group):
                    head = kv * group + g
                    columns[:] = 0.0
                    for t in range(here):
                        row = scores + 4 * (g * here + t) * KEYS
                        token = first_token + t
                        low, high = limits[kv, token, 0] - start, min(limits[kv, token, 1] - start, count)
                        if low > 0 or high < padded(count, LANES):
                            hide(row, count, low, high)
                        add_weights(row, count, summary[head, token, 0], summary[head, token, 1], sums)
                    for i in range(count):
                        received[head, start + i] += columns[i]
