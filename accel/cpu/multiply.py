"""Products of packed blocks, C = A·B, and what is fetched or packed meanwhile.

While a block is multiplied, memory works off a queue of addresses, or a plan of what is packed next: on the matrix unit
the vector registers are free, so that packing takes no time of its own.
"""

from __future__ import annotations

from numba import carray, njit
from numba.extending import register_jitable

from accel.cpu.blocks import (
    HIGH,
    RIGHT,
    STEP,
    WIDTH,
    left_pieces,
    pack_left,
    pack_left_steps,
    right_size,
    store_pieces,
)
from accel.cpu.rows import load_kind, number_size, padded, widen
from accel.cpu.simd import (
    EACH,
    LANES,
    LEAD,
    MATRIX,
    ROWS,
    TILE,
    pack_units,
    prefetch,
    product_and_fetch,
    product_and_pack,
    product_and_soften,
    tile_rows,
    words_at,
)

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
def multiply(form, fresh, vectors, rows, depth, left, step, right, c, c_row, queue):
    """C (rows × vectors·LANES) = A·B if `fresh`, else C += A·B, and meanwhile memory works off a queue.

    `form` is how A was stored before it was packed (B was float32 then), or RIGHT where B is what was stored as
    bfloat16. `step` is 0 or, where A was packed across, the bytes from step to step.
    """
    if MATRIX:
        steps, ends = padded(depth, STEP) // STEP, carray(words_at(queue), 2)
        for r in range(0, rows, HIGH):
            at, to = left + r // HIGH * steps * _pieces_of_a(form) * 2 * TILE, c + r * c_row
            ends[0] = product_and_fetch(vectors, form, fresh, at, right, to, c_row, steps, ends[0], ends[1])
    else:
        _multiply_tiles(fresh, vectors, rows, depth, left, step, right, c, c_row, queue)


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
    """As `multiply`, and meanwhile what is planned is packed."""
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
def _multiply_tiles(fresh, vectors, rows, depth, left, step, right, c, c_row, queue):
    """By register tiles, a few rows at a time; meanwhile memory works off the queue. `step` is 0 or, where A lies
    across, the bytes from step to step."""
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
    _close_plan(plan, n)


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
    _close_plan(plan, n)


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
def _close_plan(plan, n):
    """So many entries, and LEAD more that are only fetched."""
    units, entries = carray(words_at(plan), 2), carray(words_at(plan + 16), (n + LEAD, 3))
    for i in range(n, n + LEAD):
        entries[i, 0], entries[i, 1] = entries[n - 1, 0] if n else plan, entries[n - 1, 1] if n else plan
    units[0], units[1] = 0, n + LEAD if n else 0


@njit
def _finish(plan, kind):
    units = carray(words_at(plan), 2)
    pack_units(kind, units[0], units[1], plan + 16)
    units[0] = units[1]
