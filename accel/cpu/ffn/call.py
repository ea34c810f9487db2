"""The gated FFN, dense or on chosen neurons, in one pass over the weights.

    y = W_down[:, M] (act(W_gate[M] x) * (W_up[M] x)) + C2 act(C1 x)

How it tiles. For chunks, the tokens are packed once, for all workers. An item is a span of them and some neurons, fewer
towards the end, so that all cores end together: their rows of W_gate and W_up are multiplied with the span
(linear/maps.py), activated, and packed as the left side of the second product. A second kernel then adds up their rows
of W_down, an item being some columns of y for a span: so the order of every sum is fixed, whoever does what. The
neurons are rows of a list of addresses, so choosing half of them halves the work and nothing is gathered beforehand.
Blocks of tokens that choose for themselves are spans, each with a list of its own, and so one call serves them all.
W_down must lie transposed in memory, neuron by neuron, as `prepare_weights` leaves it. A few tokens (decoding) go
neuron by neuron: two products with its rows, one row of W_down added; an item, some neurons, has sums of its own, which
are then added in order. The product is the limit for chunks, memory for decoding.
"""

from __future__ import annotations

from functools import lru_cache
from itertools import accumulate

import numpy as np

from accel.cpu.ffn.activation import activated, gated
from accel.cpu.ffn.chunk import DOWN_BLOCKS, activate_chunk, down_places, gate_places, project_chunk
from accel.cpu.ffn.eight_bits import feed_forward_by_maps
from accel.cpu.linear.few_tokens import FEW, STREAMS, add_few, multiply_few, rows_together, whole_vectors
from accel.cpu.linear.maps import MOST_TOKENS, SPAN, blocks_of, linear, pack_tokens, rows_per_item
from accel.cpu.linear.rows import add_row, copy_row, padded, rounded
from accel.cpu.linear.unit import WIDTH, hidden_size, right_size
from accel.cpu.runtime.arrays import Matrix, address, matrix, readable
from accel.cpu.runtime.kernels import kernel
from accel.cpu.runtime.memory import SMALL, fresh, scratch
from accel.cpu.runtime.team import THREADS
from accel.cpu.simd import F32, LANES, carray, fetch_add, floats_at, load, store
from reference import contract
from reference.checks import listed
from reference.predictor import Compensator

PARTS = 48  # of the neurons, at most, that have sums of their own where tokens are few


def gated_ffn(x: np.ndarray, w_gate: Matrix, w_up: Matrix, w_down: Matrix, *, act: str = "silu") -> np.ndarray:
    """W_down (act(W_gate x) * (W_up x)): x (T, E), w_gate and w_up (F, E), w_down (E, F) -> (T, E) float32."""
    contract.gated_ffn(x, w_gate, w_up, w_down, act)
    return feed_forward(x, w_gate, w_up, w_down, None, act == "silu")


def sparse_ffn(
    x: np.ndarray,
    w_gate: Matrix,
    w_up: Matrix,
    w_down: Matrix,
    neurons: np.ndarray,
    *,
    compensator: Compensator | None = None,
    act: str = "silu",
) -> np.ndarray:
    """W_down[:, M] (act(W_gate[M] x) * (W_up[M] x)) + C2 act(C1 x): x (T, E), M = neurons (K,) ascending -> (T, E)."""
    sizes = contract.sparse_ffn(x, w_gate, w_up, w_down, neurons, compensator, act)
    listed("neurons", neurons, sizes["F"])
    chosen = np.ascontiguousarray(neurons, np.int64)[None]
    return feed_forward(x, w_gate, w_up, w_down, chosen, act == "silu", compensator)


