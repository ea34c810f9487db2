"""The gated FFN, dense or on chosen neurons, in one pass over the weights.

    y = W_down[:, M] (act(W_gate[M] x) * (W_up[M] x))

How it tiles. An item is up to 512 neurons: some of them at a time, their rows of W_gate and W_up are multiplied with
all tokens (products.py), activated, and packed as the right side of the second product, with W_down's columns, which
adds to the worker's own yᵀ. The neurons are rows of a list of addresses, so choosing half of them halves the work and
nothing is gathered beforehand. W_down must lie transposed in memory, neuron by neuron, as `prepare_weights` leaves
it. A few tokens (decoding) go neuron by neuron: two products with its rows, one row of W_down added. The product is
the limit for chunks, memory for decoding.
"""

from __future__ import annotations

import numpy as np
from numba import carray, njit
from numba.extending import register_jitable

from accel.cpu.attention import LOG2E
from accel.cpu.blocks import (
    DEPTH,
    HIGH,
    RIGHT,
    STEP,
    TEMPORARY,
    WIDTH,
    add_row,
    copy_row,
    left_size,
    multiply_packing,
    nothing_planned,
    number_size,
    padded,
    plan_left,
    plan_right,
    plan_size,
    ready_right,
    right_pieces,
    right_size,
    store_pieces,
    vectors_of,
)
from accel.cpu.compiled import THREADS, kernel
from accel.cpu.memory import fresh, scratch
from accel.cpu.products import (
    BYTES_READ,
    FEW,
    HEIGHT,
    MOST_TOKENS,
    blocks_of,
    dot,
    linear,
    multiply_rows,
    pack_tokens,
    rows_per_item,
    whole_vectors,
)
from accel.cpu.simd import (
    BF16,
    F32,
    LANES,
    MATRIX,
    TILE,
    close_tiles,
    exp2,
    fetch_add,
    floats_at,
    fma,
    load,
    load_some,
    open_tiles,
    smaller,
    splat,
    store,
    store_some,
    transpose,
    unpack,
    words_at,
)
from accel.cpu.topk import keep_top
from accel.cpu.views import address, matrix, readable
from reference.checks import ascending, match, one_of, require, whole
from reference.layers import ACTIVATIONS
from reference.predictor import Compensator

