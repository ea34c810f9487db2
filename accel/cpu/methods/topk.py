"""The one rule by which every method chooses, by radix selection: no sorting.

A float's bits, with the sign bit flipped or all bits of a negative, order as the numbers do. Three histograms, of the
highest 11, the next 11 and the last 10 bits, narrow down to the bits of the budget-th best score; everything above it
is kept, and of its equals the lowest indices. Four passes over the scores in all; reading them is what limits it.
"""

from __future__ import annotations

from typing import Any

import numpy as np

import reference
from accel.cpu.runtime.arrays import address
from accel.cpu.runtime.calls import Call, at_once
from accel.cpu.runtime.kernels import kernel
from accel.cpu.runtime.memory import scratch
from accel.cpu.runtime.team import THREADS
from accel.cpu.simd import bits_at, carray, doubles_at, fetch_add, njit, words_at
from reference import contract
from reference.checks import require

BUCKETS = 2048
FEW = 4  # columns to drop up to which they are looked for one by one: decoding under a budget


def keep_top(
    scores: np.ndarray, budget: int, *, sinks: int = 0, recent: int = 0, positions: np.ndarray | None = None
) -> np.ndarray:
    """Columns of the `budget` highest scores of every row: scores (KV, S) -> (KV, min(budget, S)) int64, ascending.

    As `reference.keep_top`, which also does float64 scores: rounding them would make ties.
    """
    sizes = contract.keep_top(scores, budget, sinks, recent, positions)
    budget, goes = sizes["B"], sizes["S"] - sizes["B"]
    if sizes["S"] == 0 or (scores.dtype == np.float64 and goes > FEW):
        return reference.keep_top(scores, budget, sinks=sinks, recent=recent, positions=positions)
    scores = np.ascontiguousarray(scores, np.float64 if scores.dtype == np.float64 else np.float32)
    first = np.zeros(sizes["KV"], np.int64)
    if not goes:
        recent = 0
    elif sinks:
        first = protected(np.asarray(positions), sinks)
    kept = np.empty((sizes["KV"], budget), np.int64)
    not_numbers = np.zeros(1, np.int64)
    memory = scratch.take(floats_needed(sizes["S"]))
    list_best(at_once, scores, first, recent, kept, not_numbers, memory)
    scratch.give(memory)
    numbers_only(not_numbers)
    return kept


def list_best_each(table: np.ndarray, first: np.ndarray, recent: int) -> None:
    """`keep_top` of several arrays of scores, each of its own length and with its own budget, and behind the columns
    kept those that follow the scores.

    A row of the table (C, 5) says where an array's scores (KV, S) stand, S, where its columns (KV, B + T) go, B, which
    is at most S, and T. The `first` (C, KV) and last `recent` columns are kept in any case. ValueError for NaN.
    """
    not_numbers, keys = np.zeros(1, np.int64), int(table[:, 1].max())
    memory = scratch.take(floats_needed(keys))
    _keep_top(
        0, address(table), address(first), recent, 0, 0, address(not_numbers), address(memory), first.size, keys, 0,
        first.shape[1],
    )  # fmt: skip
    scratch.give(memory)
    numbers_only(not_numbers)


def protected(positions: np.ndarray, sinks: int) -> np.ndarray:
    """Columns that every row protects at its beginning: positions (KV, S), which ascend -> (KV,) int64."""
    return (positions[:, :sinks] < sinks).sum(axis=1)


def list_best(
    call: Call,
    scores: np.ndarray,
    first: np.ndarray,
    recent: int,
    kept: np.ndarray,
    not_numbers: np.ndarray,
    memory: np.ndarray,
) -> Any:
    """kept (KV, B) = the columns of the highest of scores (KV, S), beside the `first` (KV,) and the last `recent`.

    Where a row holds NaN its columns stay as they were, and `not_numbers` (1,) counts it. Scores in float64 are of at
    most FEW columns more than are kept."""
    if scores.dtype == np.float64:
        return call(
            _drop_few, address(scores), address(first), recent, address(kept), kept.strides[0], address(not_numbers),
            *scores.shape, kept.shape[1],
        )  # fmt: skip
    return call(
        _keep_top, address(scores), 0, address(first), recent, address(kept), kept.strides[0], address(not_numbers),
        address(memory), *scores.shape, kept.shape[1], 1,
    )  # fmt: skip


def floats_needed(keys: int) -> int:
    """Memory that all workers need."""
    return THREADS * (keys + 2 * BUCKETS + 2)


def numbers_only(not_numbers: np.ndarray) -> None:
    """ValueError where rows were counted that hold NaN."""
    require(not_numbers[0] == 0, "scores: got NaN, wanted numbers that can be ranked")


def select_neurons(scores: np.ndarray, keep: int) -> np.ndarray:
    """The `keep` highest-scoring neurons, ties to the lower: scores (F,) -> (min(keep, F),) int64, ascending."""
    contract.select_neurons(scores, keep)
    return keep_top(scores[None], keep)[0]


