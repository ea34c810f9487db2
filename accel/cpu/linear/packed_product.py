"""Products of packed blocks, C = A·B, and what is packed or fetched meanwhile.

While a block is multiplied, a plan of what is packed next is carried out: on the matrix unit the vector registers are
free, so that packing takes no time of its own; register tiles leave nothing free but memory, which fetches it.
"""

from __future__ import annotations

from numba import carray, njit
from numba.extending import register_jitable

from accel.cpu.linear.packing import (
    HIGH,
    RIGHT,
    STEP,
    WIDTH,
    across_row,
    left_pieces,
    pack_left,
    pack_left_across,
    pack_left_steps,
    right_size,
    store_pieces,
)
from accel.cpu.linear.rows import load_kind, number_size, padded, widen
from accel.cpu.simd import (
    LANES,
    LEAD,
    MATRIX,
    ROWS,
    TILE,
    TURN_LEAD,
    pack_units,
    prefetch,
    product_and_pack,
    product_and_soften,
    product_and_turn,
    tile_rows,
    turn_units,
    words_at,
)

EACH = 8  # addresses that a product of a few rows fetches
RUN = 4  # steps of a row that are packed in a row


@njit
def empty_queue(queue):
    """Forget what was to be fetched. A queue is two words, the first and the end of the addresses that stand after
    them; while blocks are multiplied, two lines are fetched from each address on: what will be packed next."""
    words = carray(words_at(queue), 2)
    words[0] = words[1] = queue + 16


@njit
def enqueue(queue, lines, rows, offset, size):
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


