"""Attention by blocks, with an online softmax: nothing of size T × S is ever held.

How it tiles. The G heads of a group share their keys, so one work item is a KV head, at most 512 of its G·T query
columns, and a range of keys. Keys come in blocks of KEYS, packed once for all columns of the item, as are the values.
K·Qᵀ fills a buffer of KEYS rows and WIDTH columns, the softmax turns it into weights, down the columns and so without
any step across lanes, and Vᵀ times the weights is added to the columns' output. All of it stays in the second-level
cache; the product (multiply.py) is what limits it.

Positions ascend along T and S, so a query sees one contiguous range of keys: masks compare key numbers with two bounds
per query, and blocks outside every bound are not visited.
Powers of two instead of e: log2(e) is folded into the scale, which is folded into the queries. A column's peak is
raised only when it is exceeded by 2⁸, so that the output is hardly ever rescaled. On a matrix unit one block of columns
is softened while the scores of the next are multiplied, and the next keys and values are packed while Vᵀ is.
"""

from __future__ import annotations

import numpy as np
from numba import carray, njit
from numba.extending import register_jitable

from accel.cpu.attention.hidden_values import list_values, spoil
from accel.cpu.attention.sums import add_exactly, collect, settle
from accel.cpu.linear.packed_product import (
    multiply_packing,
    multiply_softening,
    multiply_turning,
    nothing_planned,
    plan_across,
    plan_left,
    plan_size,
    ready_across,
    ready_left,
)
from accel.cpu.linear.packing import (
    HIGH,
    STEP,
    TEMPORARY,
    WIDTH,
    left_size,
    pack_left,
    pack_left_across,
    pack_right,
    right_size,
    vectors_of,
)
from accel.cpu.linear.rows import copy_row, list_rows, padded
from accel.cpu.runtime.kernels import kernel
from accel.cpu.simd import (
    F32,
    LANES,
    MATRIX,
    ROWS,
    any_above,
    close_tiles,
    exp2,
    fetch_add,
    floats_at,
    larger,
    load,
    open_tiles,
    real,
    soften_units,
    splat,
    store,
    transpose,
    where_above,
    with_rest,
    within,
    words_at,
)

KEYS = 128 if MATRIX else 128 // ROWS * ROWS  # keys per block
NOTHING = float(np.finfo(np.float32).min)  # the peak of a column that has seen no key: no score lies below it
SLACK = np.float32(8.0)  # powers of two by which a peak may be exceeded


@register_jitable
def places(columns, dim):
    """Where each part of a worker's memory begins, in floats, for items of so many columns; the last is how many."""
    blocks = (columns + WIDTH - 1) // WIDTH
    high = padded(padded(dim, LANES), HIGH)
    queries = 0  # (blocks,) packed
    out = queries + blocks * right_size(dim)  # (blocks, 3, high, WIDTH): sums, totals, and what those have lost
    state = out + blocks * 3 * high * WIDTH  # (blocks, 4, WIDTH): peaks, and the sums of weights alike
    left_keys = state + blocks * 4 * WIDTH  # both twice, in turns
    left_values = left_keys + 2 * left_size(KEYS, dim)
    scores = left_values + 2 * left_size(dim, KEYS)  # (KEYS, WIDTH), of two blocks of columns in turns
    weights = scores + 2 * padded(KEYS, HIGH) * WIDTH  # packed; register tiles read the scores' own place
    temporary = weights + (right_size(KEYS) if MATRIX else 0)
    turned = temporary + TEMPORARY  # (LANES, dim)
    lines = turned + LANES * padded(dim, LANES)  # addresses, and of values to come
    plans = lines + 4 * max(WIDTH, padded(KEYS, STEP))  # of keys and values to be packed
    ends = plans + 2 * plan_size(2 * KEYS, dim)  # two bounds per column
    clean = ends + 2 * WIDTH  # values (KEYS, dim), see hidden_values.py
    return (
        queries, out, state, left_keys, left_values, scores, weights, temporary, turned, lines, plans, ends, clean,
        padded(clean + KEYS * padded(dim, LANES), 16),
    )  # fmt: skip


