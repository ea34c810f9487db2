"""The one rule by which every method chooses, by radix selection: no sorting.

A float's bits, with the sign bit flipped or all bits of a negative, order as the numbers do. Three histograms, of the
highest 11, the next 11 and the last 10 bits, narrow down to the bits of the budget-th best score; everything above it
is kept, and of its equals the lowest indices. Four passes over the scores in all; reading them is what limits it.
"""

from __future__ import annotations

import numpy as np

import reference
from accel.cpu.runtime.arrays import address
from accel.cpu.runtime.kernels import kernel
from accel.cpu.runtime.memory import scratch
from accel.cpu.runtime.team import THREADS
from accel.cpu.simd import bits_at, carray, fetch_add, njit, words_at
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
    if scores.dtype == np.float64 or sizes["S"] == 0:
        return reference.keep_top(scores, budget, sinks=sinks, recent=recent, positions=positions)
    budget = sizes["B"]
    scores = np.ascontiguousarray(scores, np.float32)
    first = np.zeros(sizes["KV"], np.int64)  # columns that every row protects at its beginning
    if budget == sizes["S"]:
        recent = 0  # nothing goes
    elif sinks:
        first[:] = (np.asarray(positions)[:, :sinks] < sinks).sum(axis=1)  # positions ascend
    kept = np.empty((sizes["KV"], budget), np.int64)
    not_numbers = np.zeros(1, np.int64)
    memory = scratch.take(THREADS * (sizes["S"] + 2 * BUCKETS + 2))
    _keep_top(
        address(scores), address(first), recent, address(kept), address(not_numbers), address(memory), sizes["KV"],
        sizes["S"], budget,
    )  # fmt: skip
    scratch.give(memory)
    require(not_numbers[0] == 0, "scores: got NaN, wanted numbers that can be ranked")
    return kept


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
def _drop(ranks, count):
    """The rank of the last that is dropped of the `count` lowest, of equals those of higher index first, and how many
    of its equals stay."""
    cut, dropped = np.uint32(0), 0
    while True:
        lowest, equals = np.uint32(0xFFFFFFFF), 0
        for rank in ranks:
            if rank > cut or not dropped:
                if rank < lowest:
                    lowest, equals = rank, 0
                equals += rank == lowest
        cut, dropped = lowest, dropped + equals
        if dropped >= count:
            return cut, dropped - count


@kernel
def _keep_top(task, worker, scores, firsts, recent, kept, not_numbers, memory, kv_heads, keys, budget):
    mine = memory + 4 * worker * (keys + keys % 2 + 2 * BUCKETS)
    every, histogram = carray(bits_at(mine), keys), carray(words_at(mine + 4 * (keys + keys % 2)), BUCKETS)
    while True:
        kv = fetch_add(task, 1)
        if kv >= kv_heads:
            return
        bits = carray(bits_at(scores + 4 * kv * keys), keys)
        found = carray(words_at(kept + 8 * kv * budget), budget)
        for j in range(keys):
            bit = bits[j]
            if (bit & np.uint32(0x7FFFFFFF)) > np.uint32(0x7F800000):
                fetch_add(not_numbers, 1)
                return
            if bit == np.uint32(0x80000000):  # minus zero equals zero
                bit = np.uint32(0)
            every[j] = ~bit if bit >> np.uint32(31) else bit | np.uint32(0x80000000)
        first = carray(words_at(firsts), kv_heads)[kv]
        last = max(first, keys - recent)
        ranks, left = every[first:last], budget - first - (keys - last)  # all else is protected
        cut, equals = np.uint32(0xFFFFFFFF), 0
        if keys - budget <= FEW and left:
            cut, equals = _drop(ranks, keys - budget)
        elif left:
            prefix, equals = _narrow(ranks, histogram, 21, 11, np.uint32(0), left)
            prefix, equals = _narrow(ranks, histogram, 10, 11, prefix, equals)
            cut, equals = _narrow(ranks, histogram, 0, 10, prefix, equals)
        n = 0
        for j in range(keys):
            chosen = j < first or j >= last
            if not chosen and every[j] == cut and equals:
                chosen = True
                equals -= 1
            elif not chosen:
                chosen = every[j] > cut
            if chosen:
                found[n] = j
                n += 1