@register_jitable
def queue_size(rows, size):
    """Floats of a queue for so many rows of `size` bytes."""
    return padded(2 * (2 + rows * ((size + 127) // 128) + EACH), 16)


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
def multiply_softening(form, vectors, rows, depth, left, right, c, units, scores, weights, state):
    """C = A·B on the matrix unit, and meanwhile the softmax of another block of scores, of WIDTH columns, `units` units
    in all; returns how many are done."""
    unit, steps = 0, padded(depth, STEP) // STEP
    for r in range(0, rows, HIGH):
        at, to = left + r // HIGH * steps * _pieces_of_a(form) * 2 * TILE, c + 4 * r * WIDTH
        unit = product_and_soften(
            vectors, form, 1, at, right, to, 4 * WIDTH, steps, unit, units, scores, weights, state
        )
    return unit


@njit
def multiply_packing(form, fresh, vectors, rows, depth, left, step, right, c, c_row, plan):
    """C (rows × vectors·LANES) = A·B if `fresh`, else C += A·B, and meanwhile what is planned is packed.

    `form` is how A was stored before it was packed (B was float32 then), or RIGHT where B is what was stored as
    bfloat16; what is planned is stored alike. `step` is 0 or, where A was packed across, the bytes from step to step.
    """
    if MATRIX:
        steps, units = padded(depth, STEP) // STEP, carray(words_at(plan), 2)
        for r in range(0, rows, HIGH):
            at, to = left + r // HIGH * steps * _pieces_of_a(form) * 2 * TILE, c + r * c_row
            units[0] = product_and_pack(
                vectors, form, fresh, at, right, to, c_row, steps, units[0], units[1], plan + 16
            )
    else:
        _multiply_tiles(fresh, vectors, rows, depth, left, step, right, c, c_row, plan)


@njit
def multiply_turning(form, vectors, rows, depth, left, right, c, c_row, turning, packing, square):
    """C += A·B with A packed across, and meanwhile what is planned is packed: across, and then along. `square` is room
    for LANES × STEP numbers."""
    if not MATRIX:
        _multiply_tiles(0, vectors, rows, depth, left, across_row(rows), right, c, c_row, packing)
        return
    steps, turns, packs = padded(depth, STEP) // STEP, carray(words_at(turning), 2), carray(words_at(packing), 2)
    for r in range(0, rows, HIGH):
        at, to = left + r // HIGH * steps * left_pieces(form) * 2 * TILE, c + r * c_row
        if turns[0] < turns[1]:
            turns[0] = product_and_turn(
                vectors, form, 0, at, right, to, c_row, steps, turns[0], turns[1], turning + 16, square
            )
        else:
            packs[0] = product_and_pack(vectors, form, 0, at, right, to, c_row, steps, packs[0], packs[1], packing + 16)


@njit
def _multiply_tiles(fresh, vectors, rows, depth, left, step, right, c, c_row, queue):
    """By register tiles, a few rows at a time; meanwhile memory works off the queue."""
    row = 4 if step else 4 * padded(depth, LANES)
    for r in range(0, rows, 2 * ROWS):
        _fetch_some(queue, EACH)
        at, to, some = left + r * row, c + r * c_row, min(2 * ROWS, rows - r)
        tile_rows(vectors, some, fresh, at, row, step or 4, right, 4 * WIDTH, to, c_row, depth)


@njit(forceinline=True)
def _pieces_of_a(form):
    return 2 if form == RIGHT else left_pieces(form)


@register_jitable
def plan_size(rows, depth):
    """Floats of a plan to pack so many rows of numbers."""
    if MATRIX:
        return padded(2 * (2 + 3 * (padded(rows, HIGH) * padded(depth, STEP) // STEP + LEAD)), 16)
    return queue_size(rows, 4 * depth)


@njit
def nothing_planned(plan):
    """A plan of nothing."""
    empty_queue(plan)
    if MATRIX:
        units = carray(words_at(plan), 2)
        units[0] = units[1] = 0


@njit
def plan_left(plan, lines, kind, rows, offset, depth, out):
    """Plan to pack an A from `depth` numbers from `offset` bytes on in each of the rows whose addresses stand at
    `lines`.

    A plan is carried out while other blocks are multiplied: on the matrix unit it is packed then, two registers at a
    time (addresses: from, from, to), else only fetched. `ready_left` does what is left.
    """
    if not MATRIX:
        empty_queue(plan)
        enqueue(plan, lines, rows, offset, depth * number_size(kind))
        return
    stand, size, steps = carray(words_at(lines), rows), number_size(kind), depth // STEP
    tiles, n = _steps_of(depth) * left_pieces(kind) * 2 * TILE, 0
    entries = carray(words_at(plan + 16), (padded(rows, HIGH) * steps + LEAD, 3))
    for r in range(0, padded(rows, HIGH), 16):
        to = out + r // 16 % 2 * TILE + r // 32 * tiles
        for first in range(0, steps, RUN):  # a run of each row at a time: memory likes neighbours
            for i in range(16):
                for s in range(first, min(first + RUN, steps)):
                    at = stand[min(r + i, rows - 1)] + offset + s * STEP * size
                    entries[n, 0], entries[n, 1] = at, at + LANES * size
                    entries[n, 2] = to + 64 * i + s * left_pieces(kind) * 2 * TILE
                    n += 1
    _close_plan(plan, n, LEAD)


@njit
def ready_left(plan, lines, kind, rows, depth, out):
    """Carry out what is left of a plan: A is packed, from the rows that now stand at `lines`, where they begin."""
    if not MATRIX:
        pack_left(lines, kind, rows, depth, out)
        return
    _finish(plan, kind)
    if depth % STEP:
        pack_left_steps(lines, kind, rows, depth // STEP * STEP, depth, out)


@njit
def plan_across(plan, queue, lines, kind, rows, depth, out):
    """Plan to pack an A across, from its columns: `depth` of them, `rows` numbers each, whose addresses stand at
    `lines`, with room for a multiple of STEP of them, until all is done. Register tiles fetch by the `queue` of another
    plan."""
    nothing_planned(plan)
    if not MATRIX:
        enqueue(queue, lines, depth, 0, rows * number_size(kind))
        return
    if rows % HIGH:
        return
    stand, tiles, n = carray(words_at(lines), padded(depth, STEP)), left_pieces(kind) * 2 * TILE, 0
    for i in range(depth, padded(depth, STEP)):
        stand[i] = stand[depth - 1]  # meets a zero of B
    entries = carray(words_at(plan + 16), (rows // 16 * _steps_of(depth) + TURN_LEAD, 3))
    for s in range(_steps_of(depth)):
        for r in range(0, rows, 16):
            entries[n, 0], entries[n, 1] = lines + 8 * s * STEP, r * number_size(kind)
            entries[n, 2] = out + r // 16 % 2 * TILE + (r // 32 * _steps_of(depth) + s) * tiles
            n += 1
    _close_plan(plan, n, TURN_LEAD)


@njit
def ready_across(plan, lines, kind, rows, depth, out, temporary):
    """Carry out what is left of such a plan, from the columns that stand at `lines`."""
    if not MATRIX or rows % HIGH:
        pack_left_across(lines, kind, rows, depth, out, temporary)
        return
    units = carray(words_at(plan), 2)
    turn_units(kind, units[0], units[1], plan + 16, temporary)
    units[0] = units[1]


@njit
def plan_right(plan, lines, kind, depth, offset, columns, out):
    """Plan to pack blocks of B from its rows: `depth` of them, whose addresses stand at `lines`, with `columns` numbers
    from `offset` bytes on in each."""
    if not MATRIX:
        empty_queue(plan)
        enqueue(plan, lines, depth, offset, columns * number_size(kind))
        return
    stand, size, n = carray(words_at(lines), depth), number_size(kind), 0
    entries = carray(words_at(plan + 16), (columns // LANES * 16 * _steps_of(depth) + LEAD, 3))
    for s in range(0, depth, STEP):
        for r in range(16):
            one, other = stand[min(s + r, depth - 1)] + offset, stand[min(s + r + 16, depth - 1)] + offset
            for j in range(columns // LANES):
                entries[n, 0], entries[n, 1] = one + j * LANES * size, other + j * LANES * size
                entries[n, 2] = _square_of_right(out, s, j, depth, kind) + 64 * r
                n += 1
    _close_plan(plan, n, LEAD)


@njit
def ready_right(plan, lines, kind, depth, columns, out):
    """Carry out what is left of such a plan, from the rows that now stand at `lines`."""
    stand, size = carray(words_at(lines), depth), number_size(kind)
    if not MATRIX:
        for first in range(0, columns, WIDTH):
            to = out + first // WIDTH * (4 * right_size(depth))
            for i in range(depth):
                widen(stand[i] + first * size, kind, min(WIDTH, columns - first), to + 4 * i * WIDTH, 1.0)
        return
    _finish(plan, kind)
    first = columns // LANES * LANES
    if first < columns:
        for s in range(0, depth, STEP):
            for r in range(16):
                one, other = (
                    stand[min(s + r, depth - 1)] + first * size,
                    stand[min(s + r + 16, depth - 1)] + first * size,
                )
                x, y = load_kind(one, kind, columns - first), load_kind(other, kind, columns - first)
                to = _square_of_right(out, s, first // LANES, depth, kind) + 64 * r
                store_pieces(x, y, to, 2 * TILE, left_pieces(kind))


@njit(forceinline=True)
def _square_of_right(out, s, j, depth, kind):
    """Where the first piece of the depths from s on and of the j-th LANES columns stands in packed blocks of B."""
    return out + j // 2 * (4 * right_size(depth)) + s // STEP * left_pieces(kind) * 2 * TILE + j % 2 * TILE


@njit(forceinline=True)
def _steps_of(depth):
    return padded(depth, STEP) // STEP


@njit
def _close_plan(plan, n, lead):
    """So many entries, and `lead` more that are only fetched."""
    units, entries = carray(words_at(plan), 2), carray(words_at(plan + 16), (n + lead, 3))
    for i in range(n, n + lead if n else 0):
        entries[i, 0], entries[i, 1] = entries[n - 1, 0], entries[n - 1, 1]
    units[0], units[1] = 0, n + lead if n else 0


@njit
def _finish(plan, kind):
    units = carray(words_at(plan), 2)
    pack_units(kind, units[0], units[1], plan + 16)
    units[0] = units[1]
