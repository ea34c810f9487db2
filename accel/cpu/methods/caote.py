"""CAOTE in two passes over the values: the heads' outputs, then every value's distance to them.

    c_j = α_j / (1 - α_j) · ‖o - v_j‖

The first pass adds up o, each head's largest α left out, in float64; the largest is added afterwards, so that nothing
cancels where it holds almost everything (reference/caote.py says why). The second pass reads the values again, and
takes o in two parts of float32: a value may lie so near to o that one part would not tell them apart, and it is the
smallest scores that decide what is evicted.
"""

from __future__ import annotations

import numpy as np

from accel.cpu.linear.inverse_norms import LARGE, SMALL
from accel.cpu.linear.rows import ahead, padded, widen
from accel.cpu.methods.keydiff import AHEAD
from accel.cpu.runtime.arrays import address, readable, rows
from accel.cpu.runtime.kernels import kernel
from accel.cpu.runtime.memory import scratch
from accel.cpu.runtime.team import THREADS
from accel.cpu.simd import F32, LANES, carray, doubles_at, fetch_add, floats_at, fma, load, njit, splat, total, words_at
from reference import contract
from reference.caote import GUARD
from reference.checks import require
from reference.contract import JOINS

KEYS = 128  # values per item, at least
RUN = 4  # values that are added at a time


