"""Products on the matrix unit: what `linear/unit.py` offers where there is one.

The unit works by itself and leaves the vector registers free: while it multiplies, what is planned is packed, two
registers at a time, and one block of scores is softened while those of the next are computed. Both take no time of
their own. A plan is two words, the first and the end of its units, and after them three words for each unit.
"""

from __future__ import annotations

import numpy as np

from accel.cpu.linear.matrix_packing import (
    HIGH,
    STEP,
    WIDTH,
    pack_left_across,
    pack_left_steps,
    square_of_right,
    steps_of,
    store_pieces,
    stored_pieces,
)
from accel.cpu.linear.rows import bytes_of, kind_of, load_kind, number_size, padded
from accel.cpu.simd import (
    F32,
    LANES,
    LEAD,
    Q8,
    TILE,
    TURN_LEAD,
    carray,
    njit,
    pack_units,
    product_and_pack,
    product_and_soften,
    product_and_turn,
    soften_units,
    splat,
    store,
    turn_units,
    words_at,
)

DEPTH = 576  # both sides stay in the second-level cache
HEIGHT, KEYS = 32, 128
RUN = 4  # steps of a row that are packed in a row


@njit(forceinline=True)
def roundings(form):
    """Additions onto C that a product makes for each number of it, of keys as many as a block has, against one: six
    pieces in each of four steps of float32, most of them small. What is stored in 16 bits is not that exact."""
    return 8 if form == F32 else 1


