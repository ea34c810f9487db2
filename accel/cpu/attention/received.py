"""The attention that every key receives, without ever holding the weights.

    mass_j = Σ_t 2^(x_tj - peak_t) / sum_t

Two passes over the blocks of `attention`: the first finds each query's peak and sum, the second computes the scores
again and adds their weights up along the columns. Twice the score products are what it costs to hold nothing of size
T × S. An item of the second pass is a KV head and a range of keys, which no other item writes to.
"""

from __future__ import annotations

import numpy as np
from numba import carray, njit
from numba.extending import register_jitable

from accel.cpu.attention.by_block import KEYS, at_edge, bound_columns, hide, pack_queries, places
from accel.cpu.attention.by_key import FEW, few_places, score_few
from accel.cpu.attention.call import Plan
from accel.cpu.linear.packed_product import multiply_packing, nothing_planned, plan_left, ready_left
from accel.cpu.linear.packing import WIDTH, left_size, pack_left, right_size, vectors_of
from accel.cpu.linear.rows import list_rows, padded, widen
from accel.cpu.runtime.arrays import address, rows
from accel.cpu.runtime.kernels import kernel
from accel.cpu.runtime.memory import scratch
from accel.cpu.runtime.team import THREADS
from accel.cpu.simd import (
    LANES,
    close_tiles,
    exp2,
    fetch_add,
    floats_at,
    load,
    only,
    open_tiles,
    real,
    splat,
    store,
    total,
    where_seen,
    words_at,
)