@njit
def _narrow(ranks, histogram, shift, width, prefix, left):
    """Among ranks whose bits above `shift + width` equal `prefix`, the next `width` bits of the left-th best, and how
    many are still wanted among those that share them too."""
    histogram[: 1 << width] = 0
    mask = np.uint32((1 << width) - 1)
    for rank in ranks:
        if shift + width == 32 or rank >> np.uint32(shift + width) == prefix:
            histogram[(rank >> np.uint32(shift)) & mask] += 1
    bucket = (1 << width) - 1
    while histogram[bucket] < left:
        left -= histogram[bucket]
        bucket -= 1
    return np.uint32((np.int64(prefix) << width) | bucket), left


@njit
def _drop(ranks, count, least, most):
    """The rank of the last that is dropped of the `count` lowest, of equals those of higher index first, and how many
    of its equals stay. Ranks go from `least` to `most`."""
    cut, dropped = least, 0
    while True:
        lowest, equals = most, 0
        for rank in ranks:
            if rank > cut or not dropped:
                if rank < lowest:
                    lowest, equals = rank, 0
                equals += rank == lowest
        cut, dropped = lowest, dropped + equals
        if dropped >= count:
            return cut, dropped - count


@kernel
def _keep_top(
    task, worker, scores, table, firsts, recent, kept, kept_row, not_numbers, memory, rows, most, budget, heads,
):  # fmt: skip
    """Of `rows` rows of `most` scores each `budget`; or of as many, and of at most so many scores each, in a table of
    `list_best_each`, whose arrays have as many rows as there are `heads`."""
    mine = memory + 4 * worker * (most + most % 2 + 2 * BUCKETS)
    each = carray(words_at(table or firsts), (rows // heads, 5))
    whole, histogram = carray(bits_at(mine), most), carray(words_at(mine + 4 * (most + most % 2)), BUCKETS)
    while True:
        row = fetch_add(task, 1)
        if row >= rows:
            return
        at, keys, to, left, more = scores + 4 * row * most, most, kept + row * kept_row, budget, 0
        if table:
            at, keys, to, left, more = each[row // heads]
            at, to = at + row % heads * 4 * keys, to + row % heads * 8 * (left + more)
        goes, bits, every = keys - left, carray(bits_at(at), keys), whole[:keys]
        found = carray(words_at(to), left + more)
        for j in range(more):
            found[left + j] = keys + j
        for j in range(keys):
            bit = bits[j]
            if (bit & np.uint32(0x7FFFFFFF)) > np.uint32(0x7F800000):
                fetch_add(not_numbers, 1)
                return
            if bit == np.uint32(0x80000000):  # minus zero equals zero
                bit = np.uint32(0)
            every[j] = ~bit if bit >> np.uint32(31) else bit | np.uint32(0x80000000)
        first = carray(words_at(firsts), rows)[row]
        last = max(first, keys - recent)
        ranks, left = every[first:last], left - first - (keys - last)  # all else is protected
        cut, equals = np.uint32(0xFFFFFFFF), 0
        if goes <= FEW and left:
            cut, equals = _drop(ranks, goes, np.uint32(0), np.uint32(0xFFFFFFFF))
        elif left:
            prefix, equals = _narrow(ranks, histogram, 21, 11, np.uint32(0), left)
            prefix, equals = _narrow(ranks, histogram, 10, 11, prefix, equals)
            cut, equals = _narrow(ranks, histogram, 0, 10, prefix, equals)
        _list_kept(every, first, last, cut, equals, found)


@kernel
def _drop_few(task, worker, scores, firsts, recent, kept, kept_row, not_numbers, kv_heads, keys, budget):
    """As `_keep_top`, of scores in float64, where at most a few go."""
    while True:
        kv = fetch_add(task, 1)
        if kv >= kv_heads:
            return
        every, found = carray(doubles_at(scores + 8 * kv * keys), keys), carray(words_at(kept + kv * kept_row), budget)
        for j in range(keys):
            if every[j] != every[j]:
                fetch_add(not_numbers, 1)
                return
        first = carray(words_at(firsts), kv_heads)[kv]
        last = max(first, keys - recent)
        cut, equals = np.inf, 0
        if budget > first + keys - last:  # not all are protected
            cut, equals = _drop(every[first:last], keys - budget, -np.inf, np.inf)
        _list_kept(every, first, last, cut, equals, found)


@njit
def _list_kept(ranks, first, last, cut, equals, found):
    """The columns that stay: protected ones, those above the cut, and so many of its equals."""
    n = 0
    for j in range(len(ranks)):
        chosen = j < first or j >= last
        if not chosen and ranks[j] == cut and equals:
            chosen = True
            equals -= 1
        elif not chosen:
            chosen = ranks[j] > cut
        if chosen:
            found[n] = j
            n += 1
