"""FastForward's predictor: which neurons a block of tokens will need.

    a = softmax(q_pred·Xᵀ / √E) X,   s = ReLU(a W1) W2

Both matrices are read once, a thread for each column of PART rows. The blocks of W1 average their columns of x for
themselves. What the parts find is added up in their order, by every block of W2 that needs some of it, and at the end.
What limits it: the launches, then memory.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numba import cuda

from accel.cuda.ptx.numbers import wide
from accel.cuda.ptx.simulator import SIMULATED
from accel.cuda.runtime.arrays import F32, Array, empty
from accel.cuda.runtime.kernels import blocks, device, kernel
from accel.cuda.runtime.reduce import THREADS, block_max, block_sum
from accel.cuda.runtime.views import to_numpy
from reference import contract
from reference import fastforward as meaning

PART = 2 if SIMULATED else 32  # rows of a matrix that a thread goes through
MANY = 2 if SIMULATED else 512  # threads of a block of W2
SHARES, MANY_SHARES = THREADS // PART, MANY // PART  # threads that add up one number of a part
AHEAD = 8  # numbers that a thread asks for at once


def predictor_scores(x: Array, predictor: Any) -> Array:
    """s from a block x (T, E) of at least one token -> (F,) float32."""
    sizes = contract.predictor_scores(x, predictor)
    logits, out = empty((sizes["T"],), F32), empty((sizes["F"],), F32)
    hidden = empty((blocks(sizes["E"], PART), predictor.w1.shape[1]), F32)
    scores = empty((blocks(hidden.shape[1], PART), sizes["F"]), F32)
    _logits[sizes["T"], THREADS](x, predictor.q_pred, logits)
    _pool[(blocks(hidden.shape[1], THREADS), len(hidden)), THREADS](x, logits, predictor.w1, hidden)
    _multiply[(blocks(sizes["F"], MANY), len(scores)), MANY](hidden, predictor.w2, scores)
    _add_parts[blocks(sizes["F"], THREADS), THREADS](scores, out)
    return out


def layer_densities(importance: Any, density: float) -> np.ndarray:
    """Each layer's share of its neurons, as `reference.layer_densities`, which has L numbers to work on: on the
    host."""
    return meaning.layer_densities(to_numpy(importance) if isinstance(importance, Array) else importance, density)


@kernel
def _logits(x, query, logits):
    memory = cuda.shared.array(THREADS, np.float32)
    t, thread = cuda.blockIdx.x, cuda.threadIdx.x
    along = np.float32(0)
    i = thread
    while i < x.shape[1]:
        along += wide(x[t, i]) * wide(query[i])
        i += THREADS
    along = block_sum(along, memory)
    if thread == 0:
        logits[t] = along / math.sqrt(np.float32(x.shape[1]))


@device
def _times(vector, matrix, first, n):
    """PART numbers times as many rows of a matrix from `first` on, at column n."""
    column, total = matrix[:, n], np.float32(0)
    if first + PART <= matrix.shape[0]:
        for i in range(PART):
            total += vector[i] * wide(column[first + i])
    else:
        for i in range(matrix.shape[0] - first):
            total += vector[i] * wide(column[first + i])
    return total


@kernel
def _pool(x, logits, matrix, sums):
    memory = cuda.shared.array(THREADS, np.float32)
    pooled = cuda.shared.array(PART, np.float32)
    n, thread = cuda.blockIdx.x * THREADS + cuda.threadIdx.x, cuda.threadIdx.x
    tokens, first = x.shape[0], cuda.blockIdx.y * PART
    peak, weights = np.float32(-np.inf), np.float32(0)
    t = thread
    while t < tokens:
        if not logits[t] <= peak:
            peak = logits[t]
        t += THREADS
    peak = block_max(peak, memory)
    t = thread
    while t < tokens:
        weights += math.exp(logits[t] - peak)
        t += THREADS
    weights = block_sum(weights, memory)
    column, own = x[:, min(first + thread % PART, x.shape[1] - 1)], np.float32(0)
    t = thread // PART
    while t < tokens:
        for u in range(AHEAD):  # asked for together, or each would be waited for
            at = min(t + u * SHARES, tokens - 1)
            part = math.exp(logits[at] - peak) * wide(column[at])
            if t + u * SHARES < tokens:
                own += part
        t += AHEAD * SHARES
    memory[thread] = own
    cuda.syncthreads()
    if thread < PART:
        for share in range(1, SHARES):
            own += memory[share * PART + thread]
        pooled[thread] = own / weights
    cuda.syncthreads()
    if n < matrix.shape[1]:
        sums[cuda.blockIdx.y, n] = _times(pooled, matrix, first, n)


@kernel(threads=MANY)
def _multiply(given, matrix, sums):
    memory = cuda.shared.array(MANY, np.float32)
    vector = cuda.shared.array(PART, np.float32)
    n, thread = cuda.blockIdx.x * MANY + cuda.threadIdx.x, cuda.threadIdx.x
    first, parts = cuda.blockIdx.y * PART, given.shape[0]
    i, own = min(first + thread % PART, matrix.shape[0] - 1), np.float32(0)
    p = thread // PART
    while p < parts:
        for u in range(AHEAD):
            part = given[min(p + u * MANY_SHARES, parts - 1), i]
            if p + u * MANY_SHARES < parts:
                own += part
        p += AHEAD * MANY_SHARES
    memory[thread] = own
    cuda.syncthreads()
    if thread < PART:
        for share in range(1, MANY_SHARES):
            own += memory[share * PART + thread]
        vector[thread] = max(own, np.float32(0))
    cuda.syncthreads()
    if n < matrix.shape[1]:
        sums[cuda.blockIdx.y, n] = _times(vector, matrix, first, n)


@kernel
def _add_parts(sums, out):
    n = cuda.blockIdx.x * cuda.blockDim.x + cuda.threadIdx.x
    if n < out.shape[0]:
        last = sums.shape[0] - 1
        total = np.float32(0)
        part = 0
        while part <= last:
            for u in range(AHEAD):
                x = sums[min(part + u, last), n]
                if part + u <= last:
                    total += x
            part += AHEAD
        out[n] = total
