"""QUOKA on the device: the chunks of a pass choose together, in few launches.

    choose     one block for each chunk and head: the mean query, every query's cosine to it, the N lowest in order
    slots      the mean over a group of the chosen queries' directions, (KV, C·N, D)
    score      the best slot of each chunk for every key: one reading of the keys, whose lengths the cache knows
    keep_top   one block for each chunk and head, or several

Then attention reads the chosen columns where they stand. What limits it: the reading of the keys.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numba import cuda

from accel.cuda.attention.call import attention
from accel.cuda.linear.inverse_norms import rate_of, with_rates
from accel.cuda.methods.score import eights, tensor_fits, tensor_scores
from accel.cuda.methods.topk import keep_top_each
from accel.cuda.ptx.numbers import narrow, wide
from accel.cuda.ptx.simulator import SIMULATED
from accel.cuda.ptx.warp import warp_sum
from accel.cuda.runtime.arrays import F32, I64, Array, empty
from accel.cuda.runtime.kernels import blocks, kernel
from accel.cuda.runtime.reduce import THREADS, WARP, votes
from accel.cuda.runtime.views import Columns, Growing, plain
from accel.shared.lazy import Chosen, Keys
from reference import contract

MOST_DIM, MOST_GROUP = 512, 1024
ROW_THREADS = 2 if SIMULATED else 1024  # of a block that looks through all queries of a head
MOST_SUMS = max(ROW_THREADS, MOST_DIM)
AHEAD = 4  # numbers that a thread asks for at once


def select_queries(q: Array, n_queries: int) -> Array:
    """Step 1, the indices of the N least usual queries of each head: q (H, T, D) -> (H, min(N, T)) int64.

    Least similar to the mean first, ties to the lower index; all T in order where T ≤ N.
    """
    contract.select_queries(q, n_queries)
    return _choose_queries(q.split(0, 1), n_queries)[0]


def key_scores(q: Array, k: Array | Keys, n_queries: int) -> Array:
    """Steps 1 to 4, s = max over slots of (mean over the group of q̂) · k̂: q (H, T, D), k (KV, S, D) -> (KV, S)."""
    contract.key_scores(q, k, n_queries)
    return _score_chunks(q.split(0, 1), with_rates(k), n_queries)[0]


def select_keys(
    q: Array, k: Any, budget: int, n_queries: int, *, sinks: int = 0, recent: int = 0, positions: Any = None
) -> Array:
    """Steps 1 to 5: q (H, T, D), past keys k (KV, S, D) -> (KV, min(B, S)) int64 columns of k, ascending."""
    contract.select_keys_each([q], k, [k.shape[1]], [budget], n_queries, sinks, recent, positions)
    return _keep_each([q], k, [k.shape[1]], [budget], n_queries, sinks, recent, positions)[0]


def select_keys_each(
    q: Sequence[Array],
    k: Any,
    pasts: Sequence[int],
    budgets: Sequence[int],
    n_queries: int,
    *,
    sinks: int = 0,
    recent: int = 0,
    positions: Any = None,
) -> list[Any]:
    """The columns that each of several chunks reads, in one reading of the keys: chunk c ranks the first pasts[c]
    columns of k (KV, S, D) by its queries q[c] (H, T, D), and lists budgets[c] of them and its own T -> (KV, B + T)
    each."""
    contract.select_keys_each(q, k, pasts, budgets, n_queries, sinks, recent, positions)
    if isinstance(k, Growing):
        return [_select_of_growing(q[0], k, pasts[0], budgets[0], n_queries, sinks, recent, positions)]
    every = _keep_each(q, k, pasts, budgets, n_queries, sinks, recent, positions)
    each = zip(every, pasts, q, strict=True)
    return [Columns(kept, past, past + queries.shape[1]) for kept, past, queries in each]


def _keep_each(
    q: Sequence[Array], k: Any, pasts: Sequence[int], budgets: Sequence[int], n_queries: int, sinks: int, recent: int,
    positions: Any,
) -> list[Array]:  # fmt: skip
    """The kept columns of each chunk's past, (KV, B) each."""
    kept: list[Array] = []
    keys, start = with_rates(k), 0
    while start < len(q):
        stop, step, space = _alike(q, pasts, budgets, start)
        first = q[start]
        together = first.seen(first.address, (stop - start, *first.shape), (space, *first.strides))
        places = None if positions is None else plain(positions)[:, : pasts[start]]
        budget = contract.keep_top(keys.rates[:, : pasts[start]], budgets[start], sinks, recent, places)["B"]
        scores = _score_chunks(together, keys.first(pasts[stop - 1]), n_queries)  # (C, KV, S)
        chosen = keep_top_each(scores, pasts[start], step, budget, sinks, recent, positions)
        for columns, past in zip(chosen, pasts[start:stop], strict=True):
            columns.below = past
            kept.append(columns)
        start = stop
    return kept