@njit
def plan_size(rows, depth):
    """Floats of a plan to pack so many rows of numbers."""
    return padded(2 * (2 + 3 * (padded(rows, HIGH) * padded(depth, STEP) // STEP + LEAD)), 16)


@njit
def nothing_planned(plan):
    """A plan of nothing."""
    units = carray(words_at(plan), 2)
    units[0] = units[1] = 0


@njit
def _close_plan(plan, n, lead):
    """So many entries, and `lead` more that are only fetched."""
    units, entries = carray(words_at(plan), 2), carray(words_at(plan + 16), (n + lead, 3))
    for i in range(n, n + lead if n else 0):
        entries[i, 0], entries[i, 1] = entries[n - 1, 0], entries[n - 1, 1]
    units[0], units[1] = 0, n + lead if n else 0


@njit
def _finish(plan, form):
    units = carray(words_at(plan), 2)
    pack_units(form, units[0], units[1], plan + 16)
    units[0] = units[1]


@njit
def plan_left(plan, lines, form, rows, offset, depth, out):
    """Plan to pack an A from `depth` numbers from `offset` bytes on in each of the rows whose addresses stand at
    `lines`: its whole steps."""
    stand, kind, steps = carray(words_at(lines), rows), kind_of(form), depth // STEP
    half = LANES if kind == Q8 else LANES * number_size(kind)  # bytes of half a step
    tiles, n = steps_of(depth) * stored_pieces(form) * 2 * TILE, 0
    entries = carray(words_at(plan + 16), (padded(rows, HIGH) * steps + LEAD, 3))
    for r in range(0, padded(rows, HIGH), 16):
        to = out + r // 16 % 2 * TILE + r // 32 * tiles
        for first in range(0, steps, RUN):  # a run of each row at a time: memory likes neighbours
            for i in range(16):
                for s in range(first, min(first + RUN, steps)):
                    at = stand[min(r + i, rows - 1)] + offset + bytes_of(kind, s * STEP)
                    at += 2 if kind == Q8 else 0  # after the scale
                    entries[n, 0], entries[n, 1] = at, at + half
                    entries[n, 2] = to + 64 * i + s * stored_pieces(form) * 2 * TILE
                    n += 1
    _close_plan(plan, n, LEAD)


@njit
def ready_left(plan, lines, form, rows, depth, out):
    """Carry out what is left of a plan: A is packed, from the rows that now stand at `lines`, where they begin."""
    _finish(plan, form)
    if depth % STEP:
        pack_left_steps(lines, form, rows, depth // STEP * STEP, depth, out)


@njit
def plan_across(plan, along, lines, form, rows, depth, out):
    """Plan to pack an A across, from its columns: `depth` of them, `rows` numbers each, whose addresses stand at
    `lines`, with room for a multiple of STEP of them, until all is done."""
    nothing_planned(plan)
    if rows % HIGH:
        return
    stand, tiles, n = carray(words_at(lines), padded(depth, STEP)), stored_pieces(form) * 2 * TILE, 0
    for i in range(depth, padded(depth, STEP)):
        stand[i] = stand[depth - 1]  # meets a zero of B
    entries = carray(words_at(plan + 16), (rows // 16 * steps_of(depth) + TURN_LEAD, 3))
    for s in range(steps_of(depth)):
        for r in range(0, rows, 16):
            entries[n, 0], entries[n, 1] = lines + 8 * s * STEP, r * number_size(kind_of(form))
            entries[n, 2] = out + r // 16 % 2 * TILE + (r // 32 * steps_of(depth) + s) * tiles
            n += 1
    _close_plan(plan, n, TURN_LEAD)


@njit
def ready_across(plan, lines, form, rows, depth, out, temporary):
    """Carry out what is left of such a plan, from the columns that stand at `lines`."""
    if rows % HIGH:
        pack_left_across(lines, form, rows, depth, out, temporary)
        return
    units = carray(words_at(plan), 2)
    turn_units(form, units[0], units[1], plan + 16, temporary)
    units[0] = units[1]


@njit
def plan_right(plan, lines, form, depth, offset, columns, out):
    """Plan to pack blocks of B from its rows: `depth` of them, whose addresses stand at `lines`, with `columns` numbers
    from `offset` bytes on in each: its whole registers."""
    stand, size, n = carray(words_at(lines), depth), number_size(kind_of(form)), 0
    entries = carray(words_at(plan + 16), (columns // LANES * 16 * steps_of(depth) + LEAD, 3))
    for s in range(0, depth, STEP):
        for r in range(16):
            one, other = stand[min(s + r, depth - 1)] + offset, stand[min(s + r + 16, depth - 1)] + offset
            for j in range(columns // LANES):
                entries[n, 0], entries[n, 1] = one + j * LANES * size, other + j * LANES * size
                entries[n, 2] = square_of_right(out, s, j, depth, form) + 64 * r
                n += 1
    _close_plan(plan, n, LEAD)


@njit
def ready_right(plan, lines, form, depth, columns, out):
    """Carry out what is left of such a plan, from the rows that now stand at `lines`."""
    stand, kind, first = carray(words_at(lines), depth), kind_of(form), columns // LANES * LANES
    size = number_size(kind)
    _finish(plan, form)
    if first < columns:
        for s in range(0, depth, STEP):
            for r in range(16):
                one, other = stand[min(s + r, depth - 1)], stand[min(s + r + 16, depth - 1)]
                x = load_kind(one + first * size, kind, columns - first)
                y = load_kind(other + first * size, kind, columns - first)
                to = square_of_right(out, s, first // LANES, depth, form) + 64 * r
                store_pieces(x, y, to, 2 * TILE, stored_pieces(form))


@njit(forceinline=True)
def _block_of_a(left, r, depth, form):
    """Where 32 rows of a packed A begin. Where both sides have as many pieces, either may be the stored one."""
    return left + r // HIGH * steps_of(depth) * stored_pieces(form) * 2 * TILE


@njit
def multiply_packing(form, fresh, vectors, rows, depth, left, step, right, c, c_row, plan):
    """C (rows × vectors·LANES) = A·B if `fresh`, else C += A·B, and meanwhile what is planned is packed.

    What is planned is stored as the product's stored side was. `step` is for register tiles.
    """
    units = carray(words_at(plan), 2)
    for r in range(0, rows, HIGH):
        at = _block_of_a(left, r, depth, form)
        units[0] = product_and_pack(
            vectors, form, fresh, at, right, c + r * c_row, c_row, steps_of(depth), units[0], units[1], plan + 16
        )


@njit
def multiply_softening(
    form, vectors, rows, depth, left, right, c, plan, together, softening, count, old_scores, weights, state
):
    """C = A·B, scores, and meanwhile, if `together`, the softmax of another block of scores, or else what is planned;
    returns how many units of the softmax are done. There is one to be done if `softening`, of so many keys."""
    if not together:
        multiply_packing(form, 1, vectors, rows, depth, left, 0, right, c, 4 * WIDTH, plan)
        return 0
    unit, units = 0, padded(count, STEP) // 2 if softening else 0
    for r in range(0, rows, HIGH):
        at = _block_of_a(left, r, depth, form)
        unit = product_and_soften(
            vectors, form, 1, at, right, c + 4 * r * WIDTH, 4 * WIDTH, steps_of(depth), unit, units, old_scores,
            weights, state,
        )  # fmt: skip
    return unit


@njit
def soften(form, done, vectors, count, scores, weights, state):
    """2^(x - peak) of a block of scores, packed as B for a product of this form, from the unit `done` on; the sums of
    its columns are added to the second row of `state`, whose first are the peaks. Returns where the weights stand."""
    soften_units(form, done, padded(count, STEP) // 2, scores, weights, state)
    return weights


@njit
def fill_step(vectors, count, scores):
    """Hide the rows of scores that fill up the last step."""
    for i in range(count, padded(count, STEP)):
        for j in range(0, vectors * LANES, LANES):
            store(scores + 4 * (i * WIDTH + j), splat(np.float32(-np.inf)))


@njit
def multiply_turning(form, vectors, rows, depth, left, right, c, c_row, turning, packing, together, square):
    """C += A·B with A packed across, and meanwhile what is planned is packed: across, and then, if `together`, along,
    what is stored alike. `square` is room for LANES × STEP numbers."""
    turns, packs = carray(words_at(turning), 2), carray(words_at(packing), 2)
    for r in range(0, rows, HIGH):
        at, to, steps = _block_of_a(left, r, depth, form), c + r * c_row, steps_of(depth)
        if turns[0] < turns[1] or not together:
            turns[0] = product_and_turn(
                vectors, form, 0, at, right, to, c_row, steps, turns[0], turns[1], turning + 16, square
            )
        else:
            packs[0] = product_and_pack(vectors, form, 0, at, right, to, c_row, steps, packs[0], packs[1], packing + 16)