@njit
def hide(vectors, count, scores, ends):
    """Minus infinity wherever a column's two bounds leave a key out."""
    for j in range(0, vectors * LANES, LANES):
        lows, highs = load(ends + 4 * j), load(ends + 4 * (WIDTH + j))
        for i in range(count):
            at = scores + 4 * (i * WIDTH + j)
            store(at, within(load(at), lows, highs, np.float32(i)))


@njit
def bound_columns(seen, first_column, columns, here, first_token, start, ends):
    """The bounds of a block's columns, counted from the key `start`, as the floats that `hide` compares. Beyond the
    last column nothing is seen."""
    edges = carray(floats_at(ends), (2, WIDTH))
    edges[:] = 0.0
    for i in range(columns):
        token = first_token + (first_column + i) % here
        for side in range(2):
            edges[side, i] = min(max(seen[token, side] - start, -1), KEYS)


@njit
def raise_peaks(vectors, count, scores, state, out, rows):
    """Raise the peaks that a block of scores exceeds by far, and rescale what was summed under the old ones. Lanes are
    different queries: one that is NaN, or keeps its peak, must not be told from the others' register."""
    for j in range(0, vectors * LANES, LANES):
        at = scores + 4 * j
        a, b, c, d = load(at), load(at), load(at), load(at)
        for i in range(0, count - 3, 4):
            row = at + 4 * WIDTH * i
            a, b = larger(a, load(row)), larger(b, load(row + 4 * WIDTH))
            c, d = larger(c, load(row + 8 * WIDTH)), larger(d, load(row + 12 * WIDTH))
        for i in range(count // 4 * 4, count):
            a = larger(a, load(at + 4 * WIDTH * i))
        best, peak = larger(larger(a, b), larger(c, d)), load(state + 4 * j)
        over = best - peak
        if any_above(over, SLACK):
            raised = where_above(over, SLACK, best, peak)
            factor = where_above(over, SLACK, exp2(peak - raised), splat(np.float32(1.0)))
            store(state + 4 * j, raised)
            for i in range(1, 4):
                row = state + 4 * (i * WIDTH + j)
                store(row, load(row) * factor)
            for i in range(rows):
                row = out + 4 * (i * WIDTH + j)
                store(row, load(row) * factor)


@njit
def soften(first, vectors, count, scores, weights, kind, state):
    """2^(x - peak) of a block of scores, whose columns' sums are added up: in place, or packed for the matrix unit,
    from the unit `first` on. `kind` is how the values are stored."""
    if MATRIX:
        soften_units(kind, first, units_of(count), vectors, scores, weights, state)
    else:
        for j in range(0, vectors * LANES, LANES):
            peak, sums = load(state + 4 * j), splat(np.float32(0.0))
            for i in range(count):
                row = scores + 4 * (i * WIDTH + j)
                x = exp2(load(row) - peak)
                sums = sums + x
                store(row, x)
            store(state + 4 * (WIDTH + j), sums)
    for j in range(0, vectors * LANES, LANES):
        sums = state + 4 * (WIDTH + j)
        add_exactly(load(sums), sums + 4 * WIDTH, sums + 8 * WIDTH)
        store(sums, splat(np.float32(0.0)))


@njit(forceinline=True)
def units_of(count):
    """Units of the softmax for so many keys."""
    return padded(count, STEP)


@njit(forceinline=True)
def at_edge(seen, first_token, last_token, start, count):
    """Whether one of these tokens does not see all of these keys."""
    return seen[last_token, 0] > start or seen[first_token, 1] < start + count


@njit
def prepare(vectors, count, scores, edge, limits, first_column, columns, here, first_token, start, ends):
    """Hide what a block of columns must not see, and the rows that fill up the last step."""
    if edge:
        bound_columns(limits, first_column, columns, here, first_token, start, ends)
        hide(vectors, count, scores, ends)
    if MATRIX:
        for i in range(count, padded(count, STEP)):
            for j in range(0, vectors * LANES, LANES):
                store(scores + 4 * (i * WIDTH + j), splat(np.float32(-np.inf)))


@njit
def pack_queries(q, q_head, q_row, q_kind, group, here, dim, out, scale, k_kind, lines, temporary):
    """The queries of a group, head by head, as the columns of packed blocks."""
    stand, columns = carray(words_at(lines), WIDTH), group * here
    for first in range(0, columns, WIDTH):
        count = min(WIDTH, columns - first)
        for i in range(count):
            stand[i] = q + (first + i) // here * q_head + (first + i) % here * q_row
        to = out + 4 * first // WIDTH * right_size(dim)
        pack_right(lines, q_kind, count, dim, to, scale, k_kind, temporary)


@kernel
def attend(
    task, worker, q, q_head, q_row, q_kind, k, k_head, k_row, k_kind, v, v_head, v_row, v_kind, chosen, seen,
    target, target_part, target_head, target_row, final, stats, memory, size, heads, kv_heads, tokens, keys, dim,
    block, blocks, parts, span, scale,
):  # fmt: skip
    """The work of `attention` by blocks: see above for how it tiles."""
    group, wide_dim = heads // kv_heads, padded(dim, LANES)
    high = padded(wide_dim, HIGH)
    limits = carray(words_at(seen), (kv_heads, tokens, 2))
    summary = carray(floats_at(stats), (parts, heads, tokens, 2))
    mine = memory + 4 * size * worker
    p = places(block * group, dim)
    settled = 8 if MATRIX and v_kind == F32 else 64  # blocks, after which sums are moved to the totals
    queries, out, state, left_keys = mine + 4 * p[0], mine + 4 * p[1], mine + 4 * p[2], mine + 4 * p[3]
    left_values, scores, weights = mine + 4 * p[4], mine + 4 * p[5], mine + 4 * p[6]
    temporary, turned, lines, plan, ends, clean = (
        mine + 4 * p[7], mine + 4 * p[8], mine + 4 * p[9], mine + 4 * p[10], mine + 4 * p[11], mine + 4 * p[12],
    )  # fmt: skip
    stand, value_lines = carray(words_at(lines), LANES), lines + 8 * max(WIDTH, padded(KEYS, STEP))
    value_plan, key_place, value_place = plan + 4 * plan_size(2 * KEYS, dim), left_size(KEYS, dim), left_size(dim, KEYS)
    open_tiles()
    while True:
        item = fetch_add(task, 1)
        if item >= kv_heads * blocks * parts:
            close_tiles()
            return
        part, kv, first_token = item % parts, item // parts % kv_heads, item // (parts * kv_heads) * block
        picked = chosen + 8 * kv * keys if chosen else 0
        here = min(block, tokens - first_token)
        columns, last_token = here * group, first_token + here - 1
        source = q + kv * group * q_head + first_token * q_row
        pack_queries(source, q_head, q_row, q_kind, group, here, dim, queries, real(scale), k_kind, lines, temporary)
        for c in range(0, columns, WIDTH):
            column_state = carray(floats_at(state + 16 * c), (4, WIDTH))
            column_state[:] = 0.0
            column_state[0] = NOTHING
        begin = max(part * span, limits[kv, first_token, 0])
        end = min((part + 1) * span, limits[kv, last_token, 1])
        long = end - begin > settled * KEYS
        rows_out = (3 * high if long else high) if v else 0
        for c in range(0, columns, WIDTH):
            for i in range(0, rows_out * WIDTH, LANES):
                store(out + 4 * (3 * c * high + i), splat(np.float32(0.0)))
        for start in range(begin, end, KEYS):
            count, coming, turn = min(KEYS, end - start), min(KEYS, end - start - KEYS), (start - begin) // KEYS % 2
            packed_keys, packed_values = left_keys + 4 * turn * key_place, left_values + 4 * turn * value_place
            edge = at_edge(limits[kv], first_token, last_token, start, count)
            list_rows(lines, k + kv * k_head, k_row, start, count, picked)
            if v:
                base = v + kv * v_head
                if list_values(value_lines, base, v_row, v_kind, dim, start, count, picked, edge, clean):
                    spoil(
                        base, v_row, v_kind, dim, start, count, picked, limits[kv], first_token, here, columns, out,
                        high, turned,
                    )  # fmt: skip
            if start == begin:
                pack_left(lines, k_kind, count, dim, packed_keys)
                if v:
                    pack_left_across(value_lines, v_kind, dim, count, packed_values, temporary)
            else:
                ready_left(plan, lines, k_kind, count, dim, packed_keys)
                if v:
                    ready_across(value_plan, value_lines, v_kind, dim, count, packed_values, temporary)
            nothing_planned(plan)
            nothing_planned(value_plan)
            if coming > 0:
                list_rows(lines, k + kv * k_head, k_row, start + KEYS, coming, picked)
                plan_left(plan, lines, k_kind, coming, 0, dim, left_keys + 4 * (1 - turn) * key_place)
                if v:
                    later = at_edge(limits[kv], first_token, last_token, start + KEYS, coming)
                    base, to = v + kv * v_head, left_values + 4 * (1 - turn) * value_place
                    list_values(value_lines, base, v_row, v_kind, dim, start + KEYS, coming, picked, later, clean)
                    plan_across(value_plan, plan, value_lines, v_kind, dim, coming, to)
            # A block of columns is softened while the next one's scores are computed.
            overlap = MATRIX and k_kind == v_kind and v != 0
            for c in range(0, columns + WIDTH, WIDTH):
                done = 0
                fresh_scores = scores + c // WIDTH % 2 * (4 * padded(KEYS, HIGH) * WIDTH)
                before = c - WIDTH
                old_scores, old_state = (
                    scores + before // WIDTH % 2 * (4 * padded(KEYS, HIGH) * WIDTH),
                    state + 16 * before,
                )
                if c < columns:
                    vectors, right = vectors_of(columns - c), queries + 4 * c // WIDTH * right_size(dim)
                    if overlap:
                        units = units_of(count) if c else 0
                        done = multiply_softening(
                            k_kind, vectors, count, dim, packed_keys, right, fresh_scores, units, old_scores, weights,
                            old_state,
                        )  # fmt: skip
                    else:
                        multiply_packing(
                            k_kind, 1, vectors, count, dim, packed_keys, 0, right, fresh_scores, 4 * WIDTH, plan
                        )
                    prepare(
                        vectors, count, fresh_scores, edge, limits[kv], c, min(WIDTH, columns - c), here, first_token,
                        start, ends,
                    )  # fmt: skip
                    raise_peaks(vectors, count, fresh_scores, state + 16 * c, out + 12 * c * high, rows_out)
                if c:
                    vectors = vectors_of(columns - before)
                    to = weights if MATRIX else old_scores
                    soften(done, vectors, count, old_scores, to, v_kind, old_state)
                    if v:
                        column_out = out + 12 * before * high
                        multiply_turning(
                            v_kind, vectors, dim, count, packed_values, to, column_out, 4 * WIDTH, value_plan,
                            plan if overlap or not MATRIX else value_plan, temporary,
                        )  # fmt: skip
            if long and v and ((start - begin) // KEYS + 1) % settled == 0:
                for c in range(0, columns, WIDTH):
                    settle(out + 12 * c * high, high * WIDTH)
        for c in range(0, columns, WIDTH):
            if long and v:
                collect(out + 12 * c * high, high * WIDTH)
            for j in range(0, WIDTH, LANES):
                total = state + 4 * (4 * c + 2 * WIDTH + j)
                store(total, with_rest(load(total), load(total + 4 * WIDTH)))
        for c in range(0, columns, LANES):
            place = c // WIDTH
            column_state = carray(floats_at(state + 16 * place * WIDTH), (4, WIDTH))
            if v:
                for d in range(0, wide_dim, LANES):
                    for i in range(LANES):
                        stand[i] = out + 4 * WIDTH * (3 * place * high + d + i)
                    transpose(lines, 4 * (c % WIDTH), turned + 4 * d, 4 * wide_dim)
            for i in range(min(LANES, columns - c)):
                head, token = kv * group + (c + i) // here, first_token + (c + i) % here
                peak, mass = column_state[0, c % WIDTH + i], column_state[2, c % WIDTH + i]
                summary[part, head, token, 0] = peak
                summary[part, head, token, 1] = mass
                if v:
                    to = target + part * target_part + head * target_head + token * target_row
                    factor = np.float32(1.0)
                    if final:
                        factor = np.float32(1.0) / mass if mass != 0.0 else np.float32(0.0)
                    copy_row(turned + 4 * i * wide_dim, to, dim, factor)
