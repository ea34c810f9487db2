"""The gated FFN, dense or on chosen neurons, in one pass over the weights.

    y = W_down[:, M] (act(W_gate[M] x) * (W_up[M] x))

How it tiles. An item is up to four panels of neurons: a panel's rows of W_gate and W_up are multiplied with all tokens
(`multiply_panel`) and activated while they are in the cache; then the panels' products with W_down's columns are added
to the worker's own y, which is too large for the cache to be passed over more often. The neurons are rows of a list of
addresses, so choosing half of them halves the work and nothing is gathered beforehand. W_down must lie transposed in
memory, neuron by neuron, as `prepare_weights` leaves it. A few tokens (decoding) go neuron by neuron: two products with
its rows, one row of W_down added. The register tile is the limit for chunks, memory for decoding.
"""

from __future__ import annotations

import numpy as np
from numba import carray, njit

from accel.cpu.attention import LOG2E, ahead, load_kind, padded, widen
from accel.cpu.compiled import THREADS, kernel
from accel.cpu.products import DEPTH, FEW, dot, linear, multiply_panel, panel_size, whole_vectors
from accel.cpu.simd import (
    F32,
    LANES,
    PANEL,
    VECTORS,
    add_rows,
    exp2,
    fetch_add,
    floats_at,
    fma,
    load,
    load_some,
    smaller,
    splat,
    store,
    store_some,
    unpack,
    words_at,
)
from accel.cpu.topk import keep_top
from accel.cpu.views import address, matrix, readable, scratch
from reference import fastforward as meaning
from reference.checks import ascending, match, one_of, require, whole
from reference.layers import ACTIVATIONS
from reference.predictor import Compensator, Predictor

MOST_PANELS = 4  # panels of neurons per item


def gated_ffn(
    x: np.ndarray, w_gate: np.ndarray, w_up: np.ndarray, w_down: np.ndarray, *, act: str = "silu"
) -> np.ndarray:
    """W_down (act(W_gate x) * (W_up x)): x (T, E), w_gate and w_up (F, E), w_down (E, F) -> (T, E) float32."""
    match(x=(x, "T E"), w_gate=(w_gate, "F E"), w_up=(w_up, "F E"), w_down=(w_down, "E F"))
    return _run(x, w_gate, w_up, w_down, None, act)


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
    sizes = match(x=(x, "T E"), w_gate=(w_gate, "F E"), w_up=(w_up, "F E"), w_down=(w_down, "E F"))
    require(
        neurons.ndim == 1 and neurons.dtype.kind in "iu",
        f"neurons: got shape {neurons.shape} of {neurons.dtype}, wanted (K,) of an integer type",
    )
    ascending("neurons", neurons)
    require(
        neurons.size == 0 or (neurons[0] >= 0 and neurons[-1] < sizes["F"]),
        f"neurons: got {neurons[:1]} to {neurons[-1:]}, wanted 0 to {sizes['F'] - 1}",
    )
    y = _run(x, w_gate, w_up, w_down, np.ascontiguousarray(neurons, np.int64), act)
    if compensator is None:
        return y
    match(x=(x, "T E"), c1=(compensator.c1, "hidden E"), c2=(compensator.c2, "E hidden"))
    return y + linear(activate(linear(x, compensator.c1), act), compensator.c2)


def activate(x: np.ndarray, act: str) -> np.ndarray:
    """The activation called `act`, in place: x float32, contiguous."""
    one_of("act", act, ACTIVATIONS)
    _activate(address(x), x.size, int(act == "silu"))
    return x


def predictor_scores(x: np.ndarray, predictor: Predictor) -> np.ndarray:
    """s = ReLU(a W1) W2 with a the block pooled by attention to q_pred: x (T, E) of some tokens -> (F,) float32."""
    return meaning.predictor_scores(np.asarray(x, np.float32), predictor)


def select_neurons(scores: np.ndarray, keep: int) -> np.ndarray:
    """The `keep` highest-scoring neurons, ties to the lower: scores (F,) -> (min(keep, F),) int64, ascending."""
    match(scores=(scores, "F"))
    return keep_top(scores[None], whole("keep", keep))[0]


