"""The attention that every key receives, without ever holding the weights.

    mass_j = Σ_t 2^(x_tj - peak_t) / sum_t

Each query's peak and sum come first: attention has found them, or where the mass alone is asked for, a pass over the
blocks of `attention` without values. Another pass computes the scores again and adds their weights up along the
columns. Twice the score products are what it costs to hold nothing of size T × S. An item of that pass is a KV head and
a range of keys, which no other item writes to.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from accel.cpu.attention.blocks import Places, first_keys, pack_queries, places, take_keys
from accel.cpu.attention.by_block import attend
from accel.cpu.attention.by_key import FEW, SCORE_ROW, attend_few, few_places, score_few, widen_few
from accel.cpu.attention.call import attend_to, block_size, merge, side_by_side
from accel.cpu.attention.layout import Laid, lay_out
from accel.cpu.attention.reads import WORDS, group_of, read_at
from accel.cpu.attention.softmax import at_edge, bound_columns, cap_scores, hide
from accel.cpu.linear.rows import list_rows, padded, power
from accel.cpu.linear.unit import KEYS, WIDTH, multiply_packing, right_size, vectors_of
from accel.cpu.runtime.arrays import address
from accel.cpu.runtime.calls import Call, at_once
from accel.cpu.runtime.kernels import kernel
from accel.cpu.runtime.memory import scratch
from accel.cpu.runtime.team import THREADS
from accel.cpu.simd import (
    LANES,
    carray,
    close_tiles,
    exp2,
    fetch_add,
    floats_at,
    load,
    njit,
    open_tiles,
    real,
    splat,
    store,
    total,
    where_seen,
    words_at,
)
from reference import contract

ROWS_RATED = 256  # queries per item


def attention_mass(
    q: np.ndarray,
    k: np.ndarray,
    q_positions: np.ndarray | int,
    k_positions: np.ndarray,
    *,
    scale: float | None = None,
    window: int | None = None,
    cap: float | None = None,
) -> np.ndarray:
    """Attention that each key receives, Σ_t a_tj, from shapes as in `attention` -> (H, S) float32."""
    contract.attention_mass(q, k, q_positions, k_positions, scale, window, cap)
    (one,) = lay_out([(q, k, q_positions, k_positions)], scale, window, cap)
    stats, memory = np.empty((one.parts, one.heads, one.tokens, 2), np.float32), scratch.take(mass_floats(one))
    if one.items:
        find_peaks(at_once, one, stats, np.empty((1, WORDS), np.int64), memory)
    scratch.give(memory)
    return _mass_from(one, stats)


def attention_and_mass_each(
    reads: Sequence[tuple[Any, Any, Any, Any, Any]],
    *,
    scale: float | None = None,
    window: int | None = None,
    cap: float | None = None,
) -> list[tuple[np.ndarray, np.ndarray]]:
    """`attention_each`, and what each key receives of it from the peaks and sums that it found: (q, k, v, q_positions,
    k_positions) each -> (T, H·D) and (H, S) each."""
    attended = attend_to([[read] for read in reads], scale, window, cap)
    mass = [_mass_from(one, stats) for one, (stats,) in zip(attended.laid, attended.stats, strict=True)]
    return list(zip(map(side_by_side, merge(attended)), mass, strict=True))


def _mass_from(one: Laid, stats: np.ndarray) -> np.ndarray:
    """What each key receives (H, S), from the queries' peaks and sums (P, H, T, 2)."""
    mass = np.zeros((one.heads, one.keys), np.float32)
    if mass.size and one.items:
        memory = scratch.take(mass_floats(one))
        rates, table = np.empty(stats.shape[1:], np.float32), np.empty((1, WORDS), np.int64)
        add_mass(at_once, one, stats, rates, table, mass, memory)
        scratch.give(memory)
    return mass


def find_peaks(call: Call, one: Laid, stats: np.ndarray, table: np.ndarray, memory: np.ndarray) -> None:
    """stats (P, H, T, 2) = peaks and sums of every range of keys. Works in `table` (1, WORDS)."""
    table[:] = one.words(None, None, None, stats)
    size = few_places(0, one.dim).end if one.few else block_size(one)
    call(attend_few if one.few else attend, address(table), 1, address(memory), size)


