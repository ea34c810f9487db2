"""QUOKA: scoring, choosing and attending, each fused with the reading that it needs.

How it tiles. The slots q̄ are few, so a key's scores are one row of vectors: keys are the tile's rows and slots its
columns. A cache knows its keys' lengths, and then they are multiplied where they stand and reduced to the best slot
over the length: one pass over the keys, whose reading is the limit. Keys alone are first copied to the first-level
cache, where their squares are summed on the way. Attention then gathers the chosen columns while it packs them.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate
from typing import Any, NamedTuple

import numpy as np

from accel.cpu.attention.call import attention
from accel.cpu.linear.inverse_norms import unit_rate
from accel.cpu.linear.rows import padded, product, widen
from accel.cpu.methods.topk import keep_top, list_best_each, protected
from accel.cpu.runtime.arrays import address, readable, rows
from accel.cpu.runtime.calls import Call, at_once
from accel.cpu.runtime.kernels import kernel
from accel.cpu.runtime.memory import scratch
from accel.cpu.runtime.team import THREADS
from accel.cpu.simd import (
    F32,
    LANES,
    TALL,
    VECTORS,
    carray,
    fetch_add,
    floats_at,
    highest,
    larger,
    load,
    njit,
    tall_tile,
    tile_rows,
    words_at,
)
from accel.shared.lazy import Chosen, Keys
from reference import contract
from reference.quoka import with_chunk

BLOCK = 2 * TALL  # keys per block: two tall tiles


def select_queries(q: np.ndarray, n_queries: int) -> np.ndarray:
    """Step 1, the indices of the N least usual queries of each head: q (H, T, D) -> (H, min(N, T)) int64.

    Least similar to the mean first, ties to the lower index; all T in order where T ≤ N.
    """
    heads = contract.select_queries(q, n_queries)["H"]
    return _slots_each([q], heads, n_queries)[0].reshape(heads, -1)


def key_scores(q: np.ndarray, k: np.ndarray | Keys, n_queries: int) -> np.ndarray:
    """Steps 1 to 4, s = max over slots of (mean over the group of q̂) · k̂: q (H, T, D), k (KV, S, D) -> (KV, S).

    Higher = keep; float32.
    """
    sizes = contract.key_scores(q, k, n_queries)
    return _scores_each([q], k, [sizes["S"]], n_queries).numbers.reshape(sizes["KV"], sizes["S"])


def select_keys(
    q: np.ndarray,
    k: np.ndarray | Keys,
    budget: int,
    n_queries: int,
    *,
    sinks: int = 0,
    recent: int = 0,
    positions: np.ndarray | None = None,
) -> np.ndarray:
    """Steps 1 to 5: q (H, T, D), past keys k (KV, S, D) -> (KV, min(B, S)) int64 columns of k, ascending."""
    return keep_top(key_scores(q, k, n_queries), budget, sinks=sinks, recent=recent, positions=positions)


def select_keys_each(
    q: Sequence[np.ndarray],
    k: np.ndarray | Keys,
    pasts: Sequence[int],
    budgets: Sequence[int],
    n_queries: int,
    *,
    sinks: int = 0,
    recent: int = 0,
    positions: np.ndarray | None = None,
) -> list[np.ndarray]:
    """The columns that each of several chunks reads, in one reading of the keys: chunk c ranks the first pasts[c]
    columns of k (KV, S, D) by its queries q[c] (H, T, D), and lists budgets[c] of them and its own T -> (KV, B + T)
    each."""
    contract.select_keys_each(q, k, pasts, budgets, n_queries, sinks, recent, positions)
    kv_heads = k.shape[0]
    scores = _scores_each(q, k, pasts, n_queries)
    widths = [min(budget, past) + queries.shape[1] for budget, past, queries in zip(budgets, pasts, q, strict=True)]
    ends = [*accumulate((kv_heads * width for width in widths), initial=0)]
    columns = np.empty(ends[-1], np.int64)
    table, listed = [], []
    for n, (width, past, queries) in enumerate(zip(widths, pasts, q, strict=True)):
        own = queries.shape[1]
        table.append((scores.places[n], past, address(columns) + 8 * ends[n], width - own, own))
        listed.append(columns[ends[n] : ends[n + 1]].reshape(kv_heads, width))
    first = np.zeros((len(q), kv_heads), np.int64)
    if sinks and positions is not None:
        first[:] = np.minimum(protected(np.asarray(positions), sinks), np.array(pasts)[:, None])
    list_best_each(np.array(table, np.int64), first, recent)
    return listed


class Scores(NamedTuple):
    """Scores of several chunks, (KV, past) float32 each, one after another, and where those of each stand."""

    numbers: np.ndarray
    places: list[int]


def _scores_each(q: Sequence[np.ndarray], k: np.ndarray | Keys, pasts: Sequence[int], n_queries: int) -> Scores:
    """Scores of the first pasts[c] keys by the queries of chunk c."""
    kv_heads, _, dim = k.shape
    _, slots, widths = _slots_each(q, kv_heads, n_queries)
    ends = [*accumulate((kv_heads * past for past in pasts), initial=0)]
    scores = np.empty(ends[-1], np.float32)
    places = [address(scores) + 4 * end for end in ends[:-1]]
    table = np.array([*zip(places, pasts, accumulate(widths, initial=0), widths, strict=False)], np.int64)
    held, rates = (k.held, k.rates) if isinstance(k, Keys) else (readable(k), None)
    memory = scratch.take(score_floats(dim, slots.shape[2]))
    score_slots(at_once, slots, held, rates, table, memory, max(pasts))
    scratch.give(memory)
    return Scores(scores, places)


def score_slots(
    call: Call, slots: np.ndarray, k: np.ndarray, rates: np.ndarray | None, table: np.ndarray, memory: np.ndarray,
    keys: int,
) -> Any:  # fmt: skip
    """Scores of the first `keys` of k (KV, S, D), whose inverse lengths are rates (KV, S), by slots (KV, D, N). Each
    row of the table is a chunk: where its scores (KV, past) go, its past, and its first slot and how many."""
    (kv_heads, _, dim), wide = k.shape, slots.shape[2]
    known = (0, 0) if rates is None else (address(rates), rates.strides[0])
    return call(
        _score, address(slots), wide, *rows(k), *known, address(table), len(table), address(memory),
        score_floats(dim, wide) // THREADS, kv_heads, keys, dim, keys_per_item(kv_heads, keys),
    )  # fmt: skip


def score_floats(dim: int, wide: int) -> int:
    """Memory that all workers need to score by so many slots."""
    return BLOCK * (padded(dim, LANES) + wide + 1) * THREADS


def keys_per_item(kv_heads: int, keys: int) -> int:
    """Keys that a worker scores at a time."""
    return max(-(-keys // (-(-8 * THREADS // kv_heads) * BLOCK)) * BLOCK, 1)


def quoka_attention(
    q: np.ndarray,
    k: np.ndarray,
    v: np.ndarray,
    q_positions: np.ndarray | int,
    k_positions: np.ndarray,
    past: int,
    *,
    budget: int,
    n_queries: int,
    scale: float | None = None,
    cap: float | None = None,
    sinks: int = 0,
    recent: int = 0,
) -> np.ndarray:
    """Attention over the `budget` best of the first `past` columns and all later ones, shapes as in `attention`."""
    sizes = contract.quoka_attention(q, k, v, q_positions, k_positions, past, budget, scale, cap)
    if past > budget:
        places = k_positions[:, :past]
        kept = select_keys(q, k[:, :past], budget, n_queries, sinks=sinks, recent=recent, positions=places)
        columns = with_chunk(kept, past, sizes["S"])
        chosen = (Chosen(x, columns) for x in (k, v, k_positions))
        k, v, k_positions = chosen  # type: ignore[assignment]
    return attention(q, k, v, q_positions, k_positions, scale=scale, cap=cap)


def _slots_each(q: Sequence[np.ndarray], kv_heads: int, n_queries: int) -> tuple[np.ndarray, np.ndarray, list[int]]:
    """The chosen queries of every chunk, (H, N) each, one after another; their unit vectors averaged over each of
    `kv_heads` groups slot by slot, transposed, chunk after chunk: (KV, D, ΣN), each N padded to whole vectors with
    copies of slot 0; and those padded N."""
    dim, q = q[0].shape[2], [readable(queries) for queries in q]
    shapes = [(len(x), x.shape[1], min(n_queries, x.shape[1])) for x in q]  # H, T, N
    widths = [padded(n, LANES) for *_, n in shapes]
    chosen = np.empty(sum(heads * n for heads, _, n in shapes), np.int64)
    slots = np.empty((kv_heads, dim, sum(widths)), np.float32)
    to, slot, table = address(chosen), address(slots), []
    for queries, (heads, tokens, n), width in zip(q, shapes, widths, strict=True):
        table.append((*rows(queries), to, slot, heads, tokens, n))
        to, slot = to + 8 * heads * n, slot + 4 * width
    size = slot_floats(*max((tokens, n) for _, tokens, n in shapes), dim)
    memory = scratch.take(size)
    choose_slots(at_once, np.array(table, np.int64), slots, memory, size)
    scratch.give(memory)
    return chosen, slots, widths


def slots_row(q: np.ndarray, chosen: np.ndarray, slots: np.ndarray) -> tuple[int, ...]:
    """A chunk as `choose_slots` knows it: its queries (H, T, D), where the chosen (H, N) are listed, and where its
    slots begin."""
    return *rows(q), address(chosen), address(slots), *q.shape[:2], chosen.shape[1]


def choose_slots(call: Call, table: np.ndarray, slots: np.ndarray, memory: np.ndarray, size: int) -> None:
    """Steps 1 to 3 of some chunks, a row of the table each: what `_slots_each` returns. Of the memory each worker has
    its part of `size` numbers."""
    kv_heads, dim, wide = slots.shape
    call(_choose, address(table), len(table), address(memory), size // THREADS, kv_heads, dim, wide)


def slot_floats(tokens: int, n: int, dim: int) -> int:
    """Memory that all workers need to choose n of so many queries."""
    wide_dim = padded(dim, LANES)
    return (tokens * (wide_dim + 2) + (n + 2) * wide_dim) * THREADS


@kernel
def _choose(task, worker, table, chunks, memory, size, kv_heads, dim, row):
    """An item is a chunk and a KV head."""
    described, wide_dim, mine = carray(words_at(table), (chunks, 9)), padded(dim, LANES), memory + 4 * size * worker
    while True:
        item = fetch_add(task, 1)
        if item >= chunks * kv_heads:
            return
        q, q_head, q_row, q_kind, picked, slots, heads, tokens, n = described[item // kv_heads]
        kv, group, wide = item % kv_heads, heads // kv_heads, padded(n, LANES)
        chosen = carray(words_at(picked), (heads, n))
        rates = carray(floats_at(mine + 4 * tokens * wide_dim), tokens)
        cosines = carray(floats_at(mine + 4 * tokens * (wide_dim + 1)), tokens)
        mean = mine + 4 * tokens * (wide_dim + 2)
        joined = carray(floats_at(mean + 8 * wide_dim), (n, wide_dim))
        joined[:] = 0.0
        for head in range(kv * group, kv * group + group):
            if tokens > n:
                _mean_direction(q + head * q_head, q_row, q_kind, tokens, dim, mean)
            for t in range(tokens):
                to = mine + 4 * t * wide_dim
                rates[t] = unit_rate(q + head * q_head + t * q_row, q_kind, dim, to)
                if tokens > n:
                    cosines[t] = product(to, mean, wide_dim) * rates[t]
            for slot in range(n):
                best = slot
                if tokens > n:
                    best = 0
                    for t in range(1, tokens):
                        if cosines[t] < cosines[best]:
                            best = t
                    cosines[best] = np.inf
                chosen[head, slot] = best
                direction = carray(floats_at(mine + 4 * best * wide_dim), wide_dim)
                for d in range(wide_dim):
                    joined[slot, d] += direction[d] * rates[best]
        for d in range(dim):
            averages = carray(floats_at(slots + 4 * (kv * dim + d) * row), wide)
            for slot in range(wide):
                averages[slot] = joined[slot if slot < n else 0, d] / np.float32(group)


@njit
def _mean_direction(q, q_row, q_kind, tokens, dim, out):
    """The unit vector along the mean of a head's queries."""
    wide_dim = padded(dim, LANES)
    sums = carray(floats_at(out), wide_dim)
    line = carray(floats_at(out + 4 * wide_dim), wide_dim)
    sums[:] = 0.0
    for t in range(tokens):
        widen(q + t * q_row, q_kind, dim, out + 4 * wide_dim, np.float32(1.0 / tokens))
        for d in range(wide_dim):
            sums[d] += line[d]
    rate = unit_rate(out, 0, dim, out)
    for d in range(wide_dim):
        sums[d] *= rate


