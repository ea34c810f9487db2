"""Attention of a few query columns, as in decoding: key by key where the keys are, since the memory is the limit."""

from __future__ import annotations

import numpy as np
from numba import carray, njit
from numba.extending import register_jitable

from accel.cpu.attention.by_block import KEYS, NOTHING, SLACK
from accel.cpu.attention.hidden_values import all_numbers
from accel.cpu.attention.sums import collect, settle
from accel.cpu.linear.rows import ahead, copy_row, list_rows, padded, power, product, widen
from accel.cpu.runtime.kernels import kernel
from accel.cpu.simd import (
    F32,
    LANES,
    VECTORS,
    doubles_at,
    exp2,
    fetch_add,
    floats_at,
    highest,
    larger,
    load,
    only,
    real,
    splat,
    store,
    tile_rows,
    total,
    words_at,
)

FEW = 8  # query columns up to which keys are read where they are: decoding
SETTLE = 64  # blocks, after which sums are moved to the totals


@register_jitable
def few_places(dim):
    """Where each part of a worker's memory begins, in floats, for a few columns."""
    wide_dim = padded(dim, LANES)
    queries = 0  # (FEW, wide_dim)
    scores = queries + FEW * wide_dim  # (FEW, KEYS)
    out = scores + FEW * padded(KEYS, LANES)  # (3, FEW, wide_dim): sums, totals, and what those have lost
    wide = out + 3 * FEW * wide_dim  # (KEYS, wide_dim)
    lines = wide + KEYS * wide_dim  # addresses
    coming = lines + 2 * KEYS  # addresses of what is read after them
    sums = coming + 2 * KEYS  # of weights (FEW,), float64
    peaks = sums + 2 * FEW  # (FEW,)
    return queries, scores, out, wide, lines, coming, sums, peaks, padded(peaks + FEW, 16)


@njit
def score_few(queries, rows, lines, kind, count, dim, wide, scores, coming, coming_count):
    """Scores of a few rows (rows, KEYS) by a product per row and key: packing the keys would cost more. Meanwhile the
    rows whose addresses stand at `coming` are fetched."""
    wide_dim, stand = padded(dim, LANES), carray(words_at(lines), KEYS)
    out = carray(floats_at(scores), (FEW, padded(KEYS, LANES)))
    following, done = carray(words_at(coming), KEYS), 0
    for i in range(count):
        while done < coming_count * (i + 1) // count:
            ahead(following[done], kind, dim)
            done += 1
        key = stand[i]
        if kind != F32 or dim != wide_dim:
            widen(key, kind, dim, wide, 1.0)
            key = wide
        for r in range(rows):
            out[r, i] = product(queries + 4 * r * wide_dim, key, dim)


@njit
def spoil_few(wide, key, dim, seen, tokens, columns, out):
    """Take NaN and infinity out of a widened row of values, and add them to the sums of the columns that see it."""
    row, wide_dim = carray(floats_at(wide), dim), padded(dim, LANES)
    for d in range(dim):
        if not abs(row[d]) < np.inf:
            for r in range(columns):
                if seen[r % tokens, 0] <= key < seen[r % tokens, 1]:
                    carray(floats_at(out + 4 * r * wide_dim), dim)[d] += row[d]
            row[d] = 0.0


