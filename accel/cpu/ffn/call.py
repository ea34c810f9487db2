"""The gated FFN, dense or on chosen neurons, in one pass over the weights.

    y = W_down[:, M] (act(W_gate[M] x) * (W_up[M] x)) + C2 act(C1 x)

How it tiles. An item is some neurons, fewer towards the end, so that all cores end together: their rows of W_gate and
W_up are multiplied with all tokens (products.py), activated, and turned into the left side of the second product, with
their rows of W_down, which adds to the worker's own y. The neurons are rows of a list of addresses, so choosing half of
them halves the work and nothing is gathered beforehand. W_down must lie transposed in memory, neuron by neuron, as
`prepare_weights` leaves it. FastForward's compensator is an item of its own. A few tokens (decoding) go neuron by
neuron: two products with its rows, one row of W_down added. The product is the limit for chunks, memory for decoding.
"""

from __future__ import annotations

import numpy as np
from numba import carray

from accel.cpu.ffn.activation import activated, gated
from accel.cpu.ffn.chunk import feed_chunk, places, row_of_sums
from accel.cpu.linear.few_tokens import FEW, STREAMS, add_few, multiply_few, rows_read, whole_vectors
from accel.cpu.linear.maps import MOST_TOKENS, linear, rows_per_item
from accel.cpu.linear.packing import STEP
from accel.cpu.linear.rows import add_row, copy_row, padded
from accel.cpu.runtime.arrays import address, matrix, readable
from accel.cpu.runtime.kernels import kernel
from accel.cpu.runtime.memory import fresh, scratch
from accel.cpu.runtime.team import THREADS
from accel.cpu.simd import F32, LANES, fetch_add, floats_at, load, store, words_at
from reference import contract
from reference.checks import listed
from reference.predictor import Compensator

MOST_NEURONS = 512  # per item


def gated_ffn(
    x: np.ndarray, w_gate: np.ndarray, w_up: np.ndarray, w_down: np.ndarray, *, act: str = "silu"
) -> np.ndarray:
    """W_down (act(W_gate x) * (W_up x)): x (T, E), w_gate and w_up (F, E), w_down (E, F) -> (T, E) float32."""
    contract.gated_ffn(x, w_gate, w_up, w_down, act)
    return _feed_forward(x, w_gate, w_up, w_down, None, act == "silu")


def sparse_ffn(
    x: np.ndarray,
    w_gate: np.ndarray,
    w_up: np.ndarray,
    w_down: np.ndarray,
    neurons: np.ndarray,
    *,
    compensator: Compensator | None = None,
    act: str = "silu",
) -> np.ndarray:
    """W_down[:, M] (act(W_gate[M] x) * (W_up[M] x)) + C2 act(C1 x): x (T, E), M = neurons (K,) ascending -> (T, E)."""
    sizes = contract.sparse_ffn(x, w_gate, w_up, w_down, neurons, compensator, act)
    listed("neurons", neurons, sizes["F"])
    chosen = np.ascontiguousarray(neurons, np.int64)
    return _feed_forward(x, w_gate, w_up, w_down, chosen, act == "silu", compensator)