def attention_mass(
    q: np.ndarray,
    k: np.ndarray,
    q_positions: np.ndarray | int,
    k_positions: np.ndarray,
    *,
    scale: float | None = None,
    window: int | None = None,
) -> np.ndarray:
    """Attention that each key receives, Σ_t a_tj, from shapes as in `attention` -> (H, S) float32."""
    plan = Plan(q, k, q_positions, k_positions, scale, window)
    mass = np.zeros((plan.heads, plan.keys), np.float32)
    if plan.tokens == 0:
        return mass
    stats = plan.peaks_and_sums().astype(np.float64)  # (P, H, T, 2)
    peaks = stats[..., 0].max(axis=0)  # (H, T)
    with np.errstate(invalid="ignore"):  # of infinite peaks
        sums = (stats[..., 1] * np.exp2(stats[..., 0] - peaks)).sum(axis=0)
    rates = np.divide(1, sums, out=np.zeros_like(sums), where=sums != 0)  # a query that sees nothing gives nothing
    rows_of = np.ascontiguousarray(np.stack([peaks, rates], axis=-1), np.float32)  # (H, T, 2)
    size = few_places(plan.dim)[-1] if plan.few else mass_places(plan.group * padded(plan.block, WIDTH), plan.dim)[-1]
    parts = max(1, min(-(-4 * THREADS // plan.kv), -(-plan.keys // (2 * KEYS))))
    span = -(-plan.keys // (parts * KEYS)) * KEYS
    memory = scratch.take(size * THREADS)
    (_mass_few if plan.few else _mass)(
        *rows(plan.q), *rows(plan.k), plan.chosen, address(plan.bounds), address(rows_of), address(mass),
        address(memory), size, plan.heads, plan.kv, plan.tokens, plan.keys, plan.dim, plan.block, parts, span,
        plan.scale,
    )  # fmt: skip
    scratch.give(memory)
    return mass


@register_jitable
def mass_places(columns, dim):
    """As `places`: where the sums of a block's keys begin (KEYS, LANES), how the columns' peaks and rates lie (2,
    WIDTH), and how many floats there are in all."""
    sums = places(columns, dim)[-1]
    return sums, sums + KEYS * LANES, padded(sums + KEYS * LANES + 2 * WIDTH, 16)


@njit
def add_weights(vectors, count, scores, of_columns, sums, edge):
    """sums (KEYS, LANES) += rate · 2^(x - peak) of a block of scores, lane by lane; at an edge nothing where a key is
    hidden, though the rate be NaN."""
    for j in range(0, vectors * LANES, LANES):
        peak, rate = load(of_columns + 4 * j), load(of_columns + 4 * (WIDTH + j))
        for i in range(count):
            at, x = sums + 4 * LANES * i, load(scores + 4 * (i * WIDTH + j))
            weight = exp2(x - peak) * rate
            store(at, load(at) + (where_seen(x, weight) if edge else weight))


@kernel
def _mass(
    task, worker, q, q_head, q_row, q_kind, k, k_head, k_row, k_kind, chosen, seen, stats, mass, memory, size,
    heads, kv_heads, tokens, keys, dim, block, parts, span, scale,
):  # fmt: skip
    group = heads // kv_heads
    limits = carray(words_at(seen), (kv_heads, tokens, 2))
    summary = carray(floats_at(stats), (heads, tokens, 2))
    received = carray(floats_at(mass), (heads, keys))
    mine = memory + 4 * size * worker
    each = padded(block, WIDTH)  # columns of one head
    p, m = places(group * each, dim), mass_places(group * each, dim)
    queries, left_keys, scores = mine + 4 * p[0], mine + 4 * p[3], mine + 4 * p[5]
    temporary, lines, plan, ends = mine + 4 * p[7], mine + 4 * p[9], mine + 4 * p[10], mine + 4 * p[11]
    sums, of_columns = mine + 4 * m[0], mine + 4 * m[1]
    state = carray(floats_at(of_columns), (2, WIDTH))
    open_tiles()
    while True:
        item = fetch_add(task, 1)
        if item >= kv_heads * parts:
            close_tiles()
            return
        part, kv = item % parts, item // parts
        picked = chosen + 8 * kv * keys if chosen else 0
        for first_token in range(0, tokens, block):
            here = min(block, tokens - first_token)
            for g in range(group):
                source = q + (kv * group + g) * q_head + first_token * q_row
                to = queries + 4 * g * each // WIDTH * right_size(dim)
                pack_queries(source, q_head, q_row, q_kind, 1, here, dim, to, real(scale), k_kind, lines, temporary)
            begin = max(part * span, limits[kv, first_token, 0])
            end = min((part + 1) * span, limits[kv, first_token + here - 1, 1])
            for start in range(begin, end, KEYS):
                count = min(KEYS, end - start)
                turn, place = (start - begin) // KEYS % 2, 4 * left_size(KEYS, dim)
                packed = left_keys + turn * place
                list_rows(lines, k + kv * k_head, k_row, start, count, picked)
                if start == begin:
                    pack_left(lines, k_kind, count, dim, packed)
                else:
                    ready_left(plan, lines, k_kind, count, dim, packed)
                nothing_planned(plan)
                coming = min(KEYS, end - start - KEYS)
                if coming > 0:
                    list_rows(lines, k + kv * k_head, k_row, start + KEYS, coming, picked)
                    plan_left(plan, lines, k_kind, coming, 0, dim, left_keys + (1 - turn) * place)
                last_token = first_token + here - 1
                edge = at_edge(limits[kv], first_token, last_token, start, count)
                for g in range(group):
                    for i in range(0, count * LANES, LANES):
                        store(sums + 4 * i, splat(np.float32(0.0)))
                    for c in range(0, here, WIDTH):
                        columns, vectors = min(WIDTH, here - c), vectors_of(here - c)
                        right = queries + 4 * (g * each + c) // WIDTH * right_size(dim)
                        multiply_packing(k_kind, 1, vectors, count, dim, packed, 0, right, scores, 4 * WIDTH, plan)
                        if edge:
                            bound_columns(limits[kv], c, columns, here, first_token, start, ends)
                            hide(vectors, count, scores, ends)
                        for i in range(vectors * LANES):  # columns beyond the last repeat it, and add nothing
                            of_token = summary[kv * group + g, first_token + c + min(i, columns - 1)]
                            state[0, i], state[1, i] = of_token[0], of_token[1] if i < columns else np.float32(0.0)
                        add_weights(vectors, count, scores, of_columns, sums, edge)
                    for i in range(count):
                        received[kv * group + g, start + i] += total(load(sums + 4 * LANES * i))


@kernel
def _mass_few(
    task, worker, q, q_head, q_row, q_kind, k, k_head, k_row, k_kind, chosen, seen, stats, mass, memory, size,
    heads, kv_heads, tokens, keys, dim, block, parts, span, scale,
):  # fmt: skip
    group, wide_dim = heads // kv_heads, padded(dim, LANES)
    columns = group * tokens
    limits = carray(words_at(seen), (kv_heads, tokens, 2))
    summary = carray(floats_at(stats), (heads, tokens, 2))
    received = carray(floats_at(mass), (heads, keys))
    mine = memory + 4 * size * worker
    p = few_places(dim)
    queries, scores, wide = mine + 4 * p[0], mine + 4 * p[1], mine + 4 * p[3]
    lines, coming = mine + 4 * p[4], mine + 4 * p[5]
    found = carray(floats_at(scores), (FEW, padded(KEYS, LANES)))
    while True:
        item = fetch_add(task, 1)
        if item >= kv_heads * parts:
            return
        part, kv = item % parts, item // parts
        picked = chosen + 8 * kv * keys if chosen else 0
        for r in range(columns):
            at = q + (kv * group + r // tokens) * q_head + r % tokens * q_row
            widen(at, q_kind, dim, queries + 4 * r * wide_dim, real(scale))
        begin = max(part * span, limits[kv, 0, 0])
        end = min((part + 1) * span, limits[kv, tokens - 1, 1])
        for start in range(begin, end, KEYS):
            count = min(KEYS, end - start)
            list_rows(lines, k + kv * k_head, k_row, start, count, picked)
            after = max(0, min(KEYS, end - start - KEYS))
            list_rows(coming, k + kv * k_head, k_row, start + KEYS, after, picked)
            score_few(queries, columns, lines, k_kind, count, dim, wide, scores, coming, after)
            for r in range(columns):
                row, token, head = scores + 4 * r * padded(KEYS, LANES), r % tokens, kv * group + r // tokens
                low, last = limits[kv, token, 0] - start, min(limits[kv, token, 1] - start, count)
                peak, rate = splat(summary[head, token, 0]), splat(summary[head, token, 1])
                for i in range(0, count, LANES):
                    store(row + 4 * i, exp2(only(load(row + 4 * i), low - i, last - i) - peak) * rate)
                for i in range(max(low, 0), last):
                    received[head, start + i] += found[r, i]
