"""Products on vector registers: what `linear/unit.py` offers where there is no matrix unit.

Both sides are widened to float32, or, where the product's form is rounded and the machine multiplies pairs of
bfloat16, rounded to those, two depths to a step. A lies row by row, or step by step where it was packed across, and B
step by step. Registers leave nothing free but memory, so a plan is a queue of addresses: what will be packed next is
fetched while blocks are multiplied, and packed when its turn has come.
"""

from __future__ import annotations

import numpy as np

from accel.cpu.linear.rows import bytes_of, group_part, kind_of, load_kind, number_size, padded, widen
from accel.cpu.simd import (
    LANES,
    Q8,
    ROUNDED,
    ROWS,
    VECTORS,
    carray,
    exp2,
    load,
    njit,
    pair_rows,
    prefetch,
    rounded_pair,
    rounded_run,
    splat,
    store,
    tile_rows,
    transpose,
    words_at,
)

WIDTH, HIGH, STEP = VECTORS * LANES, 1, LANES
DEPTH = 128  # B stays in the first-level cache
HEIGHT, KEYS = 8 * ROWS, 128 // ROWS * ROWS
TEMPORARY = (WIDTH + 2 * LANES) * STEP + 2 * WIDTH
EACH = 8  # addresses that a product of a few rows fetches