def _feed_forward(
    x: np.ndarray,
    w_gate: np.ndarray,
    w_up: np.ndarray,
    w_down: np.ndarray,
    neurons: np.ndarray | None,
    silu: bool,
    compensator: Compensator | None = None,
) -> np.ndarray:
    """The FFN of x (T, E) by all neurons or by some (K,), plus the compensator's share: (T, E). Arguments fit."""
    (tokens, dim), count = x.shape, len(w_gate) if neurons is None else len(neurons)
    extra = 0 if compensator is None else len(compensator.c1)
    if tokens * dim * (count + extra) == 0:
        return np.zeros((tokens, dim), np.float32)
    if w_gate.dtype != w_up.dtype:
        w_gate, w_up = w_gate.astype(np.float32), w_up.astype(np.float32)  # one packing of x serves both
    gate, up, down = readable(w_gate), readable(w_up), readable(w_down.T)  # (F, E): a copy unless it lies so in memory
    chosen = 0 if neurons is None else address(neurons)
    weights = *matrix(gate), *matrix(up), *matrix(down), chosen
    y, began = fresh(tokens, dim), np.zeros(THREADS, np.int64)  # which workers had something to do
    if tokens <= FEW:
        wide = whole_vectors(x)
        row, each = 4 * wide.shape[1], padded(rows_read(gate.strides[0]), LANES)  # neurons per item
        memory = scratch.take(THREADS * (2 * STREAMS + tokens * (2 * each + wide.shape[1])))
        sums = address(memory) + 8 * THREADS * (STREAMS + tokens * each)
        _few(address(wide), *weights, sums, tokens, dim, count, int(silu), address(memory), address(began), each)
        _join(sums, row * tokens, row, address(began), tokens, dim, THREADS, address(y), workers=1)
        scratch.give(memory)
        if compensator is not None:
            y += linear(activated(linear(x, compensator.c1), silu), compensator.c2)
        return y
    x, correction = readable(x), (0, 0, 0, 0, 0, 0)
    if compensator is not None:
        c1, c2 = readable(compensator.c1), readable(compensator.c2)
        correction = *matrix(c1), *matrix(c2)
    each = rows_per_item(dim, count)  # neurons that are passed over the tokens together
    most = max(each, MOST_NEURONS, padded(extra, STEP))
    for start in range(0, tokens, MOST_TOKENS):
        here = min(MOST_TOKENS, tokens - start)
        size = places(here, dim, most, each)[-1]
        memory = scratch.take(size * THREADS)
        began[:] = 0
        feed_chunk(
            *matrix(x[start:]), *weights, *correction, extra, here, dim, count, int(silu), address(memory), size, most,
            each, THREADS, address(began),
        )  # fmt: skip
        row = row_of_sums(dim)
        _join(address(memory), 4 * size, row, address(began), here, dim, THREADS, address(y[start:]))
        scratch.give(memory)
    return y


@kernel
def _join(task, worker, sums, apart, row, began, tokens, dim, workers, y):
    """y = the sums of all workers that had any."""
    begun = carray(words_at(began), workers)
    while True:
        first = fetch_add(task, 1) * 8
        if first >= tokens:
            return
        for t in range(first, min(first + 8, tokens)):
            fresh = True
            for other in range(workers):
                if begun[other]:
                    source = sums + other * apart + t * row
                    if fresh:
                        copy_row(source, y + 4 * t * dim, dim, 1.0)
                    else:
                        add_row(source, F32, dim, 1.0, y + 4 * t * dim)
                    fresh = False


@kernel
def _few(
    task, worker, x, gate, gate_row, gate_kind, up, up_row, up_kind, down, down_row, down_kind, chosen, sums,
    tokens, dim, count, silu, memory, began, each,
):  # fmt: skip
    wide_dim, lines = padded(dim, LANES), memory + 8 * worker * (STREAMS + tokens * each)
    gates = lines + 8 * STREAMS
    ups = gates + 4 * tokens * each
    begun, mine = carray(words_at(began), worker + 1), sums + 4 * worker * tokens * wide_dim
    carray(floats_at(gates), 2 * tokens * each)[:] = 0.0
    while True:
        first = fetch_add(task, 1) * each
        if first >= count:
            return
        if not begun[worker]:
            begun[worker] = 1
            carray(floats_at(mine), tokens * wide_dim)[:] = 0.0
        here = min(each, count - first)
        multiply_few(
            lines, gate, gate_row, gate_kind, first, here, chosen, x, 4 * wide_dim, tokens, dim, gates, 4 * each
        )
        multiply_few(lines, up, up_row, up_kind, first, here, chosen, x, 4 * wide_dim, tokens, dim, ups, 4 * each)
        for i in range(0, tokens * each, LANES):
            store(ups + 4 * i, gated(load(gates + 4 * i), silu) * load(ups + 4 * i))
        add_few(lines, down, down_row, down_kind, first, here, chosen, ups, 4 * each, tokens, dim, mine, 4 * wide_dim)
