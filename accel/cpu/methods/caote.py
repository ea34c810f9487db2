"""CAOTE in two passes over the values: the heads' outputs, then every value's distance to them.

    c_j = α_j / (1 - α_j) · ‖o - v_j‖

The first pass adds up o, each head's largest α left out, in float64; the largest is added afterwards, so that nothing
cancels where it holds almost everything (reference/caote.py says why). The second pass reads the values again, and
takes o in two parts of float32: a value may lie so near to o that one part would not tell them apart, and it is the
smallest scores that decide what is evicted.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from accel.cpu.linear.inverse_norms import LARGE, SMALL
from accel.cpu.linear.rows import ahead, padded, widen
from accel.cpu.methods.keydiff import AHEAD
from accel.cpu.runtime.arrays import address, readable, rows
from accel.cpu.runtime.calls import Call, at_once
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
    scores = np.empty((sizes["KV"], sizes["S"]), np.float32)
    if sizes["S"] == 0:
        return scores
    if h.dtype not in (np.float32, np.float64) or h.strides[1] != h.itemsize or not h.flags.aligned:
        h = np.ascontiguousarray(h, np.float64)
    wrong, memory = np.zeros(1, np.int64), scratch.take(floats_needed(sizes["H"], *v.shape))
    score(at_once, h, readable(v), scores, wrong, memory, fast=fast, group=group)
    scratch.give(memory)
    no_negatives(wrong)
    return scores


def score(
    call: Call,
    h: np.ndarray,
    v: np.ndarray,
    scores: np.ndarray,
    wrong: np.ndarray,
    memory: np.ndarray,
    *,
    fast: bool,
    group: str,
) -> None:
    """What `caote_scores` returns, written to `scores`; `wrong` (1,) counts heads with scores below 0 or NaN."""
    heads, (kv_heads, keys, dim) = len(h), v.shape
    parts, span = _shares(kv_heads, keys)
    at, shape = _places(address(memory), heads, kv_heads, keys, dim, parts), (heads, kv_heads, keys, dim, parts, span)
    known = at.base, at.totals, at.tops
    call(
        _take_shares,
        address(h),
        h.strides[0],
        int(h.dtype == np.float64),
        *known,
        at.others,
        address(wrong),
        heads,
        keys,
    )
    call(_weigh, *known, *rows(v), at.sums, at.lines, *shape)
    call(_centre, *known, at.others, *rows(v), at.sums, at.centres, at.best, at.lines, *shape[:5], int(fast))
    call(
        _distances, *known, *rows(v), at.centres, at.best, address(scores), at.lines, *shape, list(JOINS).index(group)
    )  # fmt: skip


def floats_needed(heads: int, kv_heads: int, keys: int, dim: int) -> int:
    """Memory that all takes."""
    return _places(0, heads, kv_heads, keys, dim, _shares(kv_heads, keys)[0]).end // 4


def no_negatives(wrong: np.ndarray) -> None:
    """ValueError where heads were counted that hold a negative score or NaN."""
    require(wrong[0] == 0, "h: got a negative score or NaN, wanted scores of at least 0")


def _shares(kv_heads: int, keys: int) -> tuple[int, int]:
    """Ranges of keys that a head's are shared out to, and keys in each."""
    parts = min(-(-8 * THREADS // kv_heads), -(-keys // KEYS))
    return parts, -(-keys // parts)


class Places(NamedTuple):
    """Where each part of a call's memory begins; float64 but for the last three."""

    base: int  # h (H, S)
    totals: int  # Σ h (H,), 1 where it is 0: a head that says nothing, all of whose α are 0
    others: int  # Σ h without the top token (H,)
    best: int  # c of each head's top token (H,)
    sums: int  # Σ α_i v_i of each head without its top token, and Σ v_i (P, KV, G + 1, D)
    tops: int  # each head's top token (H,) int64
    centres: int  # what distances are measured to: float32 and the rest of it in float32 (H, 2, D padded)
    lines: int  # of each worker, float32 (RUN, D padded)
    end: int


def _places(base: int, heads: int, kv_heads: int, keys: int, dim: int, parts: int) -> Places:
    """The places from an address on; from 0 on the last is how many bytes there are."""
    wide_dim = padded(dim, LANES)
    doubles = heads * keys, heads, heads, heads, parts * (heads + kv_heads) * dim, heads
    sizes = [8 * count for count in doubles] + [8 * heads * wide_dim, 4 * THREADS * RUN * wide_dim]
    return Places(*(base + int(at) for at in np.cumsum([0, *sizes])))


@kernel
def _take_shares(task, worker, h, h_row, is_wide, base, total_of, top, other, wrong, heads, keys):
    """Every head's scores as float64, its top token, and the sums with it and without."""
    held, totals = carray(doubles_at(base), (heads, keys)), carray(doubles_at(total_of), heads)
    tops, others = carray(words_at(top), heads), carray(doubles_at(other), heads)
    while True:
        head = fetch_add(task, 1)
        if head >= heads:
            return
        narrow, wide = carray(floats_at(h + head * h_row), keys), carray(doubles_at(h + head * h_row), keys)
        best, valid = 0, True
        for s in range(keys):
            x = wide[s] if is_wide else np.float64(narrow[s])
            held[head, s] = x
            valid &= x >= 0.0
            if x > held[head, best]:
                best = s
        if not valid:
            fetch_add(wrong, 1)
        rest = 0.0  # without the top token, whose share may leave nothing of the others' in a difference
        for s in range(keys):
            if s != best:
                rest += held[head, s]
        tops[head], others[head], totals[head] = best, rest, rest + held[head, best]
        if totals[head] == 0.0:
            totals[head] = 1.0


@kernel
def _centre(
    task, worker, h, total_of, top, other, v, v_head, v_row, v_kind, sums, centre, best, memory, heads, kv_heads, keys,
    dim, parts, fast,
):  # fmt: skip
    """What distances are measured to, and c of each head's top token."""
    group, wide_dim = heads // kv_heads, padded(dim, LANES)
    base, totals = carray(doubles_at(h), (heads, keys)), carray(doubles_at(total_of), heads)
    tops, others = carray(words_at(top), heads), carray(doubles_at(other), heads)
    summed, top_scores = carray(doubles_at(sums), (parts, kv_heads, group + 1, dim)), carray(doubles_at(best), heads)
    centres = carray(floats_at(centre), (heads, 2, wide_dim))
    line = memory + 4 * worker * RUN * wide_dim
    while True:
        head = fetch_add(task, 1)
        if head >= heads:
            return
        kv = head // group
        widen(v + kv * v_head + tops[head] * v_row, v_kind, dim, line, 1.0)
        v_top, alpha, left = (
            carray(floats_at(line), dim),
            base[head, tops[head]] / totals[head],
            others[head] / totals[head],
        )
        centres[head] = 0.0
        squares = 0.0
        for d in range(dim):
            weighted, plain, x = 0.0, 0.0, np.float64(v_top[d])
            for part in range(parts):
                weighted += summed[part, kv, head % group, d]
                plain += summed[part, kv, group, d]
            o = plain / keys if fast else weighted + alpha * x
            centres[head, 0, d] = o
            centres[head, 1, d] = o - np.float64(centres[head, 0, d])
            if not fast:  # the output once the top token is gone
                o = weighted / left if left > 0.0 else (plain - x) / max(keys - 1, 1)
            squares += (o - x) ** 2
        top_scores[head] = np.sqrt(squares) * (alpha / max(left, GUARD) if fast else alpha)


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
        found[part, kv] = 0.0
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
    line = memory + 4 * worker * RUN * wide_dim
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
