"""The one rule by which every method chooses, on the device: the highest scores, ties to the lower index, ascending.

A score becomes a whole number of 32 bits in the same order, what is protected the highest of all. The number at the cut
is found digit by digit: a pass over a row counts how often each digit occurs among the scores that share the digits
found so far, and the digit at which the count from above reaches the budget is the next. A last pass writes the
columns: those above the cut, and of those at the cut the first ones.

A row that fits in the shared memory of one block is ranked by it (topk_block.py).

A longer row is shared out among several blocks, in parts of neighbouring columns, by digits of 11, 11 and 10 bits, and
every pass is a launch:

    count   part p counts its digits; counts[level, p] holds them
    count   every block adds up the parts' counts, finds the digit, and counts the next
    count
    write   every block finds the last digit, and from the counts of the parts before its own where its columns go

Nothing is added up in an order that could change. What limits it: the launches, and reading a row four times, from
the cache for all but the longest.
"""

from __future__ import annotations

import math
from functools import cache
from typing import Any

import numpy as np
from numba import cuda

from accel.cuda.methods import topk_block
from accel.cuda.methods.topk_block import place_of, row_end
from accel.cuda.ptx.numbers import wide
from accel.cuda.ptx.simulator import SIMULATED
from accel.cuda.runtime.arrays import I32, I64, Array, empty
from accel.cuda.runtime.errors import NAN_SCORE, note, word
from accel.cuda.runtime.kernels import device, kernel
from accel.cuda.runtime.moves import put
from accel.cuda.runtime.reduce import WARP, votes
from accel.cuda.runtime.views import plain
from reference import contract

