"""FastForward's predictor: which neurons will matter to a block.

    a = softmax(q_pred · Xᵀ / √E) · X,   h = ReLU(a W1),   s = h W2

Pooling and the narrow layer are little work, which one core does in one go for a block; W2, whose reading is the limit,
is shared out by columns.
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
    return block_scores(x, max(len(x), 1), predictor)[0]


def block_scores(x: np.ndarray, block: int, predictor: Predictor) -> np.ndarray:
    """The scores of each `block` tokens of x (T, E), the last perhaps fewer: (B, F) float32."""
    sizes = contract.predictor_scores(x, predictor)
    tokens, width, rank, neurons = (sizes[axis] for axis in ("T", "E", "r", "F"))
    blocks, high = -(-tokens // block), padded(rank, LANES)
    scores = np.zeros((blocks, neurons), np.float32)
    if rank == 0 or width == 0:
        return scores
    x, w1, w2 = readable(x), readable(predictor.w1), readable(predictor.w2)
    query = np.ascontiguousarray(predictor.q_pred, np.float32)
    hidden = np.zeros((blocks, high), np.float32)
    own, workers = padded(block, LANES) + 3 * padded(width, LANES), min(THREADS, blocks)
    memory = scratch.take(own * workers)
    scale = LOG2E / math.sqrt(width)
    _pool(
        *matrix(x), address(query), *matrix(w1), address(hidden), address(memory), 4 * own, tokens, block, width, rank,
        scale, workers=workers,
    )  # fmt: skip
    scratch.give(memory)
    span = max(256, -(-blocks * neurons // (4 * THREADS) // LANES) * LANES)  # neurons per item
    _predict(address(hidden), *matrix(w2), address(scores), blocks, rank, neurons, span)
    return scores


@kernel
def _pool(
    task, worker, x, x_row, x_kind, query, w1, w1_row, w1_kind, hidden, memory, size, tokens, block, width, rank, scale
):
    """ReLU(a W1) of every block, (B, rank padded); an item is a block."""
    wide, mine = padded(width, LANES), memory + size * worker
    asked, line, pooled, shares = mine, mine + 4 * wide, mine + 8 * wide, mine + 12 * wide
    averages = carray(floats_at(pooled), wide)
    widen(query, 0, width, asked, real(scale))
    while True:
        n = fetch_add(task, 1)
        if n * block >= tokens:
            return
        here, first = min(block, tokens - n * block), x + n * block * x_row
        high = padded(here, LANES)
        weights, to = carray(floats_at(shares), high), hidden + 4 * n * padded(rank, LANES)
        weights[here:] = -np.inf
        for t in range(here):
            widen(first + t * x_row, x_kind, width, line, 1.0)
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
        for t in range(here):
            add_row(first + t * x_row, x_kind, width, weights[t] * rate, pooled)
        for e in range(width):
            add_row(w1 + e * w1_row, w1_kind, rank, averages[e], to)
        found = carray(floats_at(to), rank)
        for r in range(rank):
            found[r] = max(found[r], np.float32(0.0))


@kernel
def _predict(task, worker, hidden, w2, w2_row, w2_kind, scores, blocks, rank, neurons, span):
    """An item is a span of one block's neurons."""
    high, items = padded(rank, LANES), (neurons + span - 1) // span
    while True:
        item = fetch_add(task, 1)
        if item >= blocks * items:
            return
        n, first = item // items, item % items * span
        here, weights = min(span, neurons - first), carray(floats_at(hidden + 4 * n * high), rank)
        for r in range(rank):
            if weights[r] != 0.0:
                at = w2 + r * w2_row + first * number_size(w2_kind)
                add_row(at, w2_kind, here, weights[r], scores + 4 * (n * neurons + first))
