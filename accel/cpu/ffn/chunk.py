"""The gated FFN of a chunk: the two kernels behind ffn/call.py, one up to the activation and one from there on."""

from __future__ import annotations

from typing import NamedTuple

from accel.cpu.ffn.activation import gated
from accel.cpu.linear.maps import blocks_of, multiply_rows, packed_at
from accel.cpu.linear.rows import copy_row, list_rows, number_size, padded, rounded
from accel.cpu.linear.unit import (
    DEPTH,
    HEIGHT,
    HIGH,
    TEMPORARY,
    WIDTH,
    hidden_at,
    hidden_size,
    left_size,
    multiply_packing,
    nothing_planned,
    pack_hidden,
    pack_right,
    plan_left,
    plan_right,
    plan_size,
    ready_right,
    right_size,
    vectors_of,
)
from accel.cpu.runtime.kernels import kernel
from accel.cpu.simd import (
    F32,
    LANES,
    carray,
    close_tiles,
    fetch_add,
    load,
    njit,
    open_tiles,
    peek,
    store,
    swap_if,
    words_at,
)

DOWN, DOWN_BLOCKS = 128, 4  # neurons, and blocks of columns, of W_down that are packed at a time


class GatePlaces(NamedTuple):
    """Where each part of a worker's memory begins in `activate_chunk`, for so many neurons that are passed over the
    tokens together."""

    left: int  # two parts of W_gate and W_up, in turns
    gates: int  # (blocks, each, WIDTH)
    ups: int  # alike
    temporary: int
    plan: int
    lines: int  # addresses of rows
    coming: int  # addresses of the rows after them
    end: int


@njit
def gate_places(base, tokens, each):
    """The places from an address on; from 0 on the last is how many bytes there are."""
    blocks, high = blocks_of(tokens), padded(each, HIGH)
    left = base
    gates = left + 8 * left_size(HEIGHT, DEPTH)
    ups = gates + 4 * blocks * high * WIDTH
    temporary = ups + 4 * blocks * high * WIDTH
    plan = temporary + 4 * TEMPORARY
    lines = plan + 4 * plan_size(HEIGHT, DEPTH)
    coming = lines + 8 * padded(max(WIDTH, each + HEIGHT), LANES)
    return GatePlaces(left, gates, ups, temporary, plan, lines, coming, padded(coming + 8 * each, 64))


class DownPlaces(NamedTuple):
    """The same for `project_chunk`, for items of so many columns."""

    sums: int  # (tokens padded, row)
    left: int  # two parts of W_down, in turns, or one of C2
    temporary: int
    plan: int
    lines: int  # addresses of rows
    coming: int  # addresses of the rows after them
    end: int


@njit
def down_places(base, tokens, extra, wide):
    """The places from an address on; from 0 on the last is how many bytes there are."""
    sums = base
    left = sums + padded(tokens, WIDTH) * row_of_sums(wide)
    temporary = left + 4 * max(2 * DOWN_BLOCKS * right_size(DOWN), right_size(extra))
    plan = temporary + 4 * TEMPORARY
    lines = plan + 4 * plan_size(DOWN, DOWN_BLOCKS * WIDTH)
    coming = lines + 8 * padded(max(WIDTH, DOWN), LANES)
    return DownPlaces(sums, left, temporary, plan, lines, coming, padded(coming + 8 * DOWN, 64))


@njit
def row_of_sums(dim):
    """Bytes from token to token of sums: an odd number of cache lines, which spreads them over the caches."""
    return 4 * (padded(dim, 32) + 16)


@njit
def activate_block(gates, ups, rows, vectors, silu):
    """act(gate) * up, in the gates' place, or where there is no `ups` act(gate)."""
    for i in range(rows):
        for j in range(0, vectors * LANES, LANES):
            at = 4 * (i * WIDTH + j)
            x = gated(load(gates + at), silu)
            store(gates + at, x * load(ups + at) if ups else x)