MOST_NEURONS = 512  # per item
DOWN, DOWN_BLOCKS = 128, 4  # neurons, and blocks of columns, of W_down that are packed at a time


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
    if w_gate.dtype != w_up.dtype:
        w_gate, w_up = w_gate.astype(np.float32), w_up.astype(np.float32)  # one packing of x serves both
    gate, up, down = readable(w_gate), readable(w_up), readable(w_down.T)  # (F, E): a copy unless it lies so in memory
    chosen = 0 if neurons is None else address(neurons)
    weights = *matrix(gate), *matrix(up), *matrix(down), chosen
    y, silu = fresh(tokens, dim), int(act == "silu")
    began = np.zeros(THREADS, np.int64)  # which workers had something to do
    if tokens <= FEW:
        wide = whole_vectors(x)
        row, each = 4 * wide.shape[1], max(LANES, BYTES_READ // gate.strides[0] // LANES * LANES)  # neurons per item
        memory = scratch.take(THREADS * tokens * (2 * each + wide.shape[1]))
        sums = address(memory) + 8 * THREADS * tokens * each
        _few(address(wide), *weights, sums, tokens, dim, count, silu, address(memory), address(began), each)
        _join(sums, row * tokens, row, address(began), tokens, dim, THREADS, address(y), workers=1)
        scratch.give(memory)
        return y
    x = readable(x)
    each = rows_per_item(dim, count)  # neurons that are passed over the tokens together
    unit = max(each, DOWN // each * each)
    group = unit * max(1, min(MOST_NEURONS // unit, count // (unit * 4 * THREADS)))  # neurons per item
    for start in range(0, tokens, MOST_TOKENS):
        here = min(MOST_TOKENS, tokens - start)
        size = places(here, dim, group, each)[-1]
        memory = scratch.take(size * THREADS)
        began[:] = 0
        task = here, dim, count, silu, address(memory), size, group, each, address(began)
        _chunk(*matrix(x[start:]), *weights, *task)
        row = row_of_sums(dim)
        _join(address(memory), 4 * size, row, address(began), here, dim, THREADS, address(y[start:]))
        scratch.give(memory)
    return y


@njit(forceinline=True)
def gated(x, silu):
    """x · σ(x), or GELU's x · σ(2√(2/π) (x + 0.044715 x³)), which is the tanh form without its cancellation."""
    z = x
    if not silu:
        z = fma(x * x * x, splat(np.float32(0.044715)), x) * splat(np.float32(2 * np.sqrt(2 / np.pi)))
    power = smaller(z * splat(np.float32(-LOG2E)), splat(np.float32(126.0)))  # beyond which the result is 0 anyway
    return x / (splat(np.float32(1.0)) + exp2(power))


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


@register_jitable
def places(tokens, dim, group, each):
    """Where each part of a worker's memory begins, in floats; the last is how many there are."""
    blocks = blocks_of(tokens)
    sums = 0  # y (tokens padded, row): the first, so that workers' sums can be joined
    right = sums + padded(tokens, WIDTH) * row_of_sums(dim) // 4  # x, packed (blocks,)
    left = right + blocks * right_size(dim)  # two parts of W_gate and W_up, or of W_down, in turns
    gates = left + 2 * max(left_size(HEIGHT, DEPTH), DOWN_BLOCKS * right_size(DOWN))  # (blocks, each, WIDTH)
    ups = gates + blocks * each * WIDTH
    hidden = ups + blocks * each * WIDTH  # packed (blocks,)
    temporary = hidden + blocks * hidden_size(group)
    plan = temporary + TEMPORARY
    lines = plan + max(plan_size(HEIGHT, DEPTH), plan_size(DOWN, DOWN_BLOCKS * WIDTH))  # addresses
    coming = lines + 2 * padded(max(WIDTH, each + HEIGHT, DOWN), LANES)  # addresses of the rows after them
    return (
        sums, right, left, gates, ups, hidden, temporary, plan, lines, coming,
        padded(coming + 2 * max(each, DOWN), 16),
    )  # fmt: skip


@register_jitable
def row_of_sums(dim):
    """Bytes from token to token of a worker's sums: an odd number of cache lines, which spreads them over the
    caches."""
    return 4 * (padded(dim, 32) + 16)


@register_jitable
def hidden_size(group):
    """Floats of a packed block of tokens, as the left side of the second product."""
    return left_size(WIDTH, group) if MATRIX else WIDTH * padded(group, STEP)


@njit(forceinline=True)
def list_neurons(lines, matrix, row, first, count, chosen):
    """Write the addresses of `count` rows of a matrix to `lines`: those of neurons first, first + 1, … of the list."""
    stand, list_of = carray(words_at(lines), count), carray(words_at(chosen or lines), first + count)
    for i in range(count):
        stand[i] = matrix + (list_of[first + i] if chosen else first + i) * row


@njit
def pack_hidden(gates, ups, rows, vectors, silu, out, pieces, temporary):
    """act(gate) * up of one block of tokens, which stand as columns, packed as the left side of the second product: for
    register tiles neuron by neuron, as they stand; for the matrix unit token by token."""
    for j in range(0, vectors * LANES, LANES):
        for i in range(rows):
            at = 4 * (i * WIDTH + j)
            store((gates if MATRIX else out) + at, gated(load(gates + at), silu) * load(ups + at))
        if MATRIX:
            for i in range(rows, padded(rows, STEP)):
                store(gates + 4 * (i * WIDTH + j), splat(np.float32(0.0)))
    if MATRIX:
        turned, places = temporary, temporary + 4 * LANES * STEP  # (LANES tokens, STEP neurons), addresses
        stand = carray(words_at(places), STEP)
        for s in range(0, rows, STEP):
            for i in range(STEP):
                stand[i] = gates + 4 * (s + i) * WIDTH
            for j in range(0, vectors * LANES, LANES):
                transpose(places, 4 * j, turned, 4 * STEP)
                transpose(places + 8 * LANES, 4 * j, turned + 4 * LANES, 4 * STEP)
                to = out + s // STEP * pieces * 2 * TILE + j // LANES * TILE
                for t in range(LANES):
                    x, y = load(turned + 4 * STEP * t), load(turned + 4 * (STEP * t + LANES))
                    store_pieces(x, y, to + 64 * t, 2 * TILE, pieces)


@njit(forceinline=True)
def hidden_at(hidden, neuron, kind):
    """Where neuron number `neuron`, a multiple of STEP, begins in a packed block of tokens."""
    if MATRIX:
        return hidden + neuron // STEP * right_pieces(kind) * 2 * TILE
    return hidden + 4 * neuron * WIDTH


@kernel
def _chunk(task, worker):
    (
        x, x_row, x_kind, gate, gate_row, kind, up, up_row, _, down, down_row, down_kind, chosen, tokens, dim, count,
        silu, memory, size, group, each, began,
    ) = unpack(task + 8, 22)  # fmt: skip
    mine = memory + 4 * worker * size
    p = places(tokens, dim, group, each)
    sums, right, left, gates = mine + 4 * p[0], mine + 4 * p[1], mine + 4 * p[2], mine + 4 * p[3]
    ups, hidden, temporary = mine + 4 * p[4], mine + 4 * p[5], mine + 4 * p[6]
    plan, lines, coming = mine + 4 * p[7], mine + 4 * p[8], mine + 4 * p[9]
    blocks, begun, sum_row = blocks_of(tokens), carray(words_at(began), worker + 1), row_of_sums(dim)
    step, turn, first_part = number_size(down_kind), 0, min(DEPTH, dim)
    place = 4 * left_size(HEIGHT, DEPTH)
    place_down = 4 * DOWN_BLOCKS * right_size(DOWN)
    form = RIGHT if down_kind == BF16 else down_kind
    open_tiles()
    start = fetch_add(task, 1) * group
    while start < count:
        following = fetch_add(task, 1) * group
        stop = min(start + group, count)
        if not begun[worker]:
            begun[worker] = 1
            pack_tokens(x, x_row, x_kind, tokens, dim, kind, right, lines, temporary)
            for i in range(0, padded(tokens, WIDTH) * sum_row, 4 * LANES):
                store(sums + i, splat(np.float32(0.0)))
            some = min(HEIGHT, stop - start)
            list_neurons(lines, gate, gate_row, start, some, chosen)
            plan_left(plan, lines, kind, some, 0, first_part, left + turn * place)
        for first in range(start, stop, each):
            rows = min(each, stop - first)
            list_neurons(lines, gate, gate_row, first, rows, chosen)
            list_neurons(coming, up, up_row, first, rows, chosen)
            turn = multiply_rows(lines, kind, rows, tokens, dim, right, left, turn, gates, plan, coming, rows)
            list_neurons(lines, up, up_row, first, rows, chosen)
            after = min(each, stop - first - rows)
            list_neurons(coming, gate, gate_row, first + rows, after, chosen)
            turn = multiply_rows(lines, kind, rows, tokens, dim, right, left, turn, ups, plan, coming, after)
            for n in range(blocks):
                to = hidden_at(hidden + 4 * n * hidden_size(group), first - start, down_kind)
                at = 4 * n * padded(rows, HIGH) * WIDTH
                vectors = vectors_of(tokens - n * WIDTH)
                pack_hidden(gates + at, ups + at, rows, vectors, silu, to, right_pieces(down_kind), temporary)
        turn, wide = 0, DOWN_BLOCKS * WIDTH
        deep = min(DOWN, stop - start)
        list_neurons(lines, down, down_row, start, deep, chosen)
        plan_right(plan, lines, down_kind, deep, 0, min(wide, dim), left)
        for column in range(0, dim, wide):
            columns = min(wide, dim - column)
            for depth in range(start, stop, DOWN):
                deep, packed = min(DOWN, stop - depth), left + turn * place_down
                list_neurons(lines, down + column * step, down_row, depth, deep, chosen)
                ready_right(plan, lines, down_kind, deep, columns, packed)
                turn = 1 - turn
                further = min(DOWN, stop - depth - DOWN)
                if further > 0:
                    list_neurons(coming, down + column * step, down_row, depth + DOWN, further, chosen)
                    plan_right(plan, coming, down_kind, further, 0, columns, left + turn * place_down)
                elif column + wide < dim:
                    further = min(DOWN, stop - start)
                    list_neurons(coming, down + (column + wide) * step, down_row, start, further, chosen)
                    after = min(wide, dim - column - wide)
                    plan_right(plan, coming, down_kind, further, 0, after, left + turn * place_down)
                elif following < count and kind == down_kind:
                    some = min(HEIGHT, count - following)
                    list_neurons(coming, gate, gate_row, following, some, chosen)
                    plan_left(plan, coming, kind, some, 0, first_part, left + turn * place)
                else:
                    nothing_planned(plan)
                for n in range(blocks):
                    at = hidden_at(hidden + 4 * n * hidden_size(group), depth - start, down_kind)
                    here = min(WIDTH, tokens - n * WIDTH)
                    for c in range(0, columns, WIDTH):
                        to, vectors = sums + n * WIDTH * sum_row + 4 * (column + c), vectors_of(columns - c)
                        part = packed + c // WIDTH * (4 * right_size(deep))
                        multiply_packing(form, 0, vectors, here, deep, at, 4 * WIDTH, part, to, sum_row, plan)
        if following < count and kind != down_kind:
            some = min(HEIGHT, count - following)
            list_neurons(coming, gate, gate_row, following, some, chosen)
            plan_left(plan, coming, kind, some, 0, first_part, left + turn * place)
        start = following
    close_tiles()


@kernel
def _join(task, worker):
    """y = the sums of all workers that had any."""
    sums, apart, row, began, tokens, dim, workers, y = unpack(task + 8, 8)
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
def _few(task, worker):
    (
        x, gate, gate_row, gate_kind, up, up_row, up_kind, down, down_row, down_kind, chosen, sums, tokens, dim, count,
        silu, memory, began, each,
    ) = unpack(task + 8, 19)  # fmt: skip
    wide_dim, list_of = padded(dim, LANES), carray(words_at(chosen or task), count)
    gates = memory + 8 * worker * tokens * each
    ups = gates + 4 * tokens * each
    through, along = carray(floats_at(gates), (tokens, each)), carray(floats_at(ups), (tokens, each))
    begun, mine = carray(words_at(began), worker + 1), sums + 4 * worker * tokens * wide_dim
    through[:] = 0.0
    along[:] = 0.0
    while True:
        first = fetch_add(task, 1) * each
        if first >= count:
            return
        if not begun[worker]:
            begun[worker] = 1
            carray(floats_at(mine), tokens * wide_dim)[:] = 0.0
        here = min(each, count - first)
        for i in range(here):
            row = gate + (list_of[first + i] if chosen else first + i) * gate_row
            for t in range(tokens):
                through[t, i] = dot(row, gate_kind, x + 4 * t * wide_dim, dim)
        for i in range(here):
            row = up + (list_of[first + i] if chosen else first + i) * up_row
            for t in range(tokens):
                along[t, i] = dot(row, up_kind, x + 4 * t * wide_dim, dim)
        for i in range(0, tokens * each, LANES):
            store(ups + 4 * i, gated(load(gates + 4 * i), silu) * load(ups + 4 * i))
        for i in range(here):
            row = down + (list_of[first + i] if chosen else first + i) * down_row
            for t in range(tokens):
                add_row(row, down_kind, dim, along[t, i], mine + 4 * t * wide_dim)
