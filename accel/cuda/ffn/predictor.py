"""FastForward's predictor: which neurons a block of tokens will need.

    a = softmax(q_pred·Xᵀ / √E) X,   s = ReLU(a W1) W2

Matrices are read once, a thread for each column of PART rows. What the parts find is added up in their order by every
block that needs some of it, so that no launch does only that but the last. What limits it: the launches, then memory.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numba import cuda

from accel.cuda.ptx.numbers import wide
from accel.cuda.runtime.arrays import F32, Array, empty
from accel.cuda.runtime.kernels import blocks, kernel
from accel.cuda.runtime.reduce import THREADS, block_max, block_sum
from accel.cuda.runtime.views import to_numpy
from reference import contract
from reference import fastforward as meaning

PART = 32  # rows of a matrix, or tokens, that a thread goes through
SHARES = max(THREADS // PART, 1)  # threads that add up the parts of one number
ADDED = PART * SHARES
AHEAD = 8  # numbers that a thread asks for at once


def predictor_scores(x: Array, predictor: Any) -> Array:
    """s from a block x (T, E) of at least one token -> (F,) float32."""
    sizes = contract.predictor_scores(x, predictor)
    logits, out = empty((sizes["T"],), F32), empty((sizes["F"],), F32)
    _logits[sizes["T"], THREADS](x, predictor.q_pred, logits)
    pooled = empty((blocks(sizes["T"], PART), sizes["E"]), F32)
    _pool[(blocks(sizes["E"], THREADS), len(pooled)), THREADS](x, logits, pooled)
    hidden = _through(pooled, predictor.w1, positive=False)
    scores = _through(hidden, predictor.w2, positive=True)
    _add_parts[blocks(sizes["F"], THREADS), THREADS](scores, out)
    return out


def _through(given: Array, matrix: Array, *, positive: bool) -> Array:
    """Parts (P, in) of a vector, negative sums as 0 if so wanted, times a matrix (in, out) -> parts (Q, out)."""
    ins, outs = matrix.shape
    sums = empty((blocks(ins, PART), outs), F32)
    _multiply[(blocks(outs, THREADS), len(sums)), THREADS](given, int(positive), matrix, sums)
    return sums


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


@kernel
def _pool(x, logits, sums):
    memory = cuda.shared.array(THREADS, np.float32)
    weights = cuda.shared.array(PART, np.float32)
    i, thread = cuda.blockIdx.x * cuda.blockDim.x + cuda.threadIdx.x, cuda.threadIdx.x
    tokens, first = x.shape[0], cuda.blockIdx.y * PART
    peak, total = np.float32(-np.inf), np.float32(0)
    t = thread
    while t < tokens:
        if not logits[t] <= peak:
            peak = logits[t]
        t += THREADS
    peak = block_max(peak, memory)
    t = thread
    while t < tokens:
        total += math.exp(logits[t] - peak)
        t += THREADS
    total = block_sum(total, memory)
    t = thread
    while t < PART:
        weights[t] = 0
        if first + t < tokens:
            weights[t] = math.exp(logits[first + t] - peak) / total
        t += THREADS
    cuda.syncthreads()
    if i < x.shape[1]:
        column, pooled = x[:, i], np.float32(0)
        for turn in range(PART // AHEAD):
            for u in range(AHEAD):  # asked for together, or each would be waited for
                t = turn * AHEAD + u
                y = wide(column[min(first + t, tokens - 1)])
                if first + t < tokens:
                    pooled += weights[t] * y
        sums[cuda.blockIdx.y, i] = pooled


@kernel
def _multiply(given, positive, matrix, sums):
    added = cuda.shared.array(ADDED, np.float32)
    n, part, thread = cuda.blockIdx.x * cuda.blockDim.x + cuda.threadIdx.x, cuda.blockIdx.y, cuda.threadIdx.x
    last, parts = matrix.shape[0] - 1, given.shape[0]
    item = thread
    while item < ADDED:  # SHARES threads for each of the PART numbers, which are neighbours in memory
        share, i = item // PART, min(part * PART + item % PART, last)
        total = np.float32(0)
        p = share
        while p < parts:
            for u in range(AHEAD):
                x = given[min(p + u * SHARES, parts - 1), i]
                if p + u * SHARES < parts:
                    total += x
            p += AHEAD * SHARES
        added[item] = total
        item += THREADS
    cuda.syncthreads()
    if n < matrix.shape[1]:
        column = matrix[:, n]
        total = np.float32(0)
        for turn in range(PART // AHEAD):
            for u in range(AHEAD):
                own = turn * AHEAD + u
                weight = wide(column[min(part * PART + own, last)])
                x = np.float32(0)
                for share in range(SHARES):
                    x += added[share * PART + own]
                if positive != 0:
                    x = max(x, np.float32(0))
                if part * PART + own <= last:
                    total += x * weight
        sums[part, n] = total


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
