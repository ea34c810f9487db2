"""Rows of scores that one block ranks, in one launch, by digits of 8 bits.

Scores are read once, in whole lines, and change hands in shared memory, so that each thread has some neighbouring
columns in its registers: what it keeps of them stands behind what the threads before it keep, and leaves the block in
whole lines again. Most whole numbers have 32 bits, because a GPU computes with those. What limits it: the instructions
of one multiprocessor.
"""

from __future__ import annotations

import math
from functools import cache

import numpy as np
from numba import cuda

from accel.cuda.ptx.numbers import ordered, upper, wide
from accel.cuda.ptx.simulator import SIMULATED
from accel.cuda.ptx.warp import warp_sum, warp_sum_to
from accel.cuda.runtime.device import machine
from accel.cuda.runtime.errors import NAN_SCORE, note
from accel.cuda.runtime.kernels import Kernel, device, kernel
from accel.cuda.runtime.reduce import WARP

# Threads of a block, and columns of each at most: odd, three times what it asks for at once, and they fit in registers
SIZES = ((2, 3), (2, 9)) if SIMULATED else ((1024, 15), (512, 69))
MOST_WARPS, OF_WARPS = 32, 2 if SIMULATED else 1  # of a block, and their sums that a thread adds up
BYTE, COUNTERS = 256, 512  # digits of 8 bits, and counters of two levels' digits
OF_LANE = BYTE // WARP  # of them that a thread of one warp adds up
OWN_SHARED = 4096  # bytes besides the scores
NONE, FIRST, LAST = np.uint32(0), np.uint32(1), np.uint32(0xFFFFFFFF)


def fitting(columns: int) -> tuple[Kernel, int] | None:
    """The kernel for rows of so many columns and the threads of its block, where their scores fit in shared memory."""
    for threads, held in SIZES:
        if columns <= threads * held and (SIMULATED or 4 * threads * held + OWN_SHARED <= machine().shared):
            return keeper(threads, held), threads
    return None


@device
def row_end(past, ends):
    """How many columns of a row there are: ends[0], where it says."""
    return ends[0] if ends.shape[0] > 0 else past


@device
def place_of(x, newest, sinks, positions, row, i):
    """A score's place among all float32, as 1 … 2³² - 1: -0 and 0 are one, what is protected is the last."""
    place = max(ordered(x), FIRST)
    if newest or (sinks > 0 and positions[row, i] < sinks):
        place = LAST
    return place


@device
def _sum_before(own, memory):
    """The sum of what the block's threads before this one have; `memory` is a shared array, a number for each warp."""
    warp, lane = cuda.threadIdx.x // WARP, cuda.threadIdx.x % WARP
    upto = warp_sum_to(own)
    if lane == WARP - 1:
        memory[warp] = upto
    cuda.syncthreads()
    others = 0
    for n in range(OF_WARPS):
        if lane + n * WARP < warp:
            others += memory[np.uint32(lane + n * WARP)]
    return warp_sum(others) + upto - own


@device
def _next_digit(counters, first, cut, shift, need, found):
    """One warp: the digit at which the count from above reaches `need`, added to the cut, and how many are needed of
    it -> found[0 … 1]. Where all are, the cut is just below them, and none is needed of it. Digit d was counted in
    counters[first + d]."""
    counts = cuda.local.array(OF_LANE, np.int32)
    highest = BYTE - 1 - cuda.threadIdx.x * OF_LANE  # of this thread
    total = 0
    for n in range(OF_LANE):
        counts[n] = counters[np.uint32(first + highest - n)]
        total += counts[n]
    higher = warp_sum_to(total) - total
    for n in range(OF_LANE):
        place, still = cut | (highest - n) << shift, need - higher
        if still > 0 and still <= counts[n]:
            if still == counts[n] and place > 0:
                place, still = place - 1, 0
            found[0], found[1] = place, still
        higher += counts[n]