def add_mass(
    call: Call,
    one: Laid,
    stats: np.ndarray,
    rates: np.ndarray,
    table: np.ndarray,
    mass: np.ndarray,
    memory: np.ndarray,
) -> None:
    """mass (H, S) = what each key receives, from the queries' peaks and sums of every range of keys, (P, H, T, 2).

    Works in `rates` (H, T, 2) and `table` (1, WORDS). Afterwards the read is shared out as suits this."""
    call(_rate, address(stats), one.parts, one.heads * one.tokens, address(rates))
    one.parts = max(1, min(-(-4 * THREADS // one.kv), -(-one.keys // (2 * KEYS))))
    table[:] = one.words(None, None, None, rates)
    size = mass_floats(one) // THREADS * 4
    call(_mass_few if one.few else _mass, address(table), address(mass), address(memory), size)


def mass_floats(one: Laid) -> int:
    """Memory that all workers need, for both passes."""
    size = few_places(0, one.dim).end if one.few else mass_places(0, one.block, one.group, one.dim).end
    return size // 4 * THREADS


@kernel
def _rate(task, worker, stats, parts, queries, rates):
    """Of every query the exponent that its weights are relative to, and one over their sum, from those of every range
    of keys (P, H·T, 2) -> (H·T, 2)."""
    summary, found = carray(floats_at(stats), (parts, queries, 2)), carray(floats_at(rates), (queries, 2))
    while True:
        first = fetch_add(task, 1) * ROWS_RATED
        if first >= queries:
            return
        for r in range(first, min(first + ROWS_RATED, queries)):
            peak, mass = summary[0, r, 0], 0.0
            for p in range(1, parts):
                if not summary[p, r, 0] <= peak:  # NaN stays
                    peak = summary[p, r, 0] if peak == peak else peak
            for p in range(parts):
                apart = summary[p, r, 0] - peak
                mass += np.float64(summary[p, r, 1]) * np.float64(power(apart) if apart == apart else apart)
            found[r, 0] = peak
            found[r, 1] = 1.0 / mass if mass != 0.0 else 0.0  # a query that sees nothing gives nothing


class MassPlaces(NamedTuple):
    """Where each part of a worker's memory begins, for the second pass."""

    blocks: Places
    sums: int  # of a block's keys (KEYS, LANES)
    of_columns: int  # peaks and rates of a block of columns (2, WIDTH)
    end: int


@njit
def mass_places(base, block, group, dim):
    """The places from an address on; from 0 on the last is how many bytes there are. Columns come head by head."""
    blocks = places(base, group * padded(block, WIDTH), dim)
    sums = blocks.end
    of_columns = sums + 4 * KEYS * LANES
    return MassPlaces(blocks, sums, of_columns, padded(of_columns + 8 * WIDTH, 64))


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


@njit
def _begin(one, kv, part, mass):
    """Nothing received yet, by a range of keys."""
    received, group = carray(floats_at(mass), (one.heads, one.keys)), group_of(one)
    received[kv * group : (kv + 1) * group, part * one.span : (part + 1) * one.span] = 0.0


@kernel
def _mass(task, worker, table, mass, memory, size):
    one = read_at(table, 0)
    at = mass_places(memory + size * worker, one.block, group_of(one), one.dim)
    open_tiles()
    while True:
        item = fetch_add(task, 1)
        if item >= one.kv_heads * one.parts:
            close_tiles()
            return
        _begin(one, item // one.parts, item % one.parts, mass)
        for first_token in range(0, one.tokens, one.block):
            _mass_of_block(one, item // one.parts, item % one.parts, first_token, mass, at)


@njit
def _mass_of_block(one, kv, part, first_token, mass, places):
    """What a range of keys receives from a block of tokens."""
    at, group, dim, kind, each = places.blocks, group_of(one), one.dim, one.k_kind, padded(one.block, WIDTH)
    seen = carray(words_at(one.seen + kv * one.seen_head), (one.tokens, 2))
    received = carray(floats_at(mass), (one.heads, one.keys))
    picked = one.chosen + 8 * kv * one.keys if one.chosen else 0
    here, keys = min(one.block, one.tokens - first_token), one.k + kv * one.k_head
    last_token, turn = first_token + here - 1, 0
    for g in range(group):
        source = one.q + (kv * group + g) * one.q_head + first_token * one.q_row
        to = at.queries + 4 * g * each // WIDTH * right_size(dim)
        pack_queries(
            source, one.q_head, one.q_row, one.q_kind, 1, here, dim, to, real(one.scale), kind, at.lines, at.temporary
        )
    begin, end = max(part * one.span, seen[first_token, 0]), min((part + 1) * one.span, seen[last_token, 1])
    first_keys(at, keys, one.k_row, kind, dim, begin, end, picked)
    for start in range(begin, end, KEYS):
        count = min(KEYS, end - start)
        packed = take_keys(at, keys, one.k_row, kind, dim, start, end, picked, turn)
        turn, edge = 1 - turn, at_edge(seen, first_token, last_token, start, count)
        for g in range(group):
            for i in range(0, count * LANES, LANES):
                store(places.sums + 4 * i, splat(np.float32(0.0)))
            for c in range(0, here, WIDTH):
                columns, vectors = min(WIDTH, here - c), vectors_of(here - c)
                right = at.queries + 4 * (g * each + c) // WIDTH * right_size(dim)
                multiply_packing(kind, 1, vectors, count, dim, packed, 0, right, at.scores, 4 * WIDTH, at.plan)
                cap_scores(count, vectors * LANES, at.scores, 4 * WIDTH, real(one.cap))
                if edge:
                    bound_columns(seen, c, columns, here, first_token, start, at.ends)
                    hide(vectors, count, at.scores, at.ends)
                _list_columns(one, kv * group + g, first_token + c, columns, vectors, places.of_columns)
                add_weights(vectors, count, at.scores, places.of_columns, places.sums, edge)
            for i in range(count):
                received[kv * group + g, start + i] += total(load(places.sums + 4 * LANES * i))


@njit
def _list_columns(one, head, first_token, columns, vectors, of_columns):
    """Peaks and rates of a block of columns; those beyond the last repeat it, and add nothing."""
    summary = carray(floats_at(one.stats), (one.heads, one.tokens, 2))
    listed = carray(floats_at(of_columns), (2, WIDTH))
    for i in range(vectors * LANES):
        of_token = summary[head, first_token + min(i, columns - 1)]
        listed[0, i], listed[1, i] = of_token[0], of_token[1] if i < columns else np.float32(0.0)


@kernel
def _mass_few(task, worker, table, mass, memory, size):
    one = read_at(table, 0)
    at = few_places(memory + size * worker, one.dim)
    while True:
        item = fetch_add(task, 1)
        if item >= one.kv_heads * one.parts:
            return
        _begin(one, item // one.parts, item % one.parts, mass)
        _mass_of_few(one, item // one.parts, item % one.parts, mass, at)


@njit
def _mass_of_few(one, kv, part, mass, at):
    """What a range of keys receives from a few columns."""
    group, tokens, dim = group_of(one), one.tokens, one.dim
    seen = carray(words_at(one.seen + kv * one.seen_head), (tokens, 2))
    summary = carray(floats_at(one.stats), (one.heads, tokens, 2))
    received = carray(floats_at(mass), (one.heads, one.keys))
    found = carray(floats_at(at.scores), (FEW, SCORE_ROW // 4))
    picked, keys = one.chosen + 8 * kv * one.keys if one.chosen else 0, one.k + kv * one.k_head
    widen_few(one, kv, at)
    begin, end = max(part * one.span, seen[0, 0]), min((part + 1) * one.span, seen[tokens - 1, 1])
    for start in range(begin, end, KEYS):
        count, after = min(KEYS, end - start), max(0, min(KEYS, end - start - KEYS))
        list_rows(at.lines, keys, one.k_row, start, count, picked)
        list_rows(at.coming, keys, one.k_row, start + KEYS, after, picked)
        score_few(at, group * tokens, one.k_kind, count, dim, after)
        cap_scores(group * tokens, count, at.scores, SCORE_ROW, real(one.cap))
        for r in range(group * tokens):
            row, token, head = at.scores + r * SCORE_ROW, r % tokens, kv * group + r // tokens
            low, last = max(seen[token, 0] - start, 0), min(seen[token, 1] - start, count)
            peak, rate = splat(summary[head, token, 0]), splat(summary[head, token, 1])
            for i in range(0, count, LANES):
                store(row + 4 * i, exp2(load(row + 4 * i) - peak) * rate)
            for i in range(low, last):  # what stands elsewhere is hidden
                received[head, start + i] += found[r, i]