def quoka_attention(
    q: Array,
    k: Any,
    v: Any,
    q_positions: Any,
    k_positions: Any,
    past: int,
    *,
    budget: int,
    n_queries: int,
    scale: float | None = None,
    cap: float | None = None,
    sinks: int = 0,
    recent: int = 0,
) -> Array:
    """Attention over the `budget` best of the first `past` columns and all later ones, shapes as in `attention`."""
    size = contract.quoka_attention(q, k, v, q_positions, k_positions, past, budget, scale, cap)["S"]
    if past > budget:
        places = plain(k_positions)[:, :past]
        kept = select_keys(q, k[:, :past], budget, n_queries, sinks=sinks, recent=recent, positions=places)
        columns = Columns(kept, past, size)
        k, v, k_positions = (Chosen(x, columns) for x in (k, v, k_positions))
    return attention(q, k, v, q_positions, k_positions, scale=scale, cap=cap)


def _select_of_growing(
    q: Array, keys: Growing, past: int, budget: int, n_queries: int, sinks: int, recent: int, positions: Any
) -> Columns:
    """What a token that is decoded reads, in a pass that is recorded: all columns are scored that there is room for,
    and those ranked that the device knows to be held."""
    scores = _score_chunks(q.split(0, 1), keys, n_queries)
    (kept,) = keep_top_each(scores, keys.shape[1], 0, budget, sinks, recent, positions, keys.new)
    kept.below = past + 1
    return Columns(kept, past, past + 1, within=True)


def _alike(q: Sequence[Array], pasts: Sequence[int], budgets: Sequence[int], start: int) -> tuple[int, int, int]:
    """The chunks from `start` on that lie evenly: the first not among them, columns and bytes from one to the next."""
    stop, step, space = start + 1, 0, 0
    while stop < len(q):
        before, after = q[stop - 1], q[stop]
        moves = pasts[stop] - pasts[stop - 1], after.address - before.address
        even = moves == (step, space) or stop == start + 1
        same = after.shape == before.shape and after.strides == before.strides and after.memory is before.memory
        if not (even and same and min(budgets[stop], pasts[stop]) == min(budgets[start], pasts[start])):
            break
        (step, space), stop = moves, stop + 1
    return stop, step, space


def _choose_queries(q: Array, n_queries: int) -> Array:
    """q (C, H, T, D) -> (C, H, min(N, T)) int64."""
    chunks, heads, tokens, _ = q.shape
    chosen = empty((chunks, heads, min(n_queries, tokens)), I64)
    cosines = empty((chunks, heads, tokens), F32)
    _choose[(heads, chunks), ROW_THREADS](q, cosines, chosen)
    return chosen


def _score_chunks(q: Array, keys: Keys, n_queries: int) -> Array:
    """Scores of all keys for each chunk: q (C, H, T, D) -> (C, KV, S) float32."""
    chosen = _choose_queries(q, n_queries)
    (chunks, _, slots), (kv_heads, size, dim) = chosen.shape, keys.shape
    scores = empty((chunks, kv_heads, size), F32)
    if not scores.size:
        return scores
    quick = tensor_fits(keys.held, slots)
    places, dtype = (eights(slots), keys.held.dtype) if quick else (slots, F32)
    means = empty((kv_heads, chunks, places, dim), dtype)
    _slots[(places, kv_heads, chunks), THREADS](q, chosen, means)
    if quick:
        tensor_scores(means, keys, scores)
    else:
        _score[(blocks(size, THREADS), kv_heads, chunks), THREADS](means, keys.held, keys.rates, scores)
    return scores