THREADS = 2 if SIMULATED else 512  # of a block
WARPS = THREADS // WARP
DIGIT = 8 if SIMULATED else 11  # bits
DIGITS = 1 << DIGIT
LEVELS = -(-32 // DIGIT)
EACH, PAIRS = DIGITS // THREADS, DIGITS // 2 // THREADS  # digits that a thread adds up, and pairs of them
LOW = 0xFFFFFFFF
LEAST = 2 if SIMULATED else 4096  # columns of a part
MOST_PARTS = 16  # of a row: every block adds up their counts
BLOCKS = 12 if SIMULATED else 256  # that all rows are shared out among, about two for every multiprocessor
AHEAD = 8  # scores that a thread asks for before it looks at the first, or it would wait for each


def keep_top(scores: Array, budget: int, *, sinks: int = 0, recent: int = 0, positions: Any = None) -> Array:
    """Columns of the `budget` highest scores of every row: scores (KV, S) -> (KV, min(budget, S)) int64, ascending.

    Equal scores: the lower index wins. Always kept: tokens at positions (KV, S) below `sinks` and the last `recent`. A
    NaN is noted in the error word.
    """
    sizes = contract.keep_top(scores, budget, sinks, recent, positions)
    one = scores.split(0, 1)  # (1, KV, S)
    return keep_top_each(one, sizes["S"], 0, sizes["B"], sinks, recent, positions)[0]


def keep_top_each(
    scores: Array, past: int, step: int, budget: int, sinks: int, recent: int, positions: Any, new: Array | None = None
) -> Array:
    """The same for every chunk c of scores (C, KV, S), among its first past + c · step columns -> (C, KV, B). Where
    `new` says on the device how many there are, among the first new[0] -> (C, KV, B + 1), column new[0] the last."""
    whole, noted = empty((*scores.shape[:2], budget + (new is not None)), I64), word()
    whole.below = past + (scores.shape[0] - 1) * step + (new is not None)
    out = whole[:, :, :budget]
    if not out.size:
        return whole
    if new is not None:
        own = new.seen(new.address, (*scores.shape[:2], 1), (0, 0, 8))
        put(own, whole[:, :, budget:])
    ends = _everywhere() if new is None else new
    places = plain(positions) if positions is not None and sinks else empty((scores.shape[1], 0), I64)
    (chunks, rows), longest = scores.shape[:2], past + (scores.shape[0] - 1) * step
    alone = topk_block.fitting(longest)
    if alone is not None:
        keep, threads = alone
        keep[(1, rows, chunks), threads](scores, past, step, ends, sinks, recent, places, out, noted)
        return whole
    parts = max(1, min(-(-longest // LEAST), BLOCKS // (chunks * rows), MOST_PARTS))
    span, grid = -(-longest // parts), (parts, rows, chunks)
    counts, above = empty((LEVELS, chunks, rows, parts, DIGITS // 2), I64), empty((LEVELS, chunks, rows, parts), I32)
    found = empty((LEVELS, chunks, rows, 2), I64)
    for level in range(LEVELS):
        counted = span, level, counts, above, found, noted
        _count[grid, THREADS](scores, past, step, ends, sinks, recent, places, budget, *counted)
    _write[grid, THREADS](scores, past, step, ends, sinks, recent, places, span, counts, above, found, out, noted)
    return whole


def select_neurons(scores: Array, keep: int) -> Array:
    """The `keep` highest-scoring neurons, ties to the lower: scores (F,) -> (min(keep, F),) int64, ascending."""
    contract.select_neurons(scores, keep)
    return keep_top(scores.split(0, 1), keep)[0]


@cache
def _everywhere() -> Array:
    return empty((0,), I64)


@device
def _order(line, row, i, past, sinks, recent, positions, word):
    """The place of a score where it stands. A NaN is noted."""
    x = wide(line[i])
    if math.isnan(x):
        note(word, NAN_SCORE)
    return np.int64(place_of(x, i >= past - recent, sinks, positions, row, i))


@device
def _lowest_bit(level):
    """How many bits stand below the digit of a level."""
    return max(32 - DIGIT * (level + 1), 0)


@device
def _count_digits(line, row, start, stop, past, sinks, recent, positions, level, prefix, digits, word):
    """Count the digits of a level among those scores of start … stop - 1 whose higher digits are `prefix`."""
    places = cuda.local.array(AHEAD, np.int64)
    thread = cuda.threadIdx.x
    shift, known = _lowest_bit(level), 32 - DIGIT * level
    for n in range(EACH):
        digits[n * THREADS + thread] = 0
    cuda.syncthreads()
    i = start + thread
    while i < stop:
        for u in range(AHEAD):
            places[u] = _order(line, row, min(i + u * THREADS, stop - 1), past, sinks, recent, positions, word)
        for u in range(AHEAD):
            if i + u * THREADS < stop and places[u] >> known == prefix:
                cuda.atomic.add(digits, (places[u] >> shift) & ((1 << (known - shift)) - 1), 1)
        i += AHEAD * THREADS
    cuda.syncthreads()


@device
def _find_digit(digits, sums, need, digit):
    """The digit at which the count from above reaches `need`, and how many are needed of that one -> digit[0 … 1]."""
    thread = cuda.threadIdx.x
    own = 0
    for n in range(EACH):
        own += digits[thread * EACH + n]
    sums[thread] = own
    cuda.syncthreads()
    step = 1
    while step < THREADS:  # sums over this thread and all after it
        other = 0
        if thread + step < THREADS:
            other = sums[thread + step]
        cuda.syncthreads()
        sums[thread] += other
        cuda.syncthreads()
        step <<= 1
    higher = sums[thread] - own
    if higher < need and need <= higher + own:
        d = thread * EACH + EACH - 1
        while higher + digits[d] < need:
            higher += digits[d]
            d -= 1
        digit[0], digit[1] = d, need - higher
    cuda.syncthreads()


@device
def _write_columns(
    line, row, start, stop, past, sinks, recent, positions, cut, need, higher, same, above, equal, out, word
):  # fmt: skip
    """Write those of start … stop - 1 that are above the cut, and of all that are at it the first `need` of the row.
    Before `start` there are `higher` above the cut and `same` at it."""
    places = cuda.local.array(AHEAD, np.int64)
    warp, lane = cuda.threadIdx.x // WARP, cuda.threadIdx.x % WARP
    stretch = (stop - start + WARPS - 1) // WARPS
    first, last = start + warp * stretch, min(start + (warp + 1) * stretch, stop)
    highers, sames = 0, 0
    i = first + lane
    while i - lane < last:
        for u in range(AHEAD):
            places[u] = _order(line, row, min(i + u * WARP, stop - 1), past, sinks, recent, positions, word)
        for u in range(AHEAD):
            there = i + u * WARP < last
            highers += cuda.popc(votes(there and places[u] > cut))
            sames += cuda.popc(votes(there and places[u] == cut))
        i += AHEAD * WARP
    if lane == 0:
        above[warp], equal[warp] = highers, sames
    cuda.syncthreads()
    for w in range(warp):  # what the stretches before this one hold
        higher += above[w]
        same += equal[w]
    earlier = (1 << lane) - 1
    i = first + lane
    while i - lane < last:
        for u in range(AHEAD):
            places[u] = _order(line, row, min(i + u * WARP, stop - 1), past, sinks, recent, positions, word)
        for u in range(AHEAD):
            there = i + u * WARP < last
            is_higher, is_same = there and places[u] > cut, there and places[u] == cut
            highers, sames = votes(is_higher), votes(is_same)
            own, equals = higher + cuda.popc(highers & earlier), same + cuda.popc(sames & earlier)
            if is_higher:
                out[own + min(equals, need)] = i + u * WARP
            if is_same and equals < need:
                out[own + equals] = i + u * WARP
            higher += cuda.popc(highers)
            same += cuda.popc(sames)
        i += AHEAD * WARP


@device
def _gather_counts(counts, part, need, digits, sums, digit, seen):
    """Find a digit from the counts of all parts (P, pairs), two of which are in a word. How many are above it ->
    seen[0] in this part, seen[1] in the parts before it; how many are at it in the parts before -> seen[2]."""
    thread, parts = cuda.threadIdx.x, counts.shape[0]
    before = cuda.local.array(PAIRS, np.int64)
    for n in range(PAIRS):
        pair = n * THREADS + thread
        total, earlier, first = 0, 0, 0
        while first < parts:
            for u in range(AHEAD):
                p = first + u
                count = counts[min(p, parts - 1), pair]
                if p < parts:
                    total += count
                if p < part:
                    earlier += count
            first += AHEAD
        digits[2 * pair], digits[2 * pair + 1], before[n] = total & LOW, total >> 32, earlier
    if thread == 0:
        seen[0], seen[1], seen[2] = 0, 0, 0
    cuda.syncthreads()
    _find_digit(digits, sums, need, digit)
    for n in range(PAIRS):
        pair = n * THREADS + thread
        own = counts[part, pair]
        for half in range(2):
            mine, earlier = (own >> (32 * half)) & LOW, (before[n] >> (32 * half)) & LOW
            if 2 * pair + half > digit[0]:
                if mine > 0:
                    cuda.atomic.add(seen, 0, mine)
                if earlier > 0:
                    cuda.atomic.add(seen, 1, earlier)
            if 2 * pair + half == digit[0]:
                seen[2] = earlier
    cuda.syncthreads()


@kernel(threads=THREADS)
def _count(scores, first, step, ends, sinks, recent, positions, budget, span, level, counts, above, found, word):
    digits = cuda.shared.array(DIGITS, np.int32)
    sums = cuda.shared.array(THREADS, np.int32)
    digit = cuda.shared.array(2, np.int64)
    seen = cuda.shared.array(3, np.int32)
    part, row, chunk, thread = cuda.blockIdx.x, cuda.blockIdx.y, cuda.blockIdx.z, cuda.threadIdx.x
    past, line = row_end(first + chunk * step, ends), scores[chunk, row]
    prefix, need, higher = 0, budget, 0
    if level > 0:
        prefix, need = found[level - 1, chunk, row, 0], found[level - 1, chunk, row, 1]
        _gather_counts(counts[level - 1, chunk, row], part, need, digits, sums, digit, seen)
        prefix, need, higher = (prefix << DIGIT) | digit[0], digit[1], above[level - 1, chunk, row, part] + seen[0]
    start, stop = part * span, min((part + 1) * span, past)
    _count_digits(line, row, start, stop, past, sinks, recent, positions, level, prefix, digits, word)
    own = counts[level, chunk, row, part]
    for n in range(PAIRS):
        pair = n * THREADS + thread
        own[pair] = digits[2 * pair] | np.int64(digits[2 * pair + 1]) << 32
    if thread == 0:
        above[level, chunk, row, part] = higher
        if part == 0:
            found[level, chunk, row, 0], found[level, chunk, row, 1] = prefix, need


@kernel(threads=THREADS)
def _write(scores, first, step, ends, sinks, recent, positions, span, counts, above, found, out, word):
    digits = cuda.shared.array(DIGITS, np.int32)
    sums = cuda.shared.array(THREADS, np.int32)
    digit = cuda.shared.array(2, np.int64)
    seen = cuda.shared.array(3, np.int32)
    highers = cuda.shared.array(WARPS, np.int32)
    equal = cuda.shared.array(WARPS, np.int32)
    part, row, chunk = cuda.blockIdx.x, cuda.blockIdx.y, cuda.blockIdx.z
    past, line = row_end(first + chunk * step, ends), scores[chunk, row]
    level = LEVELS - 1
    _gather_counts(counts[level, chunk, row], part, found[level, chunk, row, 1], digits, sums, digit, seen)
    cut = (found[level, chunk, row, 0] << (32 - DIGIT * level)) | digit[0]
    higher = np.int64(seen[1])
    for p in range(part):
        higher += above[level, chunk, row, p]
    _write_columns(
        line, row, part * span, min((part + 1) * span, past), past, sinks, recent, positions, cut, digit[1], higher,
        np.int64(seen[2]), highers, equal, out[chunk, row], word,
    )  # fmt: skip
