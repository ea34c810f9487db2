"""The gated FFN of a chunk: the kernel behind ffn.py."""

from __future__ import annotations

import numpy as np
from numba import carray, njit
from numba.extending import register_jitable

from accel.cpu.ffn.activation import gated
from accel.cpu.linear.maps import HEIGHT, blocks_of, multiply_rows, pack_tokens
from accel.cpu.linear.packed_product import (
    multiply_packing,
    nothing_planned,
    plan_left,
    plan_right,
    plan_size,
    ready_right,
)
from accel.cpu.linear.packing import (
    DEPTH,
    HIGH,
    RIGHT,
    STEP,
    TEMPORARY,
    WIDTH,
    left_size,
    pack_right,
    right_pieces,
    right_size,
    store_pieces,
    vectors_of,
)
from accel.cpu.linear.rows import list_rows, number_size, padded
from accel.cpu.runtime.kernels import kernel
from accel.cpu.simd import (
    BF16,
    F32,
    LANES,
    MATRIX,
    TILE,
    close_tiles,
    load,
    open_tiles,
    peek,
    splat,
    store,
    swap_if,
    transpose,
    words_at,
)

DOWN, DOWN_BLOCKS = 128, 4  # neurons, and blocks of columns, of W_down that are packed at a time


@register_jitable
def places(tokens, dim, most, each):
    """Where each part of a worker's memory begins, in floats, for items of at most so many neurons; the last is how
    many there are."""
    blocks = blocks_of(tokens)
    sums = 0  # y (tokens padded, row): the first, so that workers' sums can be joined
    right = sums + padded(tokens, WIDTH) * row_of_sums(dim) // 4  # x, packed (blocks,)
    left = right + blocks * right_size(dim)  # two parts of W_gate and W_up, or of W_down, in turns
    gates = left + 2 * max(left_size(HEIGHT, DEPTH), DOWN_BLOCKS * right_size(DOWN), right_size(most))
    ups = gates + blocks * each * WIDTH  # both (blocks, each, WIDTH)
    hidden = ups + blocks * each * WIDTH  # packed (blocks,)
    temporary = hidden + blocks * hidden_size(most)
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


@njit
def activate_block(gates, ups, rows, vectors, silu):
    """act(gate) * up, in the gates' place, or where there is no `ups` act(gate)."""
    for i in range(rows):
        for j in range(0, vectors * LANES, LANES):
            at = 4 * (i * WIDTH + j)
            x = gated(load(gates + at), silu)
            store(gates + at, x * load(ups + at) if ups else x)


@njit
def pack_hidden(gates, rows, vectors, out, pieces, temporary):
    """What was activated of one block of tokens, which stand as columns, packed as the left side of the second product:
    for register tiles neuron by neuron, as they stand; for the matrix unit token by token."""
    if not MATRIX:
        for i in range(0, rows * WIDTH, LANES):
            store(out + 4 * i, load(gates + 4 * i))
        return
    for i in range(rows, padded(rows, STEP)):
        for j in range(0, WIDTH, LANES):
            store(gates + 4 * (i * WIDTH + j), splat(np.float32(0.0)))
    turned, addresses = temporary, temporary + 4 * LANES * STEP  # (LANES tokens, STEP neurons)
    stand = carray(words_at(addresses), STEP)
    for s in range(0, rows, STEP):
        for i in range(STEP):
            stand[i] = gates + 4 * (s + i) * WIDTH
        for j in range(0, vectors * LANES, LANES):
            transpose(addresses, 4 * j, turned, 4 * STEP)
            transpose(addresses + 8 * LANES, 4 * j, turned + 4 * LANES, 4 * STEP)
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


@njit
def pack_activated(gates, ups, rows, first, tokens, silu, hidden, size, kind, temporary):
    """Activate what `rows` neurons gave, and pack it for the second product from its neuron `first` on. `size` is
    that of a packed block, `kind` how the second product's weights are stored."""
    for n in range(blocks_of(tokens)):
        at, vectors = 4 * n * padded(rows, HIGH) * WIDTH, vectors_of(tokens - n * WIDTH)
        activate_block(gates + at, ups + at if ups else 0, rows, vectors, silu)
        to = hidden_at(hidden + 4 * n * size, first, kind)
        pack_hidden(gates + at, rows, vectors, to, right_pieces(kind), temporary)