def _run(
    x: np.ndarray, w_gate: np.ndarray, w_up: np.ndarray, w_down: np.ndarray, neurons: np.ndarray | None, act: str
) -> np.ndarray:
    one_of("act", act, ACTIVATIONS)
    (tokens, dim), count = x.shape, len(w_gate) if neurons is None else len(neurons)
    if 0 in (tokens, dim, count):
        return np.zeros((tokens, dim), np.float32)
    wide, down = whole_vectors(x), readable(w_down.T)  # (F, E): a copy unless it lies so in memory
    gate, up = readable(w_gate), readable(w_up)
    high, wide_dim = wide.shape
    sums = np.zeros((THREADS, high, wide_dim), np.float32)
    arguments = (
        address(wide), *matrix(gate), *matrix(up), *matrix(down),
        0 if neurons is None else address(neurons), address(sums), tokens, high, dim, count, int(act == "silu"),
    )  # fmt: skip
    panels = -(-count // PANEL)
    group = max(1, min(MOST_PANELS, panels // (4 * THREADS)))  # enough items to share, and few passes over y
    size = panel_size(high) + group * high * PANEL + PANEL * PANEL if tokens > FEW else 2 * LANES
    memory = scratch.take(size * THREADS)
    (_chunk if tokens > FEW else _few)(*arguments, address(memory), size, group)
    scratch.give(memory)
    return sums.sum(axis=0)[:, :dim]


@njit(forceinline=True)
def gated(x, silu):
    """x · σ(x), or GELU's x · σ(2√(2/π) (x + 0.044715 x³)), which is the tanh form without its cancellation."""
    z = x
    if not silu:
        z = fma(x * x * x, splat(np.float32(0.044715)), x) * splat(np.float32(2 * np.sqrt(2 / np.pi)))
    power = smaller(z * splat(np.float32(-LOG2E)), splat(np.float32(126.0)))  # beyond which the result is 0 anyway
    return x / (splat(np.float32(1.0)) + exp2(power))


@njit(forceinline=True)
def add_row(source, kind, count, weight, out):
    """out += weight · a stored row of `count` numbers; `out` is padded to whole vectors."""
    by, size = splat(weight), 4 if kind == F32 else 2
    if kind == F32 and count % LANES == 0:  # the common case, without a question per vector
        for i in range(0, count, LANES):
            store(out + 4 * i, fma(load(source + 4 * i), by, load(out + 4 * i)))
        return
    for i in range(0, count, LANES):
        store(out + 4 * i, fma(load_kind(source + size * i, kind, count - i), by, load(out + 4 * i)))


@kernel
def _activate(task, worker):
    x, count, silu = unpack(task + 8, 3)
    span = 64 * LANES
    while True:
        first = fetch_add(task, 1) * span
        if first >= count:
            return
        for i in range(first, min(first + span, count), LANES):
            if i + LANES <= count:
                store(x + 4 * i, gated(load(x + 4 * i), silu))
            else:
                store_some(x + 4 * i, count - i, gated(load_some(x + 4 * i, count - i), silu))


@njit(forceinline=True)
def list_rows(lines, matrix, row, first, count, chosen):
    """Write the addresses of `count` rows of a matrix to `lines`: those of neurons first, first + 1, … of the list."""
    stand, list_of = carray(words_at(lines), count), carray(words_at(chosen or lines), first + count)
    for i in range(count):
        stand[i] = matrix + (list_of[first + i] if chosen else first + i) * row


@kernel
def _chunk(task, worker):
    (
        x, gate, gate_row, gate_kind, up, up_row, up_kind, down, down_row, down_kind, chosen, sums, tokens, high, dim,
        count, silu, memory, size, group,
    ) = unpack(task + 8, 20)  # fmt: skip
    wide_dim = padded(dim, LANES)
    mine = memory + 4 * worker * size
    ones = mine + 8 * PANEL * DEPTH
    lines = ones + 4 * high
    lines += -lines % 8
    ups = lines + 16 * PANEL
    hidden = ups + 4 * high * PANEL  # (group, high, PANEL)
    panel = hidden + 4 * group * high * PANEL
    y = sums + 4 * worker * high * wide_dim
    while True:
        start = fetch_add(task, 1) * group * PANEL
        if start >= count:
            return
        stop = min(start + group * PANEL, count)
        for first in range(start, stop, PANEL):
            here, gates = min(PANEL, stop - first), hidden + 4 * (first - start) * high
            list_rows(lines, gate, gate_row, first, here, chosen)
            multiply_panel(x, wide_dim, high, lines, gate_kind, here, dim, mine, gates)
            list_rows(lines, up, up_row, first, here, chosen)
            multiply_panel(x, wide_dim, high, lines, up_kind, here, dim, mine, ups)
            for i in range(0, high * PANEL, LANES):
                store(gates + 4 * i, gated(load(gates + 4 * i), silu) * load(ups + 4 * i))
        for column in range(0, wide_dim, PANEL):
            vectors, wide = min(VECTORS, (wide_dim - column) // LANES), min(PANEL, dim - column)
            for first in range(start, stop, PANEL):
                here, gates = min(PANEL, stop - first), hidden + 4 * (first - start) * high
                list_rows(lines, down + column * (4 if down_kind == F32 else 2), down_row, first, here, chosen)
                stand = carray(words_at(lines), here)
                for i in range(here):
                    widen(stand[i], down_kind, wide, panel + 4 * i * PANEL, 1.0)
                add_rows(vectors, high, gates, 4 * PANEL, panel, 4 * PANEL, y + 4 * column, 4 * wide_dim, here, ones)


@kernel
def _few(task, worker):
    (
        x, gate, gate_row, gate_kind, up, up_row, up_kind, down, down_row, down_kind, chosen, sums, tokens, high, dim,
        count, silu, memory, size, group,
    ) = unpack(task + 8, 20)  # fmt: skip
    wide_dim, list_of = padded(dim, LANES), carray(words_at(chosen or task), count)
    gates = memory + 4 * worker * size
    ups = gates + 4 * LANES
    through, along = carray(floats_at(gates), LANES), carray(floats_at(ups), LANES)
    through[:] = 0.0
    along[:] = 0.0
    while True:
        first = fetch_add(task, 1) * LANES
        if first >= count:
            return
        here = min(LANES, count - first)
        for t in range(tokens):
            row, y = x + 4 * t * wide_dim, sums + 4 * (worker * high + t) * wide_dim
            for i in range(here):
                neuron = list_of[first + i] if chosen else first + i
                through[i] = dot(gate + neuron * gate_row, gate_kind, row, dim)
                along[i] = dot(up + neuron * up_row, up_kind, row, dim)
                if t == 0:
                    ahead(down + neuron * down_row, down_kind, dim)
            store(ups, gated(load(gates), silu) * load(ups))
            for i in range(here):
                neuron = list_of[first + i] if chosen else first + i
                add_row(down + neuron * down_row, down_kind, dim, along[i], y)