@cache
def keeper(THREADS: int, HELD: int) -> Kernel:
    """The kernel for rows of up to HELD columns for each of so many threads."""
    LONGEST, ASKED = THREADS * HELD, HELD // 3

    @kernel(name="keep_short" if SIZES[0][1] == HELD else "keep", threads=THREADS, shared=4 * LONGEST)
    def keep(scores, first, step, ends, sinks, recent, positions, out, word):
        memory = cuda.shared.array(LONGEST if SIMULATED else 0, np.uint32)  # places, and in the end columns
        counters = cuda.shared.array(COUNTERS, np.int32)
        sums = cuda.shared.array(MOST_WARPS, np.int32)
        found = cuda.shared.array(3, np.uint32)  # the cut, how many are needed of it, columns of a thread
        asked = cuda.local.array(ASKED, np.float32)
        places = cuda.local.array(HELD, np.uint32)
        row, chunk, thread = cuda.blockIdx.y, cuda.blockIdx.z, cuda.threadIdx.x
        past, line, kept = row_end(first + chunk * step, ends), scores[chunk, row], out[chunk, row]
        wrong = False
        i = thread
        while i < past:
            left, free = np.int32(past - i), np.int32(max(past - recent, 0) - i)
            for u in range(ASKED):
                asked[u] = wide(line[np.uint32(i + (u * THREADS if u * THREADS < left else 0))])
            for u in range(ASKED):
                there = np.uint32(i + (u * THREADS if u * THREADS < left else 0))
                wrong = wrong or math.isnan(asked[u])
                place = place_of(asked[u], u * THREADS >= free, sinks, positions, row, there)
                memory[np.uint32(i + u * THREADS)] = place  # beyond the row's end too, where nobody looks
            i += ASKED * THREADS
        if wrong:
            note(word, NAN_SCORE)
        for n in range(-(-COUNTERS // THREADS)):
            if thread + n * THREADS < COUNTERS:
                counters[np.uint32(thread + n * THREADS)] = 0
        own = np.int32((past + THREADS - 1) // THREADS | 1)  # columns of a thread: odd, so that banks differ in a warp
        if thread == 0:
            found[2] = own
        cuda.syncthreads()
        start = np.int32(thread * own)
        count = np.int32(min(max(past - start, 0), own))
        for n in range(HELD):
            places[n] = memory[np.uint32(start + n)]
            if n >= count:
                places[n] = NONE
        cut, need = np.uint32(0), np.uint32(kept.shape[0])
        shift, more = np.uint32(24), True
        while more:
            half, limit = (shift & 8) * (BYTE // 8), upper(LAST, 24 - shift)
            for n in range(HELD):
                rest = places[n] ^ cut  # without the digits found, if it has them
                if rest <= limit:
                    cuda.atomic.add(counters, np.uint32(half + upper(rest, shift)), 1)
            cuda.syncthreads()
            if thread < WARP:
                _next_digit(counters, half, cut, shift, need, found)
            else:
                for n in range(-(-BYTE // (THREADS - WARP))):
                    i = thread - WARP + n * (THREADS - WARP)
                    if i < BYTE:
                        counters[np.uint32(BYTE - half + i)] = 0
            cuda.syncthreads()
            cut, need = found[0], found[1]
            more = need > 0 and shift > 0
            if more:
                shift = np.uint32(shift - 8)
        tally = np.int32(0)
        for n in range(HELD):  # how many are above the cut and, 16 bits further up, at it
            if places[n] > cut:
                tally = np.int32(tally + 1)
            if places[n] == cut:
                tally = np.int32(tally + 0x10000)
        before = _sum_before(tally, sums)
        same = np.uint32((before >> 16) & 0xFFFF)
        at = np.uint32((before & 0xFFFF) + min(same, need))
        start = np.int32(thread * found[2])  # looked up, or the compiler would hold start + n in registers all along
        for n in range(HELD):
            if places[n] > cut or (places[n] == cut and same < need):
                memory[at] = start + n
                at = np.uint32(at + 1)
            if places[n] == cut:
                same = np.uint32(same + 1)
        cuda.syncthreads()
        i = thread
        while i < kept.shape[0]:
            kept[np.uint32(i)] = memory[np.uint32(i)]
            i += THREADS

    return keep
