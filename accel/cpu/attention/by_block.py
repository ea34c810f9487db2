"""Attention by blocks, with an online softmax: nothing of size T × S is ever held.

How it tiles. The G heads of a group share their keys, so one work item is a KV head, at most 512 of its G·T query
columns, and a range of keys. Keys come in blocks of KEYS, packed once for all columns of the item, as are the values.
K·Qᵀ fills a buffer of KEYS rows and WIDTH columns, the softmax turns it into weights, down the columns and so without
any step across lanes, and Vᵀ times the weights is added to the columns' output. All of it stays in the second-level
cache; the product is what limits it.

Positions ascend along T and S, so a query sees one contiguous range of keys: masks compare key numbers with two bounds
per query, and blocks outside every bound are not visited. On a matrix unit one block of columns is softened while the
scores of the next are multiplied, and the next keys and values are packed while Vᵀ is.
"""

from __future__ import annotations

import numpy as np

from accel.cpu.attention.blocks import LISTED, first_keys, pack_queries, places, plan_values, take_keys, weighted
from accel.cpu.attention.hidden_values import spoil
from accel.cpu.attention.reads import find, group_of, read_at
from accel.cpu.attention.softmax import (
    add_sums,
    at_edge,
    bound_columns,
    cap_scores,
    final_sums,
    forget,
    hide,
    raise_peaks,
)
from accel.cpu.attention.sums import SETTLE, collect, settle
from accel.cpu.linear.rows import copy_row, padded
from accel.cpu.linear.unit import (
    HIGH,
    KEYS,
    WIDTH,
    fill_step,
    left_size,
    multiply_softening,
    multiply_turning,
    nothing_planned,
    ready_across,
    right_size,
    roundings,
    soften,
    vectors_of,
)
from accel.cpu.runtime.kernels import kernel
from accel.cpu.simd import (
    LANES,
    carray,
    close_tiles,
    fetch_add,
    floats_at,
    njit,
    open_tiles,
    real,
    splat,
    store,
    transpose,
    words_at,
)


@kernel
def attend(task, worker, table, reads, memory, size):
    """The work of `attention` by blocks: see above for how it tiles."""
    open_tiles()
    while True:
        n, item = find(table, reads, fetch_add(task, 1))
        if n == reads:
            close_tiles()
            return
        one = read_at(table, n)
        part, kv = item % one.parts, item // one.parts % one.kv_heads
        block = one.blocks - 1 - item // (one.parts * one.kv_heads)  # the last see most: first, so that all end alike
        first_token = block * one.block
        here = min(one.block, one.tokens - first_token)
        at = places(memory + size * worker, one.block * group_of(one), one.dim)
        _attend_block(one, kv, part, first_token, here, at)