@kernel
def _score(
    task, worker, slots, wide, k, k_head, k_row, k_kind, known, known_head, table, chunks, memory, size, kv_heads,
    keys, dim, span,
):  # fmt: skip
    wide_dim, spans = padded(dim, LANES), (keys + span - 1) // span
    whole = k_kind == F32 and dim == wide_dim
    described = carray(words_at(table), (chunks, 4))
    block = memory + 4 * size * worker
    products = block + 4 * BLOCK * wide_dim
    rates = carray(floats_at(products + 4 * BLOCK * wide), BLOCK)
    while True:
        item = fetch_add(task, 1)
        if item >= kv_heads * spans:
            return
        kv, begin = item // spans, item % spans * span
        for start in range(begin, min(begin + span, keys), BLOCK):
            count = min(BLOCK, min(begin + span, keys) - start)
            row, step = k + kv * k_head + start * k_row, k_row
            plain = known != 0
            if known:
                lengths = carray(floats_at(known + kv * known_head), keys)
                for i in range(count):
                    rates[i] = lengths[start + i]
                    plain &= rates[i] == rates[i]
            if not (plain and whole and count == BLOCK):  # else they are multiplied where they stand
                for i in range(count):
                    line = block + 4 * i * wide_dim
                    if plain:
                        widen(row + i * k_row, k_kind, dim, line, 1.0)
                    else:
                        rates[i] = unit_rate(row + i * k_row, k_kind, dim, line)
                row, step = block, 4 * wide_dim
            averages = slots + 4 * kv * dim * wide
            if wide == LANES:
                for i in range(0, count, TALL):
                    coming = k + kv * k_head + (start + BLOCK + i) * k_row
                    tall_tile(row + i * step, step, averages, 4 * wide, products + 4 * i * wide, 4 * wide, dim, coming)
            else:
                for j in range(0, wide, VECTORS * LANES):
                    vectors, to = min(VECTORS, (wide - j) // LANES), products + 4 * j
                    tile_rows(vectors, count, 1, row, step, 4, averages + 4 * j, 4 * wide, to, 4 * wide, dim)
            for c in range(chunks):
                scores, past, first, columns = described[c]
                found = carray(floats_at(scores + 4 * kv * past), past)
                for i in range(min(count, past - start)):
                    at = products + 4 * (i * wide + first)
                    best = load(at)
                    for j in range(LANES, columns, LANES):
                        best = larger(best, load(at + 4 * j))
                    found[start + i] = highest(best) * rates[i]
