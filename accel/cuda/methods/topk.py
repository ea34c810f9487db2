"""The one rule by which every method chooses, on the device: the highest scores, ties to the lower index, ascending.

A score becomes a whole number of 32 bits in the same order, what is protected the highest of all. Four passes over a
row find the number at the cut, eight bits at a time: a pass counts how often each digit occurs among the scores that
share the digits found so far, and the digit at which the count from above reaches the budget is the next. Two more
passes, in which every warp has a stretch of the row, count and write the columns: those above the cut, and of those
at the cut the first ones. A thread asks for eight scores before it looks at the first of them, or it would wait for
each. What limits it: the row is read six times, from the cache for all but the longest.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import cuda

from accel.cuda.ptx.numbers import bits, wide
from accel.cuda.ptx.simulator import SIMULATED
from accel.cuda.runtime.arrays import I64, Array, empty
from accel.cuda.runtime.kernels import device, kernel
from accel.cuda.runtime.reduce import WARP, votes
from accel.cuda.runtime.views import plain
from reference import contract

THREADS = 2 if SIMULATED else 1024  # of a block, which has one row
WARPS = THREADS // WARP
DIGITS = 256
AHEAD = 8  # scores that a thread asks for at once


def keep_top(scores: Array, budget: int, *, sinks: int = 0, recent: int = 0, positions: Any = None) -> Array:
    """Columns of the `budget` highest scores of every row: scores (KV, S) -> (KV, min(budget, S)) int64, ascending.

    Equal scores: the lower index wins. Always kept: tokens at positions (KV, S) below `sinks` and the last `recent`.
    """
    sizes = contract.keep_top(scores, budget, sinks, recent, positions)
    one = scores.split(0, 1)  # (1, KV, S)
    return keep_top_each(one, sizes["S"], 0, sizes["B"], sinks, recent, positions)[0]


def keep_top_each(scores: Array, past: int, step: int, budget: int, sinks: int, recent: int, positions: Any) -> Array:
    """The same for every chunk c of scores (C, KV, S), among its first past + c · step columns -> (C, KV, B)."""
    out = empty((*scores.shape[:2], budget), I64)
    if out.size:
        places = plain(positions) if positions is not None and sinks else empty((scores.shape[1], 0), I64)
        _keep[scores.shape[1::-1], THREADS](scores, past, step, sinks, recent, places, out)
    return out


def select_neurons(scores: Array, keep: int) -> Array:
    """The `keep` highest-scoring neurons, ties to the lower: scores (F,) -> (min(keep, F),) int64, ascending."""
    contract.select_neurons(scores, keep)
    return keep_top(scores.split(0, 1), keep)[0]


@device
def _order(scores, chunk, row, i, past, sinks, recent, positions):
    """A score's place among all float32, as 0 … 2³² - 1: -0 and 0 are one, what is protected is the last."""
    x = wide(scores[chunk, row, i])
    found = bits(x)
    if x == 0:
        found = 0
    place = found ^ 0xFFFFFFFF if found & 0x80000000 else found | 0x80000000
    if i >= past - recent:
        place = 0xFFFFFFFF
    if sinks > 0 and positions[row, i] < sinks:
        place = 0xFFFFFFFF
    return place


@kernel(threads=THREADS)
def _keep(scores, first, step, sinks, recent, positions, out):
    counts = cuda.shared.array(DIGITS, np.int32)
    found = cuda.shared.array(2, np.int64)
    above = cuda.shared.array(WARPS, np.int32)
    equal = cuda.shared.array(WARPS, np.int32)
    places = cuda.local.array(AHEAD, np.int64)
    row, chunk, thread = cuda.blockIdx.x, cuda.blockIdx.y, cuda.threadIdx.x
    past = first + chunk * step
    need = out.shape[2]  # of those that share the digits found so far
    prefix = 0
    shift = 24
    while shift >= 0:
        d = thread
        while d < DIGITS:
            counts[d] = 0
            d += THREADS
        cuda.syncthreads()
        i = thread
        while i < past:
            for u in range(AHEAD):
                places[u] = _order(scores, chunk, row, min(i + u * THREADS, past - 1), past, sinks, recent, positions)
            for u in range(AHEAD):
                if i + u * THREADS < past and places[u] >> (shift + 8) == prefix:
                    cuda.atomic.add(counts, (places[u] >> shift) & 255, 1)
            i += AHEAD * THREADS
        cuda.syncthreads()
        d = thread
        while d < DIGITS:
            higher = 0
            for e in range(DIGITS - 1, d, -1):
                higher += counts[e]
            if higher < need and need <= higher + counts[d]:
                found[0], found[1] = d, need - higher
            d += THREADS
        cuda.syncthreads()
        prefix, need = (prefix << 8) | found[0], found[1]
        cuda.syncthreads()
        shift -= 8

    warp, lane = thread // WARP, thread % WARP
    stretch = (past + WARPS - 1) // WARPS
    start, stop = warp * stretch, min((warp + 1) * stretch, past)
    higher, same = 0, 0
    i = start + lane
    while i - lane < stop:
        for u in range(AHEAD):
            places[u] = _order(scores, chunk, row, min(i + u * WARP, past - 1), past, sinks, recent, positions)
        for u in range(AHEAD):
            there = i + u * WARP < stop
            higher += cuda.popc(votes(there and places[u] > prefix))
            same += cuda.popc(votes(there and places[u] == prefix))
        i += AHEAD * WARP
    if lane == 0:
        above[warp], equal[warp] = higher, same
    cuda.syncthreads()
    higher, same = 0, 0
    for w in range(warp):  # what the stretches before this one hold
        higher += above[w]
        same += equal[w]
    earlier = (1 << lane) - 1
    i = start + lane
    while i - lane < stop:
        for u in range(AHEAD):
            places[u] = _order(scores, chunk, row, min(i + u * WARP, past - 1), past, sinks, recent, positions)
        for u in range(AHEAD):
            there = i + u * WARP < stop
            is_higher, is_same = there and places[u] > prefix, there and places[u] == prefix
            highers, sames = votes(is_higher), votes(is_same)
            own, equals = higher + cuda.popc(highers & earlier), same + cuda.popc(sames & earlier)
            if is_higher:
                out[chunk, row, own + min(equals, need)] = i + u * WARP
            if is_same and equals < need:
                out[chunk, row, own + equals] = i + u * WARP
            higher += cuda.popc(highers)
            same += cuda.popc(sames)
        i += AHEAD * WARP