@njit
def _attend_block(one, kv, part, first_token, here, at):
    """An item: the tokens first_token, …, `here` of them, of one group, to a range of keys."""
    group, dim, k_kind, v_kind, v_form = group_of(one), one.dim, one.k_kind, one.v_kind, weighted(one.v_kind)
    high = padded(padded(dim, LANES), HIGH)
    columns, last_token = here * group, first_token + here - 1
    seen = carray(words_at(one.seen + kv * one.seen_head), (one.tokens, 2))
    picked = one.chosen + 8 * kv * one.keys if one.chosen else 0
    keys, values = one.k + kv * one.k_head, one.v + kv * one.v_head
    source = one.q + kv * group * one.q_head + first_token * one.q_row
    pack_queries(
        source, one.q_head, one.q_row, one.q_kind, group, here, dim, at.queries, real(one.scale), k_kind, at.lines,
        at.temporary,
    )  # fmt: skip
    begin = max(part * one.span, seen[first_token, 0])
    end = min((part + 1) * one.span, seen[last_token, 1])
    between = SETTLE // roundings(v_form)  # blocks, after which sums are moved to the totals
    long = end - begin > between * KEYS
    rows_out = (3 * high if long else high) if one.v else 0
    for c in range(0, columns, WIDTH):
        forget(at.state + 16 * c)
        for i in range(0, rows_out * WIDTH, LANES):
            store(_sums_of(at, c, high) + 4 * i, splat(np.float32(0.0)))
    nothing_planned(at.plan)
    nothing_planned(at.value_plan)
    turn, spoiled, together = 0, 0, one.v != 0 and k_kind == v_kind
    first_keys(at, keys, one.k_row, k_kind, dim, begin, end, picked)
    if one.v:
        spoiled = plan_values(
            at, values, one.v_row, v_kind, dim, begin, end, picked, seen, first_token, last_token, turn
        )
    for start in range(begin, end, KEYS):
        count = min(KEYS, end - start)
        packed_keys = take_keys(at, keys, one.k_row, k_kind, dim, start, end, picked, turn)
        packed_values = at.left_values + turn * 4 * left_size(dim, KEYS)
        if one.v:
            ready_across(at.value_plan, at.value_lines + turn * LISTED, v_form, dim, count, packed_values, at.temporary)
            nothing_planned(at.value_plan)
            if spoiled:
                spoil(
                    values, one.v_row, v_kind, dim, start, count, picked, seen, first_token, here, columns, at.out,
                    high, at.turned,
                )  # fmt: skip
            spoiled = plan_values(
                at, values, one.v_row, v_kind, dim, start + KEYS, end, picked, seen, first_token, last_token, 1 - turn
            )
        turn = 1 - turn
        edge = at_edge(seen, first_token, last_token, start, count)
        for c in range(0, columns + WIDTH, WIDTH):  # a block of columns is softened after the next one's scores
            before, done, place = c - WIDTH, 0, 4 * padded(KEYS, HIGH) * WIDTH
            fresh_scores, old_scores = at.scores + c // WIDTH % 2 * place, at.scores + (c // WIDTH + 1) % 2 * place
            state, old_state = at.state + 16 * c, at.state + 16 * before
            if c < columns:
                vectors, right = vectors_of(columns - c), at.queries + 4 * c // WIDTH * right_size(dim)
                done = multiply_softening(
                    k_kind, vectors, count, dim, packed_keys, right, fresh_scores, at.plan, together, c > 0, count,
                    old_scores, at.weights, old_state,
                )  # fmt: skip
                cap_scores(count, vectors * LANES, fresh_scores, 4 * WIDTH, real(one.cap))
                if edge:
                    some = min(WIDTH, columns - c)
                    bound_columns(seen, c, some, here, first_token, start, at.ends)
                    hide(vectors, count, fresh_scores, at.ends)
                fill_step(vectors, count, fresh_scores)
                raise_peaks(vectors, count, fresh_scores, state, _sums_of(at, c, high), rows_out)
            if c:
                vectors = vectors_of(columns - before)
                weights = soften(v_form, done, vectors, count, old_scores, at.weights, old_state)
                add_sums(vectors, old_state)
                if one.v:
                    multiply_turning(
                        v_form, vectors, dim, count, packed_values, weights, _sums_of(at, before, high), 4 * WIDTH,
                        at.value_plan, at.plan, together, at.temporary,
                    )  # fmt: skip
        if long and one.v and ((start - begin) // KEYS + 1) % between == 0:
            for c in range(0, columns, WIDTH):
                settle(_sums_of(at, c, high), high * WIDTH)
    for c in range(0, columns, WIDTH):
        final_sums(at.state + 16 * c)
        if long and one.v:
            collect(_sums_of(at, c, high), high * WIDTH)
    _write(one, kv, part, first_token, here, at)


@njit(forceinline=True)
def _sums_of(at, c, high):
    """Where the output of the block of columns from c on stands."""
    return at.out + 12 * c * high


@njit
def _write(one, kv, part, first_token, here, at):
    """What an item gives: its columns' peaks, sums and outputs, the latter turned, and normalised where its range of
    keys is the only one."""
    group, dim, wide_dim = group_of(one), one.dim, padded(one.dim, LANES)
    high, columns = padded(wide_dim, HIGH), here * group
    summary = carray(floats_at(one.stats), (one.parts, one.heads, one.tokens, 2))
    stand = carray(words_at(at.lines), LANES)
    for c in range(0, columns, LANES):
        block, lane = c // WIDTH * WIDTH, c % WIDTH
        state = carray(floats_at(at.state + 16 * block), (4, WIDTH))
        if one.v:
            for d in range(0, wide_dim, LANES):
                for i in range(LANES):
                    stand[i] = _sums_of(at, block, high) + 4 * WIDTH * (d + i)
                transpose(at.lines, 4 * lane, at.turned + 4 * d, 4 * wide_dim)
        for i in range(min(LANES, columns - c)):
            head, token = kv * group + (c + i) // here, first_token + (c + i) % here
            peak, mass = state[0, lane + i], state[2, lane + i]
            summary[part, head, token, 0] = peak
            summary[part, head, token, 1] = mass
            if one.v and one.partial:
                to = one.partial + 4 * ((part * one.heads + head) * one.tokens + token) * dim
                copy_row(at.turned + 4 * i * wide_dim, to, dim, np.float32(1.0))
            elif one.v:
                to = one.out + head * one.out_head + token * one.out_row
                factor = np.float32(1.0) / mass if mass != 0.0 else np.float32(0.0)
                copy_row(at.turned + 4 * i * wide_dim, to, dim, factor)