@kernel(threads=ROW_THREADS)
def _choose(q, cosines, chosen):
    mean = cuda.shared.array(MOST_DIM, np.float32)
    sums = cuda.shared.array(MOST_SUMS, np.float64)
    head, chunk, thread = cuda.blockIdx.x, cuda.blockIdx.y, cuda.threadIdx.x
    rows, cosine, kept = q[chunk, head], cosines[chunk, head], chosen[chunk, head]
    tokens, dim = rows.shape
    if tokens <= kept.shape[0]:
        t = thread
        while t < tokens:
            kept[t] = t
            t += ROW_THREADS
    else:
        # The sum over the tokens: threads share out the numbers of a row and, where there are more threads, the rows.
        shares = max(ROW_THREADS // dim, 1)
        item = thread
        while item < shares * dim:
            share, d = item // dim, item % dim
            total = 0.0
            t = share
            while t + (AHEAD - 1) * shares < tokens:
                for u in range(AHEAD):  # asked for together, or each would be waited for
                    total += np.float64(wide(rows[t + u * shares, d]))
                t += AHEAD * shares
            while t < tokens:
                total += np.float64(wide(rows[t, d]))
                t += shares
            sums[item] = total
            item += ROW_THREADS
        cuda.syncthreads()
        d = thread
        while d < dim:
            total = 0.0
            for share in range(shares):
                total += sums[share * dim + d]
            mean[d] = total
            d += ROW_THREADS
        cuda.syncthreads()
        # Cosines: a warp for each token, and each by itself the length of the mean
        lane, warp = thread % WARP, thread // WARP
        whole = 0.0
        d = lane
        while d < dim:
            whole += np.float64(mean[d]) * np.float64(mean[d])
            d += WARP
        rate = rate_of(warp_sum(whole))
        own_along, own_squares, own, count = 0.0, 0.0, 0, 0
        t = warp
        while t < tokens:
            along, squares, row = 0.0, 0.0, rows[t]
            d = lane
            while d + (AHEAD - 1) * WARP < dim:
                for u in range(AHEAD):
                    x = np.float64(wide(row[d + u * WARP]))
                    along += x * np.float64(mean[d + u * WARP])
                    squares += x * x
                d += AHEAD * WARP
            while d < dim:
                x = np.float64(wide(row[d]))
                along += x * np.float64(mean[d])
                squares += x * x
                d += WARP
            along, squares = warp_sum(along), warp_sum(squares)
            if lane == count:  # a lane for each token, since roots and divisions take long
                own_along, own_squares, own = along, squares, t
            count += 1
            t += ROW_THREADS // WARP
            if count == WARP or t >= tokens:
                if lane < count:
                    cosine[own] = own_along * rate * rate_of(own_squares)
                count = 0
        cuda.syncthreads()
        # Ranks: how many are lower, or as low and earlier
        t = warp
        while t < tokens:
            lowest, rank = cosine[t], 0
            first = lane
            while first - lane < tokens:
                for u in range(AHEAD):
                    i = first + u * WARP
                    other = cosine[min(i, tokens - 1)]
                    rank += cuda.popc(votes(i < tokens and (other < lowest or (other == lowest and i < t))))
                first += AHEAD * WARP
            if lane == 0 and rank < kept.shape[0]:
                kept[rank] = t
            t += ROW_THREADS // WARP


@kernel
def _slots(q, chosen, means):
    rates = cuda.shared.array(MOST_GROUP, np.float64)
    place, kv, chunk, thread = cuda.blockIdx.x, cuda.blockIdx.y, cuda.blockIdx.z, cuda.threadIdx.x
    group, dim = q.shape[1] // means.shape[0], q.shape[3]
    slot = place
    if slot >= chosen.shape[2]:
        slot = 0  # more places than slots: the first once more, which changes no maximum
    lane, g = thread % WARP, thread // WARP  # a warp for each head of the group
    while g < group:
        t = chosen[chunk, kv * group + g, slot]
        squares = 0.0
        d = lane
        while d < dim:
            x = np.float64(wide(q[chunk, kv * group + g, t, d]))
            squares += x * x
            d += WARP
        squares = warp_sum(squares)
        if lane == 0:
            rates[g] = rate_of(squares)
        g += THREADS // WARP
    cuda.syncthreads()
    d = thread
    while d < dim:
        total = np.float32(0)
        for g in range(group):
            t = chosen[chunk, kv * group + g, slot]
            total += np.float32(np.float64(wide(q[chunk, kv * group + g, t, d])) * rates[g] / group)
        means[kv, chunk, place, d] = narrow(means, total)
        d += THREADS


@kernel
def _score(means, k, rates, scores):
    j, kv, chunk = cuda.blockIdx.x * cuda.blockDim.x + cuda.threadIdx.x, cuda.blockIdx.y, cuda.blockIdx.z
    if j < k.shape[1]:
        best = np.float32(-np.inf)
        for slot in range(means.shape[2]):
            total = np.float32(0)
            for d in range(k.shape[2]):
                total += wide(means[kv, chunk, slot, d]) * wide(k[kv, j, d])
            best = max(best, total * rates[kv, j])
        scores[chunk, kv, j] = best
