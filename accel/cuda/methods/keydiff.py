"""KeyDiff on the device: -cos(k_i, a), a the mean direction of the keys, in two readings of them.

Parts of the keys are summed by a block each, in float64, and the parts in their order. What limits it: memory.
"""

from __future__ import annotations

import numpy as np
from numba import cuda

from accel.cuda.linear.lengths import rate_of, with_rates
from accel.cuda.ptx.numbers import wide
from accel.cuda.runtime.arrays import F32, F64, Array, empty
from accel.cuda.runtime.kernels import blocks, kernel
from accel.cuda.runtime.reduce import THREADS, block_sum
from accel.shared.lazy import Keys
from reference import contract

PART = 256  # keys that a block sums
MOST_DIM = 512


def keydiff_scores(k: Array | Keys, *, anchor: str = "normalised") -> Array:
    """-cos(k_i, a) with a the mean of the unit keys, or of the "raw" ones: k (KV, S, D) -> (KV, S), higher = keep."""
    sizes = contract.keydiff_scores(k, anchor)
    keys, scores = with_rates(k), empty((sizes["KV"], sizes["S"]), F32)
    if scores.size:
        parts = blocks(sizes["S"], PART)
        sums, towards = empty((parts, sizes["KV"], sizes["D"]), F64), empty((sizes["KV"], sizes["D"]), F32)
        _sum[(parts, sizes["KV"]), THREADS](keys.held, keys.rates, int(anchor == "raw"), sums)
        _anchor[sizes["KV"], THREADS](sums, towards)
        grid = blocks(sizes["S"], THREADS), sizes["KV"]
        _score[grid, THREADS](keys.held, keys.rates, towards, scores)
    return scores


@kernel
def _sum(k, rates, raw, sums):
    part, head, d = cuda.blockIdx.x, cuda.blockIdx.y, cuda.threadIdx.x
    start, stop = part * PART, min((part + 1) * PART, k.shape[1])
    while d < k.shape[2]:
        total = 0.0
        for j in range(start, stop):
            rate = 1.0
            if raw == 0:
                rate = np.float64(rates[head, j])
            total += np.float64(wide(k[head, j, d])) * rate
        sums[part, head, d] = total
        d += THREADS


@kernel
def _anchor(sums, towards):
    memory = cuda.shared.array(THREADS, np.float64)
    whole = cuda.shared.array(MOST_DIM, np.float64)
    head, thread = cuda.blockIdx.x, cuda.threadIdx.x
    squares = 0.0
    d = thread
    while d < towards.shape[1]:
        total = 0.0
        for part in range(sums.shape[0]):
            total += sums[part, head, d]
        whole[d] = total
        squares += total * total
        d += THREADS
    rate = rate_of(block_sum(squares, memory))
    d = thread
    while d < towards.shape[1]:
        towards[head, d] = whole[d] * rate
        d += THREADS


@kernel
def _score(k, rates, towards, scores):
    j, head = cuda.blockIdx.x * cuda.blockDim.x + cuda.threadIdx.x, cuda.blockIdx.y
    if j < k.shape[1]:
        along = np.float32(0)
        for d in range(k.shape[2]):
            along += wide(k[head, j, d]) * towards[head, d]
        scores[head, j] = -along * rates[head, j]