@njit(forceinline=True)
def left_size(rows, depth):
    """Floats of a packed A."""
    return max(rows * padded(depth, LANES), depth * across_row(rows) // 4)


@njit(forceinline=True)
def right_size(depth):
    """Floats of a packed block of B."""
    return WIDTH * padded(depth, STEP)


@njit(forceinline=True)
def hidden_size(neurons):
    """Floats of a block of tokens that are activations of so many neurons, packed as A."""
    return WIDTH * padded(neurons, STEP)


@njit(forceinline=True)
def weights_size(keys):
    """Floats of a packed block of softmax weights, besides the scores: they take the scores' place."""
    return 0


@njit(forceinline=True)
def across_row(rows):
    """Bytes from step to step of an A that lies step by step: an odd number of cache lines, which spreads the steps
    over the first-level cache."""
    return 4 * (padded(rows, 32) + 16)


@njit(forceinline=True)
def _number(form):
    """Bytes of a packed number."""
    return 2 if form >= ROUNDED else 4


@njit(forceinline=True)
def _steps(form, depth):
    """Steps of such a depth."""
    return (depth + 1) // 2 if form >= ROUNDED else depth


@njit(forceinline=True)
def right_at(right, start, form):
    """Where the depth `start`, a multiple of STEP, stands in a packed block of B."""
    return right + _number(form) * start * WIDTH


@njit(forceinline=True)
def hidden_at(hidden, neuron, form):
    """Where neuron number `neuron`, a multiple of STEP, begins in a packed block of tokens."""
    return hidden + _number(form) * neuron * WIDTH


@njit(forceinline=True)
def roundings(form):
    """Additions onto C that a product makes for each number of it, of keys as many as a block has, against one."""
    return 1


@njit(forceinline=True)
def _row_of_left(form, depth):
    """Bytes from row to row of an A that lies row by row."""
    return 2 * padded(depth, 2 * LANES) if form >= ROUNDED else 4 * padded(depth, LANES)


@njit
def pack_left(lines, form, rows, depth, out):
    """A, which is stored, from `rows` rows of `depth` numbers, whose addresses stand at `lines`."""
    stand, kind = carray(words_at(lines), rows), kind_of(form)
    size = number_size(kind)
    for i in range(rows):
        to = out + i * _row_of_left(form, depth)
        if form < ROUNDED:
            widen(stand[i], kind, depth, to, 1.0)
            continue
        for d in range(0, depth, 2 * LANES):
            if kind == Q8:
                group = stand[i] + bytes_of(kind, d)
                store(to + 2 * d, rounded_run(group_part(group, 0), group_part(group, LANES)))
                continue
            x = load_kind(stand[i] + size * d, kind, depth - d)
            y = load_kind(stand[i] + size * (d + LANES), kind, depth - d - LANES)
            store(to + 2 * d, rounded_run(x, y))


@njit
def pack_right(lines, kind, columns, depth, out, factor, form, temporary):
    """A block of B from its columns: at most WIDTH of them, `depth` numbers each, whose addresses stand at `lines`,
    with room for WIDTH of them; times `factor`. The product's stored side is A."""
    stand, size, by = carray(words_at(lines), WIDTH), number_size(kind), splat(factor)
    places = temporary + 4 * WIDTH * LANES  # addresses of parts of the columns, as they are packed
    here, deep = carray(words_at(places), WIDTH), 4 * LANES // _number(form)
    for i in range(WIDTH):
        here[i] = temporary + 4 * LANES * i
    for s in range(0, depth, deep):
        for i in range(padded(columns, LANES)):
            at = stand[min(i, columns - 1)] + size * s
            x = load_kind(at, kind, depth - s) * by
            if form >= ROUNDED:
                x = rounded_run(x, load_kind(at + size * LANES, kind, depth - s - LANES) * by)
            store(here[i], x)
        for i in range(0, columns, LANES):
            transpose(places + 8 * i, 0, out + 4 * (_steps(form, s) * WIDTH + i), 4 * WIDTH)


@njit
def pack_hidden(gates, rows, vectors, out, form, temporary):
    """Activations of one block of tokens (rows, WIDTH), packed as A, neuron by neuron as they stand, for a product
    whose stored side is B."""
    if form < ROUNDED:
        for i in range(0, rows * WIDTH, LANES):
            store(out + 4 * i, load(gates + 4 * i))
        return
    for i in range(0, rows, 2):
        for j in range(0, WIDTH, LANES):
            at = gates + 4 * (i * WIDTH + j)
            y = load(at + 4 * WIDTH) if i + 1 < rows else splat(np.float32(0.0))
            store(out + 4 * (i // 2 * WIDTH + j), rounded_pair(load(at), y))


@njit(forceinline=True)
def _pack_steps(lines, form, depth, count, out, out_row):
    """Rows of `count` stored numbers, `depth` of them, whose addresses stand at `lines`, as steps `out_row` apart."""
    stand, kind = carray(words_at(lines), depth), kind_of(form)
    size = number_size(kind)
    if form < ROUNDED:
        for i in range(depth):
            widen(stand[i], kind, count, out + i * out_row, 1.0)
        return
    for i in range(0, depth, 2):
        for j in range(0, count, LANES):
            x, y = load_kind(stand[i] + size * j, kind, count - j), splat(np.float32(0.0))
            if i + 1 < depth:
                y = load_kind(stand[i + 1] + size * j, kind, count - j)
            store(out + i // 2 * out_row + 4 * j, rounded_pair(x, y))


@njit
def plan_size(rows, depth):
    """Floats of a plan to pack so many rows of numbers."""
    return padded(2 * (2 + rows * ((4 * depth + 127) // 128) + EACH), 16)


@njit
def nothing_planned(plan):
    """A plan of nothing. A queue is two words, the first and the end of the addresses that stand after them; from each
    two lines are fetched."""
    words = carray(words_at(plan), 2)
    words[0] = words[1] = plan + 16


@njit
def _enqueue(queue, lines, rows, offset, size):
    """Let `size` bytes be fetched from `offset` on in each of the rows whose addresses stand at `lines`."""
    ends, stand = carray(words_at(queue), 2), carray(words_at(lines), rows)
    count = (size + 127) // 128
    entries = carray(words_at(ends[1]), rows * count + EACH)
    for i in range(rows):
        for n in range(count):
            entries[i * count + n] = stand[i] + offset + 128 * n
    for i in range(EACH):  # the last ones are taken together with what stands after them
        entries[rows * count + i] = stand[0]
    ends[1] += 8 * rows * count


@njit
def _fetch_some(queue, count):
    ends = carray(words_at(queue), 2)
    while count and ends[0] < ends[1]:
        address = carray(words_at(ends[0]), 1)[0]
        prefetch(address)
        prefetch(address + 64)
        ends[0] += 8
        count -= 1


@njit
def plan_left(plan, lines, form, rows, offset, depth, out):
    """Plan to pack an A from `depth` numbers from `offset` bytes on in each of the rows whose addresses stand at
    `lines`."""
    nothing_planned(plan)
    _enqueue(plan, lines, rows, offset, bytes_of(kind_of(form), depth))


@njit
def ready_left(plan, lines, form, rows, depth, out):
    """Carry out what is left of a plan: A is packed, from the rows that now stand at `lines`, where they begin."""
    pack_left(lines, form, rows, depth, out)


@njit
def plan_across(plan, along, lines, form, rows, depth, out):
    """Plan to pack an A across, from its columns: `depth` of them, `rows` numbers each, whose addresses stand at
    `lines`, with room for a multiple of STEP of them, until all is done. They are fetched after what is planned
    `along`."""
    nothing_planned(plan)
    _enqueue(along, lines, depth, 0, rows * number_size(kind_of(form)))


@njit
def ready_across(plan, lines, form, rows, depth, out, temporary):
    """Carry out what is left of such a plan, from the columns that stand at `lines`."""
    _pack_steps(lines, form, depth, rows, out, across_row(rows))


@njit
def plan_right(plan, lines, form, depth, offset, columns, out):
    """Plan to pack blocks of B from its rows: `depth` of them, whose addresses stand at `lines`, with `columns` numbers
    from `offset` bytes on in each."""
    nothing_planned(plan)
    _enqueue(plan, lines, depth, offset, columns * number_size(kind_of(form)))


@njit
def ready_right(plan, lines, form, depth, columns, out):
    """Carry out what is left of such a plan, from the rows that now stand at `lines`."""
    stand = carray(words_at(lines), depth)
    for first in range(0, columns, WIDTH):
        to = out + first // WIDTH * (4 * right_size(depth))
        _pack_steps(lines, form, depth, min(WIDTH, columns - first), to, 4 * WIDTH)
        for i in range(depth):  # on to the next block of columns
            stand[i] += WIDTH * number_size(kind_of(form))


@njit
def multiply_packing(form, fresh, vectors, rows, depth, left, step, right, c, c_row, plan):
    """C (rows × vectors·LANES) = A·B if `fresh`, else C += A·B, and meanwhile memory works off the plan. `step` is 0
    or, where A was packed across, the bytes from step to step."""
    row = 4 if step else _row_of_left(form, depth)
    for r in range(0, rows, 2 * ROWS):
        _fetch_some(plan, EACH)
        at, to, some = left + r * row, c + r * c_row, min(2 * ROWS, rows - r)
        if form >= ROUNDED:
            pair_rows(vectors, some, fresh, at, row, step or 4, right, 4 * WIDTH, to, c_row, _steps(form, depth))
        else:
            tile_rows(vectors, some, fresh, at, row, step or 4, right, 4 * WIDTH, to, c_row, depth)


@njit
def multiply_softening(
    form, vectors, rows, depth, left, right, c, plan, together, softening, count, old_scores, weights, state
):
    """C = A·B, scores; registers leave the softmax of another block of scores for later: returns 0, what is done of
    it."""
    multiply_packing(form, 1, vectors, rows, depth, left, 0, right, c, 4 * WIDTH, plan)
    return 0


@njit
def soften(form, done, vectors, count, scores, weights, state):
    """2^(x - peak) of a block of scores in their place, as B of a product of this form, and the sums of its columns to
    the second row of `state`, whose first are the peaks; returns where the weights stand."""
    for j in range(0, vectors * LANES, LANES):
        peak, sums = load(state + 4 * j), splat(np.float32(0.0))
        if form >= ROUNDED:
            for i in range(0, count, 2):
                row = scores + 4 * (i * WIDTH + j)
                x, y = exp2(load(row) - peak), splat(np.float32(0.0))
                if i + 1 < count:
                    y = exp2(load(row + 4 * WIDTH) - peak)
                sums = sums + (x + y)
                store(scores + 4 * (i // 2 * WIDTH + j), rounded_pair(x, y))
        else:
            for i in range(count):
                row = scores + 4 * (i * WIDTH + j)
                x = exp2(load(row) - peak)
                sums = sums + x
                store(row, x)
        store(state + 4 * (WIDTH + j), sums)
    return scores


@njit(forceinline=True)
def fill_step(vectors, count, scores):
    """Nothing: `soften` takes any number of keys."""


@njit
def multiply_turning(form, vectors, rows, depth, left, right, c, c_row, turning, packing, together, square):
    """C += A·B with A packed across, and meanwhile memory works off what is planned."""
    multiply_packing(form, 0, vectors, rows, depth, left, across_row(rows), right, c, c_row, packing)