@kernel
def attend_few(
    task, worker, q, q_head, q_row, q_kind, k, k_head, k_row, k_kind, v, v_head, v_row, v_kind, chosen, seen,
    target, target_part, target_head, target_row, final, stats, memory, size, heads, kv_heads, tokens, keys, dim,
    block, blocks, parts, span, scale,
):  # fmt: skip
    """The work of `attention` for at most FEW query columns."""
    group, wide_dim, score_row = heads // kv_heads, padded(dim, LANES), 4 * padded(KEYS, LANES)
    columns = group * tokens
    limits = carray(words_at(seen), (kv_heads, tokens, 2))
    summary = carray(floats_at(stats), (parts, heads, tokens, 2))
    mine = memory + 4 * size * worker
    p = few_places(dim)
    queries, scores, out, wide, lines, coming = (
        mine + 4 * p[0], mine + 4 * p[1], mine + 4 * p[2], mine + 4 * p[3], mine + 4 * p[4], mine + 4 * p[5],
    )  # fmt: skip
    stand = carray(words_at(lines), KEYS)
    sums, peaks = carray(doubles_at(mine + 4 * p[6]), FEW), carray(floats_at(mine + 4 * p[7]), FEW)
    while True:
        item = fetch_add(task, 1)
        if item >= kv_heads * parts:
            return
        part, kv = item % parts, item // parts
        picked = chosen + 8 * kv * keys if chosen else 0
        for r in range(columns):
            at = q + (kv * group + r // tokens) * q_head + r % tokens * q_row
            widen(at, q_kind, dim, queries + 4 * r * wide_dim, real(scale))
            peaks[r], sums[r] = NOTHING, 0.0
        carray(floats_at(out), 3 * FEW * wide_dim)[:] = 0.0
        begin = max(part * span, limits[kv, 0, 0])
        end = min((part + 1) * span, limits[kv, tokens - 1, 1])
        first_common, last_common = limits[kv, tokens - 1, 0], limits[kv, 0, 1]  # the keys that all tokens see
        for start in range(begin, end, KEYS):
            count = min(KEYS, end - start)
            list_rows(lines, k + kv * k_head, k_row, start, count, picked)
            fetched = 0
            if v:
                list_rows(coming, v + kv * v_head, v_row, start, count, picked)
                fetched = count
            score_few(queries, columns, lines, k_kind, count, dim, wide, scores, coming, fetched)
            for r in range(columns):
                row, token = scores + r * score_row, r % tokens
                low, last = limits[kv, token, 0] - start, min(limits[kv, token, 1] - start, count)
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
                        line = out + 4 * (i * FEW + r) * wide_dim
                        copy_row(line, line, dim, factor)
                    peaks[r] = peak
                mass = splat(np.float32(0.0))
                for i in range(0, count, LANES):
                    x = exp2(load(row + 4 * i) - splat(peaks[r]))
                    store(row + 4 * i, x)
                    mass = mass + x
                sums[r] += total(mass)
            if v:
                at, step = v + kv * v_head + start * v_row, v_row
                list_rows(lines, v + kv * v_head, v_row, start, count, picked)
                spoiled = False
                for i in range(count):
                    if start + i < first_common or start + i >= last_common:
                        spoiled |= not all_numbers(stand[i], v_kind, dim)
                if chosen or v_kind != F32 or dim != wide_dim or spoiled:
                    for i in range(count):
                        widen(stand[i], v_kind, dim, wide + 4 * i * wide_dim, 1.0)
                        if spoiled and (start + i < first_common or start + i >= last_common):
                            spoil_few(wide + 4 * i * wide_dim, start + i, dim, limits[kv], tokens, columns, out)
                    at, step = wide, 4 * wide_dim
                for d in range(0, wide_dim, VECTORS * LANES):
                    vectors, to = min(VECTORS, (wide_dim - d) // LANES), out + 4 * d
                    tile_rows(vectors, columns, 0, scores, score_row, 4, at + 4 * d, step, to, 4 * wide_dim, count)
                if ((start - begin) // KEYS + 1) % SETTLE == 0:
                    settle(out, FEW * wide_dim)
        if end - begin > SETTLE * KEYS:
            collect(out, FEW * wide_dim)
        for r in range(columns):
            head, token = kv * group + r // tokens, r % tokens
            summary[part, head, token, 0] = peaks[r]
            summary[part, head, token, 1] = sums[r]
            if v:
                factor = np.float32(1.0)
                if final:
                    factor = np.float32(1.0 / sums[r]) if sums[r] != 0.0 else np.float32(0.0)
                to = target + part * target_part + head * target_head + token * target_row
                copy_row(out + 4 * r * wide_dim, to, dim, factor)