@njit
def pack_activated(gates, ups, rows, first, tokens, silu, hidden, size, form, temporary):
    """Activate what `rows` neurons gave, and pack it for the second product from its neuron `first` on. `size` is
    that of a packed block, `form` the second product's."""
    for n in range(blocks_of(tokens)):
        at, vectors = 4 * n * padded(rows, HIGH) * WIDTH, vectors_of(tokens - n * WIDTH)
        activate_block(gates + at, ups + at if ups else 0, rows, vectors, silu)
        to = hidden_at(hidden + 4 * n * size, first, form)
        pack_hidden(gates + at, rows, vectors, to, form, temporary)


@njit
def claim(counter, extra, count, spans, unit, workers):
    """Take the next item: of the next span of tokens the compensator's neurons together, or so many of the others that
    as much is left for every core to take a few more. Returns the first and one past the last, the others counted from
    `extra` on, and the span."""
    while True:
        taken = peek(counter)
        span, start = taken // (extra + count), taken % (extra + count)
        if span >= spans:
            return start, start, span
        share = (spans * (extra + count) - taken) // (3 * workers) // unit * unit
        size = extra if start < extra else min(extra + count - start, max(unit, share))
        if swap_if(counter, taken, taken + size):
            return start, start + size, span


@kernel
def activate_chunk(
    task, worker, right, gate, gate_row, kind, up, up_row, _, down_kind, choices, choices_row, right_c1, c1, c1_row,
    c1_kind, extra, tokens, span_tokens, dim, count, silu, hidden, corrections, memory, size, each, workers,
):  # fmt: skip
    """hidden = act(W_gate x) * (W_up x), packed for the second product (blocks, neurons), and of the compensator's
    neurons `corrections` = act(C1 x). x is packed at `right`, and as C1's form wants it at `right_c1`. Spans are of
    `span_tokens` tokens, and the neurons of one are listed `choices_row` bytes after those of the one before."""
    places = gate_places(memory + size * worker, min(span_tokens, tokens), each)
    left, gates, ups, temporary = places.left, places.gates, places.ups, places.temporary
    plan, lines, coming = places.plan, places.lines, places.coming
    turn, place, first_part = 0, 4 * left_size(HEIGHT, DEPTH), min(DEPTH, dim)
    spans = (tokens + span_tokens - 1) // span_tokens
    form, c1_form, down_form = rounded(kind), rounded(c1_kind), rounded(down_kind)
    open_tiles()
    start, stop, span = claim(task, extra, count, spans, each, workers)
    while start < stop:
        token, chosen = span * span_tokens, choices + span * choices_row
        here, block = min(span_tokens, tokens - token), token // WIDTH
        if start < extra:
            packed, to = packed_at(right_c1, token, dim), corrections + 4 * block * hidden_size(extra)
            for first in range(0, extra, each):
                rows = min(each, extra - first)
                list_rows(lines, c1, c1_row, first, rows, 0)
                plan_left(plan, lines, c1_form, min(HEIGHT, rows), 0, first_part, left + turn * place)
                turn = multiply_rows(lines, c1_form, rows, here, dim, packed, left, turn, gates, plan, coming, 0)
                pack_activated(gates, 0, rows, first, here, silu, to, hidden_size(extra), F32, temporary)
        else:
            packed, to = packed_at(right, token, dim), hidden + 4 * block * hidden_size(count)
            list_rows(lines, gate, gate_row, start - extra, min(each, stop - start), chosen)
            plan_left(plan, lines, form, min(HEIGHT, stop - start), 0, first_part, left + turn * place)
            for first in range(start - extra, stop - extra, each):
                rows = min(each, stop - extra - first)
                list_rows(lines, gate, gate_row, first, rows, chosen)
                list_rows(coming, up, up_row, first, rows, chosen)
                turn = multiply_rows(lines, form, rows, here, dim, packed, left, turn, gates, plan, coming, rows)
                list_rows(lines, up, up_row, first, rows, chosen)
                after = min(each, stop - extra - first - rows)
                list_rows(coming, gate, gate_row, first + rows, after, chosen)
                turn = multiply_rows(lines, form, rows, here, dim, packed, left, turn, ups, plan, coming, after)
                pack_activated(gates, ups, rows, first, here, silu, to, hidden_size(count), down_form, temporary)
        start, stop, span = claim(task, extra, count, spans, each, workers)
    close_tiles()


