"""FastForward's predictor: which neurons will matter to a block.

    a = softmax(q_pred · Xᵀ / √E) · X,   h = ReLU(a W1),   s = h W2

Pooling and the narrow layer are little work, which one core does in one go; W2, whose reading is the limit, is shared
out by columns.
"""

from __future__ import annotations

import math

import numpy as np

from accel.cpu.linear.rows import add_row, number_size, padded, product, widen
from accel.cpu.runtime.arrays import address, matrix, readable
from accel.cpu.runtime.kernels import kernel
from accel.cpu.runtime.memory import scratch
from accel.cpu.runtime.team import THREADS
from accel.cpu.simd import (
    LANES,
    LOG2E,
    carray,
    exp2,
    fetch_add,
    floats_at,
    highest,
    larger,
    load,
    real,
    splat,
    store,
    total,
)
from reference import contract
from reference.predictor import Predictor


def predictor_scores(x: np.ndarray, predictor: Predictor) -> np.ndarray:
    """s = ReLU(a W1) W2 with a the block pooled by attention to q_pred: x (T, E) of some tokens -> (F,) float32."""
    sizes = contract.predictor_scores(x, predictor)
    tokens, width, rank, neurons = (sizes[axis] for axis in ("T", "E", "r", "F"))
    scores = np.zeros(neurons, np.float32)
    if rank == 0 or width == 0:
        return scores
    x, w1, w2 = readable(x), readable(predictor.w1), readable(predictor.w2)
    query = np.ascontiguousarray(predictor.q_pred, np.float32)
    hidden = np.zeros(padded(rank, LANES), np.float32)
    memory = scratch.take(padded(tokens, LANES) + 3 * padded(width, LANES))
    scale = LOG2E / math.sqrt(width)
    _pool(
        *matrix(x), address(query), *matrix(w1), address(hidden), address(memory), tokens, width, rank, scale, workers=1
    )
    scratch.give(memory)
    span = max(256, -(-neurons // (4 * THREADS) // LANES) * LANES)  # neurons per item
    _predict(address(hidden), *matrix(w2), address(scores), rank, neurons, span)
    return scores


@kernel
def _pool(task, worker, x, x_row, x_kind, query, w1, w1_row, w1_kind, hidden, memory, tokens, width, rank, scale):
    wide, high = padded(width, LANES), padded(tokens, LANES)
    asked, line, pooled = memory, memory + 4 * wide, memory + 8 * wide
    shares = memory + 12 * wide
    weights, averages = carray(floats_at(shares), high), carray(floats_at(pooled), wide)
    widen(query, 0, width, asked, real(scale))
    weights[tokens:] = -np.inf
    for t in range(tokens):
        widen(x + t * x_row, x_kind, width, line, 1.0)
        weights[t] = product(asked, line, wide)
    top = load(shares)
    for i in range(LANES, high, LANES):
        top = larger(top, load(shares + 4 * i))
    peak, sums = splat(highest(top)), splat(np.float32(0.0))
    for i in range(0, high, LANES):
        share = exp2(load(shares + 4 * i) - peak)
        store(shares + 4 * i, share)
        sums = sums + share
    rate = np.float32(1.0) / total(sums)
    averages[:] = 0.0
    for t in range(tokens):
        add_row(x + t * x_row, x_kind, width, weights[t] * rate, pooled)
    for e in range(width):
        add_row(w1 + e * w1_row, w1_kind, rank, averages[e], hidden)
    found = carray(floats_at(hidden), rank)
    for r in range(rank):
        found[r] = max(found[r], np.float32(0.0))


@kernel
def _predict(task, worker, hidden, w2, w2_row, w2_kind, scores, rank, neurons, span):
    weights = carray(floats_at(hidden), rank)
    while True:
        first = fetch_add(task, 1) * span
        if first >= neurons:
            return
        here = min(span, neurons - first)
        for r in range(rank):
            if weights[r] != 0.0:
                at = w2 + r * w2_row + first * number_size(w2_kind)
                add_row(at, w2_kind, here, weights[r], scores + 4 * first)
