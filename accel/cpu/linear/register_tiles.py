"""Products on vector registers: what `linear/unit.py` offers where there is no matrix unit.

Both sides are widened to float32. A lies row by row, or step by step where it was packed across, and B step by step.
Registers leave nothing free but memory, so a plan is a queue of addresses: what will be packed next is fetched while
blocks are multiplied, and packed when its turn has come.
"""

from __future__ import annotations

import numpy as np
from numba import carray, njit
from numba.extending import register_jitable

from accel.cpu.linear.rows import load_kind, number_size, padded, widen
from accel.cpu.simd import (
    LANES,
    ROWS,
    VECTORS,
    exp2,
    load,
    prefetch,
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


@register_jitable(forceinline=True)
def left_size(rows, depth):
    """Floats of a packed A."""
    return max(rows * padded(depth, LANES), depth * across_row(rows) // 4)


@register_jitable(forceinline=True)
def right_size(depth):
    """Floats of a packed block of B."""
    return WIDTH * padded(depth, STEP)


@register_jitable(forceinline=True)
def hidden_size(neurons):
    """Floats of a block of tokens that are activations of so many neurons, packed as A."""
    return WIDTH * padded(neurons, STEP)


@register_jitable(forceinline=True)
def weights_size(keys):
    """Floats of a packed block of softmax weights, besides the scores: they take the scores' place."""
    return 0


@register_jitable(forceinline=True)
def across_row(rows):
    """Bytes from step to step of an A that lies step by step: an odd number of cache lines, which spreads the steps
    over the first-level cache."""
    return 4 * (padded(rows, 32) + 16)


@njit(forceinline=True)
def right_at(right, start, kind):
    """Where the depth `start`, a multiple of STEP, stands in a packed block of B."""
    return right + 4 * start * WIDTH


@njit(forceinline=True)
def hidden_at(hidden, neuron, kind):
    """Where neuron number `neuron`, a multiple of STEP, begins in a packed block of tokens."""
    return hidden + 4 * neuron * WIDTH


@njit(forceinline=True)
def right_form(kind):
    """The form of a product whose B is stored as `kind`, while A was just computed."""
    return kind


@register_jitable(forceinline=True)
def roundings(kind):
    """Additions onto C that a product makes for each number of it, of keys as many as a block has, against one."""
    return 1


@njit
def pack_left(lines, kind, rows, depth, out):
    """A from `rows` rows of `depth` numbers, whose addresses stand at `lines`."""
    stand = carray(words_at(lines), rows)
    for i in range(rows):
        widen(stand[i], kind, depth, out + 4 * i * padded(depth, LANES), 1.0)


@njit
def pack_right(lines, kind, columns, depth, out, factor, left_kind, temporary):
    """A block of B from its columns: at most WIDTH of them, `depth` numbers each, whose addresses stand at `lines`,
    with room for WIDTH of them; times `factor`. `left_kind` is how A is stored."""
    stand, size, by = carray(words_at(lines), WIDTH), number_size(kind), splat(factor)
    places = temporary + 4 * WIDTH * STEP  # addresses of widened parts of the columns
    here = carray(words_at(places), WIDTH)
    for i in range(WIDTH):
        here[i] = temporary + 4 * STEP * i
    for s in range(0, depth, STEP):
        for i in range(padded(columns, LANES)):
            x = load_kind(stand[min(i, columns - 1)] + size * s, kind, depth - s)
            store(here[i], x * by)
        for i in range(0, columns, LANES):
            transpose(places + 8 * i, 0, out + 4 * (s * WIDTH + i), 4 * WIDTH)


@njit
def pack_hidden(gates, rows, vectors, out, kind, temporary):
    """Activations of one block of tokens (rows, WIDTH), packed as A, neuron by neuron as they stand, for a B stored as
    `kind`."""
    for i in range(0, rows * WIDTH, LANES):
        store(out + 4 * i, load(gates + 4 * i))


@register_jitable
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
def plan_left(plan, lines, kind, rows, offset, depth, out):
    """Plan to pack an A from `depth` numbers from `offset` bytes on in each of the rows whose addresses stand at
    `lines`."""
    nothing_planned(plan)
    _enqueue(plan, lines, rows, offset, depth * number_size(kind))


@njit
def ready_left(plan, lines, kind, rows, depth, out):
    """Carry out what is left of a plan: A is packed, from the rows that now stand at `lines`, where they begin."""
    pack_left(lines, kind, rows, depth, out)


@njit
def plan_across(plan, along, lines, kind, rows, depth, out):
    """Plan to pack an A across, from its columns: `depth` of them, `rows` numbers each, whose addresses stand at
    `lines`, with room for a multiple of STEP of them, until all is done. They are fetched after what is planned
    `along`."""
    nothing_planned(plan)
    _enqueue(along, lines, depth, 0, rows * number_size(kind))


@njit
def ready_across(plan, lines, kind, rows, depth, out, temporary):
    """Carry out what is left of such a plan, from the columns that stand at `lines`."""
    stand = carray(words_at(lines), depth)
    for i in range(depth):
        widen(stand[i], kind, rows, out + i * across_row(rows), 1.0)


@njit
def plan_right(plan, lines, kind, depth, offset, columns, out):
    """Plan to pack blocks of B from its rows: `depth` of them, whose addresses stand at `lines`, with `columns` numbers
    from `offset` bytes on in each."""
    nothing_planned(plan)
    _enqueue(plan, lines, depth, offset, columns * number_size(kind))


@njit
def ready_right(plan, lines, kind, depth, columns, out):
    """Carry out what is left of such a plan, from the rows that now stand at `lines`."""
    stand, size = carray(words_at(lines), depth), number_size(kind)
    for first in range(0, columns, WIDTH):
        to = out + first // WIDTH * (4 * right_size(depth))
        for i in range(depth):
            widen(stand[i] + first * size, kind, min(WIDTH, columns - first), to + 4 * i * WIDTH, 1.0)


@njit
def multiply_packing(form, fresh, vectors, rows, depth, left, step, right, c, c_row, plan):
    """C (rows × vectors·LANES) = A·B if `fresh`, else C += A·B, and meanwhile memory works off the plan. `step` is 0
    or, where A was packed across, the bytes from step to step."""
    row = 4 if step else 4 * padded(depth, LANES)
    for r in range(0, rows, 2 * ROWS):
        _fetch_some(plan, EACH)
        at, to, some = left + r * row, c + r * c_row, min(2 * ROWS, rows - r)
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
def soften(kind, done, vectors, count, scores, weights, state):
    """2^(x - peak) of a block of scores in their place, and the sums of its columns to the second row of `state`, whose
    first are the peaks; returns where the weights stand."""
    for j in range(0, vectors * LANES, LANES):
        peak, sums = load(state + 4 * j), splat(np.float32(0.0))
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
