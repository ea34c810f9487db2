"""FastForward's predictor: which neurons a block of tokens will need.

    a = softmax(q_pred·Xᵀ / √E) X,   s = ReLU(a W1) W2

Matrices are read once, a thread for each column. What limits it: memory.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numba import cuda

from accel.cuda.ptx.numbers import wide
from accel.cuda.runtime.arrays import F32, Array, empty
from accel.cuda.runtime.kernels import blocks, kernel
from accel.cuda.runtime.reduce import THREADS, block_sum
from accel.cuda.runtime.views import to_numpy
from reference import contract
from reference import fastforward as meaning


def predictor_scores(x: Array, predictor: Any) -> Array:
    """s from a block x (T, E) of at least one token -> (F,) float32."""
    sizes = contract.predictor_scores(x, predictor)
    logits, pooled = empty((sizes["T"],), F32), empty((sizes["E"],), F32)
    hidden, scores = empty((sizes["r"],), F32), empty((sizes["F"],), F32)
    _logits[sizes["T"], THREADS](x, predictor.q_pred, logits)
    _pool[blocks(sizes["E"], THREADS), THREADS](x, logits, pooled)
    _through[blocks(sizes["r"], THREADS), THREADS](pooled, predictor.w1, 1, hidden)
    _through[blocks(sizes["F"], THREADS), THREADS](hidden, predictor.w2, 0, scores)
    return scores


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
def _pool(x, logits, pooled):
    i = cuda.blockIdx.x * cuda.blockDim.x + cuda.threadIdx.x
    if i < x.shape[1]:
        peak = logits[0]
        for t in range(1, x.shape[0]):
            peak = max(peak, logits[t])
        total, sums = np.float32(0), np.float32(0)
        for t in range(x.shape[0]):
            e = math.exp(logits[t] - peak)
            total += e
            sums += e * wide(x[t, i])
        pooled[i] = sums / total


@kernel
def _through(given, matrix, positive, out):
    n = cuda.blockIdx.x * cuda.blockDim.x + cuda.threadIdx.x
    if n < matrix.shape[1]:
        total = np.float32(0)
        for i in range(matrix.shape[0]):
            total += given[i] * wide(matrix[i, n])
        if positive != 0:
            total = max(total, np.float32(0))
        out[n] = total
