"""CAOTE in two passes over the values: the heads' outputs, then every value's distance to them.

    c_j = α_j / (1 - α_j) · ‖o - v_j‖

The first pass multiplies a block of scores, each head's largest left out, with a block of values by the register tile,
a row of ones beside them for the plain mean; the largest is added afterwards, so that nothing cancels where it holds
almost everything (reference/caote.py says why). The second pass reads the values again; both run at the memory's speed.
"""

from __future__ import annotations

import numpy as np
from numba import carray, njit

from accel.cpu.linear.inverse_norms import LARGE, SMALL
from accel.cpu.linear.rows import ahead, padded, widen
from accel.cpu.methods.keydiff import AHEAD
from accel.cpu.runtime.arrays import address, readable, rows
from accel.cpu.runtime.kernels import kernel
from accel.cpu.runtime.memory import scratch
from accel.cpu.runtime.team import THREADS
from accel.cpu.simd import (
    F32,
    LANES,
    VECTORS,
    fetch_add,
    floats_at,
    fma,
    load,
    splat,
    tile_rows,
    total,
    words_at,
)
from reference import contract
from reference.caote import GUARD
from reference.checks import require
from reference.contract import JOINS

KEYS = 128  # values per block


def caote_scores(h: np.ndarray, v: np.ndarray, *, fast: bool = False, group: str = "mean") -> np.ndarray:
    """c_j from base scores h ≥ 0 (H, S) and values v (KV, S, D) -> (KV, S) float32, higher = keep.

    `fast` puts the mean value in the place of o; `group` joins a group's heads by "mean", "max" or "rss".
    """
    sizes = contract.caote_scores(h, v, group)
    heads, kv_heads, keys, dim = sizes["H"], sizes["KV"], sizes["S"], sizes["D"]
    scores = np.empty((kv_heads, keys), np.float32)
    if keys == 0:
        return scores
    v, h = readable(v), np.ascontiguousarray(h, np.float32)
    tops = h.argmax(axis=1)  # (H,)
    parts = min(-(-8 * THREADS // kv_heads), -(-keys // KEYS))
    span = -(-keys // parts)
    weighted, summed, weight = _sums(h, v, tops, parts, span)
    centres, rates, top_scores = _centres(h, v, tops, weighted, summed, weight, fast)
    memory = scratch.take(THREADS * padded(dim, LANES))
    _distances(
        address(h), *rows(v), address(centres), address(rates), address(tops), address(top_scores), address(scores),
        address(memory), heads, kv_heads, keys, dim, parts, span, int(fast), JOINS.index(group),
    )  # fmt: skip
    scratch.give(memory)
    return scores


def _sums(
    h: np.ndarray, v: np.ndarray, tops: np.ndarray, parts: int, span: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Per head, all float64: Σ h_i v_i without its top token (H, D), Σ v_i (H, D), Σ h_i without its top token (H,)."""
    heads, (kv_heads, keys, dim) = len(h), v.shape
    group = heads // kv_heads
    high, wide_dim = group + 1, padded(dim, LANES)
    sums = np.zeros((parts, kv_heads, high, wide_dim), np.float32)
    weights = np.zeros((parts, heads), np.float32)
    negative = np.zeros(1, np.int64)
    memory = scratch.take(THREADS * KEYS * (wide_dim + high))
    _weigh(
        address(h), *rows(v), address(tops), address(sums), address(weights), address(negative), address(memory), heads,
        kv_heads, keys, dim, parts, span,
    )  # fmt: skip
    scratch.give(memory)
    require(negative[0] == 0, "h: got a negative score or NaN, wanted scores of at least 0")
    joined = sums.sum(axis=0, dtype=np.float64)[..., :dim]  # (KV, rows, D)
    summed = np.repeat(joined[:, group], group, axis=0)  # (H, D)
    return joined[:, :group].reshape(heads, dim), summed, weights.sum(axis=0, dtype=np.float64)


def _centres(
    h: np.ndarray,
    v: np.ndarray,
    tops: np.ndarray,
    weighted: np.ndarray,
    summed: np.ndarray,
    weight: np.ndarray,
    fast: bool,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """What distances are measured to (H, D), 1/Σh per head (H,), and c of each head's top token (H,), all float32."""
    heads, keys = h.shape
    every = np.arange(heads)
    v_top = v[every // (heads // len(v)), tops].astype(np.float64)  # (H, D)
    h_top = h[every, tops].astype(np.float64)
    rate = np.divide(1, weight + h_top, out=np.zeros(heads), where=weight + h_top > 0)
    alpha = h_top * rate
    if fast:
        centre = summed / keys
        top_scores = alpha / np.maximum(weight * rate, GUARD) * np.linalg.norm(centre - v_top, axis=1)
    else:
        centre = (weighted + h_top[:, None] * v_top) * rate[:, None]
        has_others = (weight > 0)[:, None]
        count = np.where(has_others, weight[:, None], max(keys - 1, 1))
        without = np.where(has_others, weighted, summed - v_top) / count  # the output once the top token is gone
        top_scores = alpha * np.linalg.norm(without - v_top, axis=1)
    centre = np.pad(centre, ((0, 0), (0, -v.shape[2] % LANES)))  # whole vectors
    return tuple(np.ascontiguousarray(x, np.float32) for x in (centre, rate, top_scores))  # type: ignore[return-value]


@kernel
def _weigh(
    task, worker, h, v, v_head, v_row, v_kind, top, sums, weights, negative, memory, heads, kv_heads, keys, dim,
    parts, span,
):  # fmt: skip
    group, wide_dim = heads // kv_heads, padded(dim, LANES)
    high = group + 1
    base, tops = carray(floats_at(h), (heads, keys)), carray(words_at(top), heads)
    mass = carray(floats_at(weights), (parts, heads))
    values = memory + 4 * worker * KEYS * (wide_dim + high)
    shares = values + 4 * KEYS * wide_dim
    block = carray(floats_at(shares), (high, KEYS))
    while True:
        item = fetch_add(task, 1)
        if item >= kv_heads * parts:
            return
        part, kv = item % parts, item // parts
        block[:] = 1.0  # the row after the group's gives the plain sum
        end = min(part * span + span, keys)
        for start in range(part * span, end, KEYS):
            count = min(KEYS, end - start)
            for g in range(group):
                head = kv * group + g
                block[g, :count] = base[head, start : start + count]
                block[g, count:] = 0.0
                if start <= tops[head] < start + count:
                    block[g, tops[head] - start] = 0.0
                least = np.float32(0.0)
                for i in range(count):
                    least = least if block[g, i] >= 0 else np.float32(-1.0)
                if least < 0:
                    fetch_add(negative, 1)
                row = splat(np.float32(0.0))
                for i in range(0, KEYS, LANES):
                    row = row + load(shares + 4 * (g * KEYS + i))
                mass[part, head] += total(row)
            at, step = v + kv * v_head + start * v_row, v_row
            if v_kind != F32 or dim != wide_dim:
                for i in range(count):
                    widen(at + i * v_row, v_kind, dim, values + 4 * i * wide_dim, 1.0)
                at, step = values, 4 * wide_dim
            out = sums + 4 * (part * kv_heads + kv) * high * wide_dim
            for d in range(0, wide_dim, VECTORS * LANES):
                vectors, to = min(VECTORS, (wide_dim - d) // LANES), out + 4 * d
                tile_rows(vectors, high, 0, shares, 4 * KEYS, 4, at + 4 * d, step, to, 4 * wide_dim, count)


@njit(forceinline=True)
def distance(x, y, dim):
    """‖x - y‖ of two widened rows, in float64 where the squares would leave float32."""
    squares = splat(np.float32(0.0))
    for i in range(0, padded(dim, LANES), LANES):
        apart = load(x + 4 * i) - load(y + 4 * i)
        squares = fma(apart, apart, squares)
    square = total(squares)
    if SMALL < square < LARGE:
        return np.sqrt(square)
    a, b = carray(floats_at(x), dim), carray(floats_at(y), dim)
    exact = 0.0
    for i in range(dim):
        exact += (np.float64(a[i]) - np.float64(b[i])) ** 2
    return np.float32(np.sqrt(exact))


@kernel
def _distances(
    task, worker, h, v, v_head, v_row, v_kind, centre, rate, top, best, scores, memory, heads, kv_heads, keys, dim,
    parts, span, fast, join,
):  # fmt: skip
    group, wide_dim = heads // kv_heads, padded(dim, LANES)
    base, found = carray(floats_at(h), (heads, keys)), carray(floats_at(scores), (kv_heads, keys))
    rates, tops = carray(floats_at(rate), heads), carray(words_at(top), heads)
    top_scores = carray(floats_at(best), heads)
    line = memory + 4 * worker * wide_dim
    while True:
        item = fetch_add(task, 1)
        if item >= kv_heads * parts:
            return
        part, kv = item % parts, item // parts
        for s in range(part * span, min(part * span + span, keys)):
            row = v + kv * v_head + s * v_row
            ahead(row + AHEAD * v_row, v_kind, dim)
            if v_kind != F32 or dim != wide_dim:
                widen(row, v_kind, dim, line, 1.0)
                row = line
            joined = np.float32(0.0)
            for head in range(kv * group, kv * group + group):
                if s == tops[head]:
                    c = top_scores[head]
                else:
                    alpha = base[head, s] * rates[head]
                    left = np.float32(1.0) - alpha
                    c = alpha / (max(left, np.float32(GUARD)) if fast else left)
                    c *= distance(row, centre + 4 * head * wide_dim, dim)
                joined = max(joined, c) if join == 1 else joined + (c * c if join == 2 else c)
            if join == 0:
                joined /= np.float32(group)
            found[kv, s] = np.sqrt(joined) if join == 2 else joined
