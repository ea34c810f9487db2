"""Attention of a few query columns, as in decoding: key by key where the keys are, since the memory is the limit."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from accel.cpu.attention.hidden_values import all_numbers
from accel.cpu.attention.reads import find, group_of, read_at
from accel.cpu.attention.softmax import NOTHING, SLACK, cap_scores
from accel.cpu.attention.sums import SETTLE, collect, settle
from accel.cpu.linear.few_tokens import STREAMS, dot, dots
from accel.cpu.linear.rows import ahead, copy_row, list_rows, padded, power, widen
from accel.cpu.linear.unit import KEYS
from accel.cpu.runtime.kernels import kernel
from accel.cpu.simd import (
    BROAD,
    F32,
    LANES,
    VECTORS,
    broad_tile,
    carray,
    doubles_at,
    exp2,
    fetch_add,
    floats_at,
    highest,
    larger,
    load,
    njit,
    only,
    real,
    score_tile,
    splat,
    store,
    tile_rows,
    total,
    words_at,
)

FEW = 8  # query columns up to which keys are read where they are: decoding
SCORE_ROW = 4 * padded(KEYS, LANES)  # bytes from column to column of scores


class FewPlaces(NamedTuple):
    """Where each part of a worker's memory begins, for a few columns."""

    queries: int  # (FEW, wide_dim)
    scores: int  # (FEW, KEYS)
    out: int  # (3, FEW, wide_dim): sums, totals, and what those have lost
    wide: int  # (KEYS, wide_dim)
    lines: int  # addresses of rows
    coming: int  # of what is read after them
    sums: int  # of weights (FEW,), float64
    peaks: int  # (FEW,)
    end: int


@njit
def few_places(base, dim):
    """The places from an address on; from 0 on the last is how many bytes there are."""
    wide_dim = padded(dim, LANES)
    queries = base
    scores = queries + 4 * FEW * wide_dim
    out = scores + FEW * SCORE_ROW
    wide = out + 12 * FEW * wide_dim
    lines = wide + 4 * KEYS * wide_dim
    coming = lines + 8 * KEYS
    sums = coming + 8 * KEYS
    peaks = sums + 8 * FEW
    return FewPlaces(queries, scores, out, wide, lines, coming, sums, peaks, padded(peaks + 4 * FEW, 64))


