"""KeyDiff on the device: -cos(k_i, a), a the mean direction of the keys, in two readings of them.

Parts of the keys are summed by a block each, in float64, and the parts in their order. For the scores a block brings
its keys to shared memory piece by piece, neighbouring threads reading neighbouring numbers, and then every thread has a
key of its own. A thread asks for several numbers before it looks at the first. Keys of 16 bits are read in pieces of 16
bytes instead (keydiff_wide.py). What limits it: memory.
"""

from __future__ import annotations

import numpy as np
from numba import cuda

from accel.cuda.linear.inverse_norms import rate_of, with_rates
from accel.cuda.methods import keydiff_wide
from accel.cuda.ptx.numbers import wide
from accel.cuda.ptx.warp import warp_sum
from accel.cuda.runtime.arrays import F32, F64, Array, empty
from accel.cuda.runtime.kernels import blocks, kernel
from accel.cuda.runtime.reduce import THREADS, WARP
from accel.shared.lazy import Keys
from reference import contract

PART, PARTS = 256, 64  # least keys that a block sums, and most blocks of a head
PIECE = 32  # numbers of each key that are in shared memory at a time
PITCH = PIECE + 1  # so that a column of them lies in different banks
AHEAD = 8  # numbers that a thread asks for at once
SHARES = 8  # threads that add up the parts of one number
ADDERS = SHARES * THREADS
MOST_DIM = 512


def keydiff_scores(k: Array | Keys, *, anchor: str = "normalised") -> Array:
    """-cos(k_i, a) with a the mean of the unit keys, or of the "raw" ones: k (KV, S, D) -> (KV, S), higher = keep."""
    sizes = contract.keydiff_scores(k, anchor)
    keys, scores = with_rates(k), empty((sizes["KV"], sizes["S"]), F32)
    if scores.size:
        parts = min(blocks(sizes["S"], PART), PARTS)
        each, raw = blocks(sizes["S"], parts), anchor == "raw"
        sums = empty((parts, sizes["KV"], sizes["D"]), F64)
        if keydiff_wide.fits(keys.held):
            keydiff_wide.sum_keys(keys.held, keys.rates, raw, each, sums)
            keydiff_wide.score_keys(keys.held, keys.rates, sums, scores)
        else:
            towards, grid = empty((sizes["KV"], sizes["D"]), F32), (blocks(sizes["S"], THREADS), sizes["KV"])
            _sum[(parts, sizes["KV"]), THREADS](keys.held, keys.rates, int(raw), each, sums)
            _anchor[sizes["KV"], ADDERS](sums, towards)
            _score[grid, THREADS](keys.held, keys.rates, towards, scores)
    return scores


@kernel
def _sum(k, rates, raw, each, sums):
    part, head, d = cuda.blockIdx.x, cuda.blockIdx.y, cuda.threadIdx.x
    start, stop = part * each, min((part + 1) * each, k.shape[1])
    while d < k.shape[2]:
        total = 0.0
        j = start
        while j < stop:
            for u in range(AHEAD):
                i = min(j + u, stop - 1)
                rate = 1.0
                if raw == 0:
                    rate = np.float64(rates[head, i])
                x = np.float64(wide(k[head, i, d])) * rate
                if j + u < stop:
                    total += x
            j += AHEAD
        sums[part, head, d] = total
        d += THREADS


@kernel(threads=ADDERS)
def _anchor(sums, towards):
    memory = cuda.shared.array(ADDERS, np.float64)
    whole = cuda.shared.array(MOST_DIM, np.float64)
    head, thread = cuda.blockIdx.x, cuda.threadIdx.x
    dim, parts = towards.shape[1], sums.shape[0]
    d, share = thread % THREADS, thread // THREADS
    squares = 0.0
    while d - thread % THREADS < dim:
        total = 0.0
        part = share
        while part < parts:
            for u in range(AHEAD):
                x = sums[min(part + u * SHARES, parts - 1), head, min(d, dim - 1)]
                if part + u * SHARES < parts:
                    total += x
            part += AHEAD * SHARES
        memory[thread] = total
        cuda.syncthreads()
        if share == 0 and d < dim:
            for other in range(1, SHARES):
                total += memory[other * THREADS + thread]
            whole[d] = total
            squares += total * total
        cuda.syncthreads()
        d += THREADS
    squares = warp_sum(squares)
    if thread % WARP == 0:
        memory[thread // WARP] = squares
    cuda.syncthreads()
    squares = 0.0
    for warp in range(THREADS // WARP):
        squares += memory[warp]
    rate = rate_of(squares)
    d = thread
    while d < dim:
        towards[head, d] = whole[d] * rate
        d += ADDERS


@kernel
def _score(k, rates, towards, scores):
    piece = cuda.shared.array((THREADS, PITCH), np.float32)
    first, head, thread = cuda.blockIdx.x * THREADS, cuda.blockIdx.y, cuda.threadIdx.x
    along = np.float32(0)
    start = 0
    while start < k.shape[2]:
        width = min(PIECE, k.shape[2] - start)
        cuda.syncthreads()
        for n in range(PIECE):
            item = n * THREADS + thread
            row, d = item // PIECE, item % PIECE
            if d < width:
                piece[row, d] = wide(k[head, min(first + row, k.shape[1] - 1), start + d])
        cuda.syncthreads()
        for d in range(width):
            along += piece[thread, d] * towards[head, start + d]
        start += PIECE
    if first + thread < k.shape[1]:
        scores[head, first + thread] = -along * rates[head, first + thread]