@kernel
def project_chunk(
    task, worker, hidden, down, down_row, kind, choices, choices_row, count, corrections, c2, c2_row, c2_kind, extra, y,
    tokens, span_tokens, dim, memory, size, wide,
):  # fmt: skip
    """y (tokens, dim) = hidden · its neurons' rows of W_down + corrections · C2ᵀ. An item is `wide` columns of y and a
    span of tokens: one worker adds up all that goes into a number, neuron by neuron."""
    places = down_places(memory + size * worker, min(span_tokens, tokens), extra, wide)
    sums, left, temporary, plan = places.sums, places.left, places.temporary, places.plan
    lines, coming = places.lines, places.coming
    form, step, sum_row = rounded(kind), number_size(kind), row_of_sums(wide)
    place, turn, planned, items = 4 * DOWN_BLOCKS * right_size(DOWN), 0, False, (dim + wide - 1) // wide
    open_tiles()
    item, following = fetch_add(task, 1), fetch_add(task, 1)
    while item // items * span_tokens < tokens:
        column, token = item % items * wide, item // items * span_tokens
        columns, here, block = min(wide, dim - column), min(span_tokens, tokens - token), token // WIDTH
        chosen = choices + item // items * choices_row
        mine, corrected = hidden + 4 * block * hidden_size(count), corrections + 4 * block * hidden_size(extra)
        if extra:
            _correct(
                corrected, c2 + column * c2_row, c2_row, c2_kind, extra, here, columns, left, sums, sum_row,
                plan, lines, temporary,
            )  # fmt: skip
        if not planned:
            list_rows(lines, down + column * step, down_row, 0, min(DOWN, count), chosen)
            plan_right(plan, lines, form, min(DOWN, count), 0, columns, left + turn * place)
        for depth in range(0, count, DOWN):
            deep, packed = min(DOWN, count - depth), left + turn * place
            list_rows(lines, down + column * step, down_row, depth, deep, chosen)
            ready_right(plan, lines, form, deep, columns, packed)
            turn = 1 - turn
            next_item, next_depth = item, depth + DOWN
            if next_depth >= count:
                next_item, next_depth = following, 0
            next_column = next_item % items * wide
            planned = next_item // items * span_tokens < tokens and (
                next_depth > 0 or not extra
            )  # a correction needs the room
            if planned:
                further = min(DOWN, count - next_depth)
                then = choices + next_item // items * choices_row
                list_rows(coming, down + next_column * step, down_row, next_depth, further, then)
                plan_right(plan, coming, form, further, 0, min(wide, dim - next_column), left + turn * place)
            else:
                nothing_planned(plan)
            for n in range(blocks_of(here)):
                at, high = hidden_at(mine + 4 * n * hidden_size(count), depth, form), min(WIDTH, here - n * WIDTH)
                for c in range(0, columns, WIDTH):
                    to, part = sums + n * WIDTH * sum_row + 4 * c, packed + c // WIDTH * (4 * right_size(deep))
                    fresh, vectors = depth == 0 and not extra, vectors_of(columns - c)
                    multiply_packing(form, fresh, vectors, high, deep, at, 4 * WIDTH, part, to, sum_row, plan)
        for t in range(here):
            copy_row(sums + t * sum_row, y + 4 * ((token + t) * dim + column), columns, 1.0)
        item, following = following, fetch_add(task, 1)
    close_tiles()


@njit
def _correct(corrections, c2, row, kind, extra, tokens, columns, left, sums, sum_row, plan, lines, temporary):
    """sums (tokens, columns) = corrections (tokens, extra) · C2ᵀ, whose columns are rows of C2, packed as columns
    are."""
    stand = carray(words_at(lines), WIDTH)
    nothing_planned(plan)
    for c in range(0, columns, WIDTH):
        some = min(WIDTH, columns - c)
        for i in range(some):
            stand[i] = c2 + (c + i) * row
        pack_right(lines, kind, some, extra, left, 1.0, F32, temporary)
        for n in range(blocks_of(tokens)):
            here, to = min(WIDTH, tokens - n * WIDTH), sums + n * WIDTH * sum_row + 4 * c
            at = corrections + 4 * n * hidden_size(extra)
            multiply_packing(F32, 1, vectors_of(some), here, extra, at, 4 * WIDTH, left, to, sum_row, plan)