@njit
def widen_few(one, kv, at):
    """The queries of a group, widened and scaled: (G·T, wide_dim), head by head."""
    group, wide_dim = group_of(one), padded(one.dim, LANES)
    for r in range(group * one.tokens):
        row = one.q + (kv * group + r // one.tokens) * one.q_head + r % one.tokens * one.q_row
        widen(row, one.q_kind, one.dim, at.queries + 4 * r * wide_dim, real(one.scale))


@njit
def score_few(at, rows, kind, count, dim, coming_count):
    """Scores of a few rows (rows, KEYS) and the keys that stand at `at.lines`, STREAMS keys at a time: packing them
    would cost more. Meanwhile the rows whose addresses stand at `at.coming` are fetched."""
    query, stand = 4 * padded(dim, LANES), carray(words_at(at.lines), KEYS)
    following, done, whole = carray(words_at(at.coming), KEYS), 0, count // STREAMS * STREAMS
    for i in range(0, whole, STREAMS):
        while done < coming_count * (i + STREAMS) // count:
            ahead(following[done], kind, dim)
            done += 1
        r = 0
        while rows - r >= 3 and dim % LANES == 0:
            for n in range(i, i + STREAMS, 4):
                to = at.scores + r * SCORE_ROW + 4 * n
                score_tile(kind, at.lines + 8 * n, at.queries + r * query, query, to, SCORE_ROW, dim // LANES)
            r += 3
        for n in range(r, rows):
            dots(at.lines + 8 * i, kind, at.queries + n * query, dim, at.scores + n * SCORE_ROW + 4 * i, 4)
    for i in range(done, coming_count):
        ahead(following[i], kind, dim)
    out = carray(floats_at(at.scores), (FEW, SCORE_ROW // 4))
    for i in range(whole, count):
        for r in range(rows):
            out[r, i] = dot(stand[i], kind, at.queries + r * query, dim)


@njit
def _soften(row, low, last, count, dim, r, at):
    """Scores of one column in place to weights relative to its peak, with what it does not see left out; its sum of
    weights grows, and where the peak must be raised, all that was summed is rescaled."""
    sums, peaks = carray(doubles_at(at.sums), FEW), carray(floats_at(at.peaks), FEW)
    top = splat(np.float32(NOTHING))
    for i in range(0, count, LANES):
        x = only(load(row + 4 * i), low - i, last - i)
        store(row + 4 * i, x)
        top = larger(top, x)
    peak = highest(top)
    if peak - peaks[r] > SLACK:  # often raised, sums would lose a little each time
        factor = power(peaks[r] - peak)
        sums[r] *= factor
        for i in range(3):
            line = at.out + 4 * (i * FEW + r) * padded(dim, LANES)
            copy_row(line, line, dim, factor)
        peaks[r] = peak
    mass, peaked = splat(np.float32(0.0)), splat(peaks[r])
    for i in range(0, count, LANES):
        x = exp2(load(row + 4 * i) - peaked)
        store(row + 4 * i, x)
        mass = mass + x
    sums[r] += total(mass)


@njit
def _spoil(wide, key, dim, seen, tokens, columns, out):
    """Take NaN and infinity out of a widened row of values, and add them to the sums of the columns that see it."""
    row, wide_dim = carray(floats_at(wide), dim), padded(dim, LANES)
    for d in range(dim):
        if not abs(row[d]) < np.inf:
            for r in range(columns):
                if seen[r % tokens, 0] <= key < seen[r % tokens, 1]:
                    carray(floats_at(out + 4 * r * wide_dim), dim)[d] += row[d]
            row[d] = 0.0


@njit
def _add_values(one, kv, start, count, columns, seen, picked, at):
    """Add a block of values, by their weights, to the columns' sums."""
    kind, dim, wide_dim = one.v_kind, one.dim, padded(one.dim, LANES)
    base, stand = one.v + kv * one.v_head, carray(words_at(at.lines), KEYS)
    first_common, last_common = seen[one.tokens - 1, 0] - start, seen[0, 1] - start  # the keys that all tokens see
    list_rows(at.lines, base, one.v_row, start, count, picked)
    spoiled = False
    for i in range(count):
        if i < first_common or i >= last_common:
            spoiled |= not all_numbers(stand[i], kind, dim)
    values, step = base + start * one.v_row, one.v_row
    if picked or kind != F32 or dim != wide_dim or spoiled:
        for i in range(count):
            line = at.wide + 4 * i * wide_dim
            widen(stand[i], kind, dim, line, 1.0)
            if spoiled and (i < first_common or i >= last_common):
                _spoil(line, start + i, dim, seen, one.tokens, columns, at.out)
        values, step = at.wide, 4 * wide_dim
    broad = wide_dim // (BROAD * LANES) * BROAD * LANES
    for d in range(0, broad, BROAD * LANES):
        for r in range(columns):
            to = at.out + 4 * (r * wide_dim + d)
            broad_tile(0, at.scores + r * SCORE_ROW, 0, 4, values + 4 * d, step, to, 0, count)
    for d in range(broad, wide_dim, VECTORS * LANES):
        vectors, to = min(VECTORS, (wide_dim - d) // LANES), at.out + 4 * d
        tile_rows(vectors, columns, 0, at.scores, SCORE_ROW, 4, values + 4 * d, step, to, 4 * wide_dim, count)


@njit
def _attend_few(one, kv, part, at):
    """An item: the columns of one group, to a range of keys."""
    group, tokens, dim, wide_dim = group_of(one), one.tokens, one.dim, padded(one.dim, LANES)
    columns = group * tokens
    seen = carray(words_at(one.seen + kv * one.seen_head), (tokens, 2))
    summary = carray(floats_at(one.stats), (one.parts, one.heads, tokens, 2))
    sums, peaks = carray(doubles_at(at.sums), FEW), carray(floats_at(at.peaks), FEW)
    picked = one.chosen + 8 * kv * one.keys if one.chosen else 0
    widen_few(one, kv, at)
    sums[:] = 0.0
    peaks[:] = NOTHING
    carray(floats_at(at.out), 3 * FEW * wide_dim)[:] = 0.0
    begin, end = max(part * one.span, seen[0, 0]), min((part + 1) * one.span, seen[tokens - 1, 1])
    for start in range(begin, end, KEYS):
        count, fetched = min(KEYS, end - start), 0
        list_rows(at.lines, one.k + kv * one.k_head, one.k_row, start, count, picked)
        if one.v:
            list_rows(at.coming, one.v + kv * one.v_head, one.v_row, start, count, picked)
            fetched = count
        score_few(at, columns, one.k_kind, count, dim, fetched)
        cap_scores(columns, count, at.scores, SCORE_ROW, real(one.cap))
        for r in range(columns):
            low, last = seen[r % tokens, 0] - start, min(seen[r % tokens, 1] - start, count)
            _soften(at.scores + r * SCORE_ROW, low, last, count, dim, r, at)
        if one.v:
            _add_values(one, kv, start, count, columns, seen, picked, at)
            if ((start - begin) // KEYS + 1) % SETTLE == 0:
                settle(at.out, FEW * wide_dim)
    if end - begin > SETTLE * KEYS:
        collect(at.out, FEW * wide_dim)
    for r in range(columns):
        head, token, line = kv * group + r // tokens, r % tokens, at.out + 4 * r * wide_dim
        summary[part, head, token, 0] = peaks[r]
        summary[part, head, token, 1] = sums[r]
        if one.v and one.partial:
            copy_row(line, one.partial + 4 * ((part * one.heads + head) * tokens + token) * dim, dim, np.float32(1.0))
        elif one.v:
            factor = np.float32(1.0 / sums[r]) if sums[r] != 0.0 else np.float32(0.0)
            copy_row(line, one.out + head * one.out_head + token * one.out_row, dim, factor)


@kernel
def attend_few(task, worker, table, reads, memory, size):
    """The work of `attention` for reads of at most FEW query columns."""
    while True:
        n, item = find(table, reads, fetch_add(task, 1))
        if n == reads:
            return
        one = read_at(table, n)
        _attend_few(one, item // one.parts, item % one.parts, few_places(memory + size * worker, one.dim))