@njit
def claim(counter, extra, count, unit, most, workers):
    """Take the next item: the compensator's neurons together, or so many of the others that as much is left for every
    core to take a few more. Returns the first and one past the last; of the others counted from `extra` on."""
    while True:
        start = peek(counter)
        left = extra + count - start
        if left <= 0:
            return start, start
        size = extra if start < extra else min(left, max(unit, min(most, left // (3 * workers) // unit * unit)))
        if swap_if(counter, start, start + size):
            return start, start + size


@kernel
def feed_chunk(
    task, worker, x, x_row, x_kind, gate, gate_row, kind, up, up_row, _, down, down_row, down_kind, chosen, c1,
    c1_row, c1_kind, c2, c2_row, c2_kind, extra, tokens, dim, count, silu, memory, size, most, each, workers, began,
):  # fmt: skip
    """The work of `feed_forward` for more than a few tokens."""
    mine = memory + 4 * worker * size
    p = places(tokens, dim, most, each)
    sums, right, left, gates = mine + 4 * p[0], mine + 4 * p[1], mine + 4 * p[2], mine + 4 * p[3]
    ups, hidden, temporary = mine + 4 * p[4], mine + 4 * p[5], mine + 4 * p[6]
    plan, lines, coming = mine + 4 * p[7], mine + 4 * p[8], mine + 4 * p[9]
    begun, first_part = carray(words_at(began), worker + 1), min(DEPTH, dim)
    packed, turn, place, hidden_block = -1, 0, 4 * left_size(HEIGHT, DEPTH), hidden_size(most)
    unit = padded(64, each)
    open_tiles()
    start, stop = claim(task, extra, count, unit, most, workers)
    while start < stop:
        if not begun[worker]:
            begun[worker] = 1
            for i in range(0, padded(tokens, WIDTH) * row_of_sums(dim), 4 * LANES):
                store(sums + i, splat(np.float32(0.0)))
        corrects = start < extra
        wanted = c1_kind if corrects else kind
        if packed != wanted:
            pack_tokens(x, x_row, x_kind, tokens, dim, wanted, right, lines, temporary)
            packed = wanted
        if corrects:
            for first in range(0, extra, each):
                rows = min(each, extra - first)
                list_rows(lines, c1, c1_row, first, rows, 0)
                plan_left(plan, lines, c1_kind, min(HEIGHT, rows), 0, first_part, left + turn * place)
                turn = multiply_rows(lines, c1_kind, rows, tokens, dim, right, left, turn, gates, plan, coming, 0)
                pack_activated(gates, 0, rows, first, tokens, silu, hidden, hidden_block, F32, temporary)
            _add_correction(
                c2, c2_row, c2_kind, extra, tokens, dim, hidden, hidden_block, left, sums, plan, lines, temporary
            )
        else:
            list_rows(lines, gate, gate_row, start - extra, min(each, stop - start), chosen)
            plan_left(plan, lines, kind, min(HEIGHT, stop - start), 0, first_part, left + turn * place)
            for first in range(start, stop, each):
                rows, at = min(each, stop - first), first - extra
                list_rows(lines, gate, gate_row, at, rows, chosen)
                list_rows(coming, up, up_row, at, rows, chosen)
                turn = multiply_rows(lines, kind, rows, tokens, dim, right, left, turn, gates, plan, coming, rows)
                list_rows(lines, up, up_row, at, rows, chosen)
                after = min(each, stop - first - rows)
                list_rows(coming, gate, gate_row, at + rows, after, chosen)
                turn = multiply_rows(lines, kind, rows, tokens, dim, right, left, turn, ups, plan, coming, after)
                pack_activated(
                    gates, ups, rows, first - start, tokens, silu, hidden, hidden_block, down_kind, temporary
                )
            _add_down(
                down, down_row, down_kind, chosen, start - extra, stop - extra, tokens, dim, hidden, hidden_block, left,
                sums, plan, lines, coming,
            )  # fmt: skip
        start, stop = claim(task, extra, count, unit, most, workers)
    close_tiles()


@njit
def _add_down(down, row, kind, chosen, start, stop, tokens, dim, hidden, hidden_block, left, sums, plan, lines, coming):
    """The second product: sums (tokens, dim) += hidden (tokens, neurons) · their rows of W_down."""
    form, step, wide, turn = RIGHT if kind == BF16 else kind, number_size(kind), DOWN_BLOCKS * WIDTH, 0
    place, sum_row = 4 * DOWN_BLOCKS * right_size(DOWN), row_of_sums(dim)
    deep = min(DOWN, stop - start)
    list_rows(lines, down, row, start, deep, chosen)
    plan_right(plan, lines, kind, deep, 0, min(wide, dim), left)
    for column in range(0, dim, wide):
        columns = min(wide, dim - column)
        for depth in range(start, stop, DOWN):
            deep, packed = min(DOWN, stop - depth), left + turn * place
            list_rows(lines, down + column * step, row, depth, deep, chosen)
            ready_right(plan, lines, kind, deep, columns, packed)
            turn = 1 - turn
            next_column, next_depth = column, depth + DOWN
            if next_depth >= stop:
                next_column, next_depth = column + wide, start
            further = min(DOWN, stop - next_depth)
            if next_column < dim:
                list_rows(coming, down + next_column * step, row, next_depth, further, chosen)
                plan_right(plan, coming, kind, further, 0, min(wide, dim - next_column), left + turn * place)
            else:
                nothing_planned(plan)
            for n in range(blocks_of(tokens)):
                at = hidden_at(hidden + 4 * n * hidden_block, depth - start, kind)
                here = min(WIDTH, tokens - n * WIDTH)
                for c in range(0, columns, WIDTH):
                    to, vectors = sums + n * WIDTH * sum_row + 4 * (column + c), vectors_of(columns - c)
                    part = packed + c // WIDTH * (4 * right_size(deep))
                    multiply_packing(form, 0, vectors, here, deep, at, 4 * WIDTH, part, to, sum_row, plan)


@njit
def _add_correction(c2, c2_row, c2_kind, extra, tokens, dim, hidden, hidden_block, left, sums, plan, lines, temporary):
    """sums (tokens, dim) += hidden (tokens, extra) · C2ᵀ, whose columns are rows of C2, packed as columns are."""
    stand, sum_row = carray(words_at(lines), WIDTH), row_of_sums(dim)
    nothing_planned(plan)
    for column in range(0, dim, WIDTH):
        columns = min(WIDTH, dim - column)
        for i in range(columns):
            stand[i] = c2 + (column + i) * c2_row
        pack_right(lines, c2_kind, columns, extra, left, 1.0, F32, temporary)
        for n in range(blocks_of(tokens)):
            here, to = min(WIDTH, tokens - n * WIDTH), sums + n * WIDTH * sum_row + 4 * column
            at = hidden + 4 * n * hidden_block
            multiply_packing(F32, 0, vectors_of(columns), here, extra, at, 4 * WIDTH, left, to, sum_row, plan)