def feed_forward(
    x: np.ndarray,
    w_gate: Matrix,
    w_up: Matrix,
    w_down: Matrix,
    chosen: np.ndarray | None,
    silu: bool,
    compensator: Compensator | None = None,
    block: int | None = None,
) -> np.ndarray:
    """The FFN of x (T, E) by all neurons or by some, plus the compensator's share: (T, E). Those are one list for all
    tokens (1, K), or where `block` is given one for each so many (B, K). Arguments fit."""
    (tokens, dim), count = x.shape, len(w_gate) if chosen is None else chosen.shape[1]
    extra = 0 if compensator is None else len(compensator.c1)
    if tokens * dim * (count + extra) == 0:
        return np.zeros((tokens, dim), np.float32)
    if not (isinstance(w_gate, np.ndarray) and isinstance(w_up, np.ndarray) and isinstance(w_down, np.ndarray)):
        neurons = None if chosen is None else chosen[0]
        return feed_forward_by_maps(x, w_gate, w_up, w_down, neurons, silu, compensator)
    if w_gate.dtype != w_up.dtype:
        w_gate, w_up = w_gate.astype(np.float32), w_up.astype(np.float32)  # one packing of x serves both
    gate, up, down = readable(w_gate), readable(w_up), readable(w_down.T)  # (F, E): a copy unless it lies so in memory
    listed = 0 if chosen is None else address(chosen)
    y = fresh(tokens, dim)
    if tokens <= FEW:
        wide = whole_vectors(x)
        each, part, parts = few_shape(gate.strides[0], count)
        own = wide.size
        memory = scratch.take(parts * own + THREADS * 2 * (STREAMS + tokens * each))
        sums = address(memory)
        weights = *matrix(gate), *matrix(up), *matrix(down), listed
        _few(address(wide), *weights, sums, tokens, dim, count, int(silu), sums + 4 * parts * own, part, each)
        _join(sums, parts, tokens, dim, address(y), workers=1 if parts * own < SMALL else None)
        scratch.give(memory)
        if compensator is not None:
            y += linear(activated(linear(x, compensator.c1), silu), compensator.c2)
        return y
    x, narrow, back = readable(x), (0, 0, 0), (0, 0, 0)
    if compensator is not None:
        c1, c2 = readable(compensator.c1), readable(compensator.c2)
        narrow, back = matrix(c1), matrix(c2)
    form, c1_form = rounded(matrix(gate)[2]), rounded(narrow[2]) if extra else rounded(matrix(gate)[2])
    forms = {form, c1_form}  # as which x is packed
    each, span, row = rows_per_item(dim, count), block or SPAN, 8 * count if block else 0
    most = MOST_TOKENS // span * span
    for start in range(0, tokens, most):
        here, first = min(most, tokens - start), listed + start // span * row
        blocks, columns = blocks_of(here), columns_per_item(dim, -(-here // span))
        size = max(gate_places(0, min(span, here), each).end, down_places(0, min(span, here), extra, columns).end)
        packed = [blocks * hidden_size(count), blocks * hidden_size(extra), *[blocks * right_size(dim)] * len(forms)]
        memory = scratch.take(sum(packed) + size // 4 * THREADS)
        hidden, corrections, *rights, own = (address(memory) + 4 * at for at in accumulate(packed, initial=0))
        right = dict(zip(forms, rights, strict=True))
        for one, at in right.items():
            pack_tokens(*matrix(x[start:]), here, dim, one, at, own, size, workers=min(THREADS, blocks))
        activate_chunk(
            right[form], *matrix(gate), *matrix(up), *matrix(down)[2:], first, row, right[c1_form], *narrow, extra,
            here, span, dim, count, int(silu), hidden, corrections, own, size, each, THREADS,
        )  # fmt: skip
        project_chunk(
            hidden, *matrix(down), first, row, count, corrections, *back, extra, address(y[start:]), here, span, dim,
            own, size, columns,
        )  # fmt: skip
        scratch.give(memory)
    return y


def few_shape(row: int, count: int) -> tuple[int, int, int]:
    """For a few tokens: neurons that are read together, where their rows stand `row` bytes apart, neurons per item, and
    items. They follow from shapes alone, as the sums depend on them."""
    share = -(-max(count, 1) // PARTS)
    each = padded(max(1, min(rows_together(row), share)), LANES)
    part = padded(share, each)
    return each, part, -(-max(count, 1) // part)


@lru_cache(maxsize=64)  # every layer asks
def columns_per_item(dim: int, spans: int) -> int:
    """Columns of y per item, of so many spans of tokens: so many that all cores end together, or nearly, and rather
    more than fewer."""

    def longest(blocks: int) -> int:
        """Blocks of columns that the busiest core multiplies."""
        items = -(-dim // (blocks * WIDTH))
        return -(-items * spans // THREADS) * blocks

    return WIDTH * min(range(DOWN_BLOCKS, 0, -1), key=longest)


@kernel
def _join(task, worker, sums, parts, tokens, dim, y):
    """y = the sums of all parts, the first part's first; an item is a span of columns."""
    span, row = 64 * LANES, 4 * padded(dim, LANES)
    while True:
        first = fetch_add(task, 1) * span
        if first >= dim:
            return
        here = min(span, dim - first)
        for t in range(tokens):
            to = y + 4 * (t * dim + first)
            copy_row(sums + t * row + 4 * first, to, here, 1.0)
            for part in range(1, parts):
                add_row(sums + (part * tokens + t) * row + 4 * first, F32, here, 1.0, to)


@kernel
def _few(
    task, worker, x, gate, gate_row, gate_kind, up, up_row, up_kind, down, down_row, down_kind, chosen, sums,
    tokens, dim, count, silu, memory, part, each,
):  # fmt: skip
    wide_dim, lines = padded(dim, LANES), memory + 8 * worker * (STREAMS + tokens * each)
    gates = lines + 8 * STREAMS
    ups = gates + 4 * tokens * each
    carray(floats_at(gates), 2 * tokens * each)[:] = 0.0
    while True:
        item = fetch_add(task, 1)
        if item * part >= max(count, 1):
            return
        mine, end = sums + 4 * item * tokens * wide_dim, min(item * part + part, count)
        carray(floats_at(mine), tokens * wide_dim)[:] = 0.0
        for first in range(item * part, end, each):
            here = min(each, end - first)
            multiply_few(
                lines, gate, gate_row, gate_kind, first, here, chosen, x, 4 * wide_dim, tokens, dim, gates, 4 * each
            )
            multiply_few(lines, up, up_row, up_kind, first, here, chosen, x, 4 * wide_dim, tokens, dim, ups, 4 * each)
            for i in range(0, tokens * each, LANES):
                store(ups + 4 * i, gated(load(gates + 4 * i), silu) * load(ups + 4 * i))
            add_few(
                lines, down, down_row, down_kind, first, here, chosen, ups, 4 * each, tokens, dim, mine, 4 * wide_dim
            )