def caote_scores(h: np.ndarray, v: np.ndarray, *, fast: bool = False, group: str = "mean") -> np.ndarray:
    """c_j from base scores h ≥ 0 (H, S) and values v (KV, S, D) -> (KV, S) float32, higher = keep.

    `fast` puts the mean value in the place of o; `group` joins a group's heads by "mean", "max" or "rss".
    """
    sizes = contract.caote_scores(h, v, group)
    heads, kv_heads, keys, dim = sizes["H"], sizes["KV"], sizes["S"], sizes["D"]
    scores = np.empty((kv_heads, keys), np.float32)
    if keys == 0:
        return scores
    v, h = readable(v), np.ascontiguousarray(h, np.float64)
    require(bool(h.min() >= 0), "h: got a negative score or NaN, wanted scores of at least 0")
    tops = h.argmax(axis=1)  # (H,)
    # Without the top token, whose share may leave nothing of the others' in a difference.
    others = np.array([row[:top].sum() + row[top + 1 :].sum() for row, top in zip(h, tops, strict=True)])  # (H,)
    totals = others + h[np.arange(heads), tops]
    totals[totals == 0] = 1  # a head that says nothing: all its α are 0
    parts = min(-(-8 * THREADS // kv_heads), -(-keys // KEYS))
    span = -(-keys // parts)
    weighted, summed = _sums(h, v, totals, tops, parts, span)
    centres, top_scores = _centres(h, v, totals, tops, others, weighted, summed, fast)
    memory = scratch.take(THREADS * padded(dim, LANES))
    _distances(
        address(h), address(totals), address(tops), *rows(v), address(centres), address(top_scores), address(scores),
        address(memory), heads, kv_heads, keys, dim, parts, span, list(JOINS).index(group),
    )  # fmt: skip
    scratch.give(memory)
    return scores


def _sums(
    h: np.ndarray, v: np.ndarray, totals: np.ndarray, tops: np.ndarray, parts: int, span: int
) -> tuple[np.ndarray, np.ndarray]:
    """Per head, float64: Σ α_i v_i without its top token (H, D), and Σ v_i (H, D)."""
    heads, (kv_heads, keys, dim) = len(h), v.shape
    group = heads // kv_heads
    sums = np.zeros((parts, kv_heads, group + 1, dim))
    memory = scratch.take(THREADS * RUN * padded(dim, LANES))
    _weigh(
        address(h), address(totals), address(tops), *rows(v), address(sums), address(memory), heads, kv_heads, keys,
        dim, parts, span,
    )  # fmt: skip
    scratch.give(memory)
    joined = sums.sum(axis=0)  # (KV, G + 1, D)
    return joined[:, :group].reshape(heads, dim), np.repeat(joined[:, group], group, axis=0)


def _centres(
    h: np.ndarray,
    v: np.ndarray,
    totals: np.ndarray,
    tops: np.ndarray,
    others: np.ndarray,
    weighted: np.ndarray,
    summed: np.ndarray,
    fast: bool,
) -> tuple[np.ndarray, np.ndarray]:
    """What distances are measured to (H, 2, D padded): float32 and the rest of it in float32. And c of each head's top
    token (H,) float64."""
    heads, keys = h.shape
    every = np.arange(heads)
    v_top = v[every // (heads // len(v)), tops].astype(np.float64)  # (H, D)
    alpha, remaining = h[every, tops] / totals, others / totals
    if fast:
        centre = summed / keys
        top_scores = alpha / np.maximum(remaining, GUARD) * np.linalg.norm(centre - v_top, axis=1)
    else:
        centre = weighted + alpha[:, None] * v_top
        has_others = (remaining > 0)[:, None]
        count = np.where(has_others, remaining[:, None], max(keys - 1, 1))
        without = np.where(has_others, weighted, summed - v_top) / count  # the output once the top token is gone
        top_scores = alpha * np.linalg.norm(without - v_top, axis=1)
    parts = np.zeros((heads, 2, padded(v.shape[2], LANES)), np.float32)  # whole vectors
    parts[:, 0, : v.shape[2]] = centre
    parts[:, 1, : v.shape[2]] = centre - parts[:, 0, : v.shape[2]]
    return parts, top_scores


@njit(forceinline=True)
def _share(base, totals, tops, head, s, end):
    """α of a token, 0 for the head's top token, and 1 where the head is -1; 0 from `end` on."""
    if s >= end or (head >= 0 and s == tops[head]):
        return 0.0
    return base[head, s] / totals[head] if head >= 0 else 1.0


@kernel
def _weigh(
    task, worker, h, total_of, top, v, v_head, v_row, v_kind, sums, memory, heads, kv_heads, keys, dim, parts, span
):
    group, wide_dim = heads // kv_heads, padded(dim, LANES)
    base, totals = carray(doubles_at(h), (heads, keys)), carray(doubles_at(total_of), heads)
    tops, found = carray(words_at(top), heads), carray(doubles_at(sums), (parts, kv_heads, group + 1, dim))
    lines = memory + 4 * worker * RUN * wide_dim
    one, other, third, fourth = carray(floats_at(lines), (RUN, wide_dim))
    while True:
        item = fetch_add(task, 1)
        if item >= kv_heads * parts:
            return
        part, kv = item % parts, item // parts
        end = min(part * span + span, keys)
        for s in range(part * span, end, RUN):
            for i in range(RUN):
                row = v + kv * v_head + min(s + i, end - 1) * v_row
                ahead(row + AHEAD * v_row, v_kind, dim)
                widen(row, v_kind, dim, lines + 4 * i * wide_dim, 1.0)
            for g in range(group + 1):
                out, head = found[part, kv, g], kv * group + g if g < group else -1  # the last is the plain sum
                p, q = _share(base, totals, tops, head, s, end), _share(base, totals, tops, head, s + 1, end)
                r, t = _share(base, totals, tops, head, s + 2, end), _share(base, totals, tops, head, s + 3, end)
                for d in range(dim):
                    out[d] += p * one[d] + q * other[d] + r * third[d] + t * fourth[d]


@njit(forceinline=True)
def distance(x, centre, dim):
    """‖x - o‖ of a widened row and an o in two parts, in float64 where the squares would leave float32."""
    rest, squares = centre + 4 * padded(dim, LANES), splat(np.float32(0.0))
    for i in range(0, padded(dim, LANES), LANES):
        apart = load(x + 4 * i) - load(centre + 4 * i) - load(rest + 4 * i)
        squares = fma(apart, apart, squares)
    square = total(squares)
    if SMALL < square < LARGE:
        return np.sqrt(np.float64(square))
    a, b, c = carray(floats_at(x), dim), carray(floats_at(centre), dim), carray(floats_at(rest), dim)
    exact = 0.0
    for i in range(dim):
        exact += (np.float64(a[i]) - np.float64(b[i]) - np.float64(c[i])) ** 2
    return np.sqrt(exact)


@kernel
def _distances(
    task, worker, h, total_of, top, v, v_head, v_row, v_kind, centre, best, scores, memory, heads, kv_heads, keys, dim,
    parts, span, join,
):  # fmt: skip
    group, wide_dim = heads // kv_heads, padded(dim, LANES)
    base, totals = carray(doubles_at(h), (heads, keys)), carray(doubles_at(total_of), heads)
    tops, top_scores = carray(words_at(top), heads), carray(doubles_at(best), heads)
    found = carray(floats_at(scores), (kv_heads, keys))
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
            joined = 0.0
            for head in range(kv * group, kv * group + group):
                if s == tops[head]:
                    c = top_scores[head]
                else:  # α is at most a half: nothing cancels, and FastCAOTE needs no guard
                    alpha = base[head, s] / totals[head]
                    c = alpha / (1.0 - alpha) * distance(row, centre + 8 * head * wide_dim, dim)
                joined = max(joined, c) if join == 1 else joined + (c * c if join == 2 else c)
            if join == 0:
                joined /= group
            found[kv, s] = np.sqrt(joined) if join == 2 else joined
