"""Products C = A·B by blocks, and how both sides are packed for the unit that multiplies: register tiles or the
matrix unit.

A, the left side, has a row per key or per row of a weight matrix; B, the right side, a column per query or token.
Columns come in blocks of WIDTH, whatever is left over in the last; every block of B, and every C, has rows of WIDTH
numbers. So a block of A is packed once for all tokens, and a softmax or an activation works on whole registers of
tokens.

For register tiles A lies row by row, or step by step (`across`), and B step by step, both widened to float32. For the
matrix unit both are cut into pieces of bfloat16 (simd/matrix.py); a pair of depths there is r and r + 16 of a step of
32, so that packing needs no shuffling, only halves of two registers.
"""

from __future__ import annotations

from numba import carray, njit
from numba.extending import register_jitable

from accel.cpu.simd import (
    EACH,
    F16,
    F32,
    LANES,
    LEAD,
    MATRIX,
    ROWS,
    TILE,
    VECTORS,
    fma,
    load,
    load_bf16,
    load_f16,
    load_some,
    load_some_bf16,
    load_some_f16,
    pack_units,
    pair,
    prefetch,
    product_and_fetch,
    product_and_pack,
    product_and_soften,
    rest,
    splat,
    store,
    store_some,
    tile_rows,
    transpose,
    words_at,
)

WIDTH = 2 * LANES if MATRIX else VECTORS * LANES  # columns of a block
HIGH = 32 if MATRIX else 1  # rows of A and of C are padded to a multiple of this
STEP = 32 if MATRIX else LANES  # and the depth to a multiple of this
DEPTH = (
    576 if MATRIX else 128
)  # of one pass over long depths: both sides then stay in the second-level cache, or B in the first
RIGHT = 3  # the form of a product whose B, not A, is stored as bfloat16
RUN = 4  # steps of a row that are packed in a row
TEMPORARY = (WIDTH + 2 * LANES) * STEP + 2 * WIDTH + 64  # floats that packing needs


@register_jitable(forceinline=True)
def padded(n, step):
    """n rounded up to a multiple of step."""
    return (n + step - 1) // step * step


@register_jitable(forceinline=True)
def rows_of_tiles(count):
    """Floats of the tiles of so many rows or columns, all three pieces, for one depth."""
    return padded(count, HIGH) // 32 * (3 * 2 * TILE // 4 // STEP)


@register_jitable(forceinline=True)
def left_size(rows, depth):
    """Floats of a packed A."""
    if MATRIX:
        return rows_of_tiles(rows) * padded(depth, STEP)
    return max(rows * padded(depth, LANES), depth * across_row(rows) // 4)


@register_jitable(forceinline=True)
def right_size(depth):
    """Floats of a packed block of B."""
    return (rows_of_tiles(WIDTH) if MATRIX else WIDTH) * padded(depth, STEP)


@register_jitable(forceinline=True)
def across_row(rows):
    """Bytes from step to step of an A that lies step by step: an odd number of cache lines, which spreads the steps
    over the first-level cache."""
    return 4 * (padded(rows, 32) + 16)


@njit(forceinline=True)
def left_pieces(kind):
    """Pieces of a number that is stored as `kind`."""
    return 3 if kind == F32 else 2 if kind == F16 else 1


@njit(forceinline=True)
def right_pieces(kind):
    """Pieces of a number of B where A is stored as `kind`."""
    return 3 if kind == F32 else 2


@njit(forceinline=True)
def right_at(right, start, kind):
    """Where the depth `start`, a multiple of STEP, stands in a packed block of B."""
    if MATRIX:
        return right + start // STEP * right_pieces(kind) * 2 * TILE
    return right + 4 * start * WIDTH


@njit(forceinline=True)
def number_size(kind):
    """Bytes of a stored number."""
    return 4 if kind == F32 else 2


@njit(forceinline=True)
def load_kind(at, kind, left):
    """LANES stored numbers as float32, or zeros after the `left` that there are."""
    if left >= LANES:
        return load(at) if kind == F32 else load_f16(at) if kind == F16 else load_bf16(at)
    if kind == F32:
        return load_some(at, max(left, 0))
    return load_some_f16(at, max(left, 0)) if kind == F16 else load_some_bf16(at, max(left, 0))


@njit(forceinline=True)
def ahead(row, kind, dim):
    """Fetch a row that will be read soon, so that memory works while the tile does."""
    for at in range(row, row + dim * number_size(kind), 64):
        prefetch(at)


@njit(forceinline=True)
def widen(source, kind, count, out, factor):
    """A row of `count` stored numbers times `factor`, as float32 with zeros up to a multiple of LANES."""
    by, size = splat(factor), number_size(kind)
    if kind == F32 and count % LANES == 0:  # the common case, without a question per vector
        for i in range(0, count, LANES):
            store(out + 4 * i, load(source + 4 * i) * by)
        return
    for i in range(0, count, LANES):
        store(out + 4 * i, load_kind(source + size * i, kind, count - i) * by)


@njit(forceinline=True)
def copy_row(source, target, count, factor):
    """Copy `count` float32, times `factor`."""
    by = splat(factor)
    for i in range(0, count, LANES):
        if count - i >= LANES:
            store(target + 4 * i, load(source + 4 * i) * by)
        else:
            store_some(target + 4 * i, count - i, load_some(source + 4 * i, count - i) * by)


@njit(forceinline=True)
def add_row(source, kind, count, weight, out):
    """out += weight · a stored row of `count` numbers."""
    by, size = splat(weight), 4 if kind == F32 else 2
    for i in range(0, count // LANES * LANES, LANES):
        store(out + 4 * i, fma(load_kind(source + size * i, kind, LANES), by, load(out + 4 * i)))
    rest = count % LANES
    if rest:
        at, to = source + size * (count - rest), out + 4 * (count - rest)
        store_some(to, rest, fma(load_kind(at, kind, rest), by, load_some(to, rest)))


@njit(forceinline=True)
def store_pieces(x, y, out, apart, pieces):
    """The pieces of two vectors, pair by pair, `apart` bytes from one to the next."""
    store(out, pair(x, y))
    if pieces > 1:
        x, y = rest(x), rest(y)
        store(out + apart, pair(x, y))
    if pieces > 2:
        store(out + 2 * apart, pair(rest(x), rest(y)))


@njit
def pack_left(lines, kind, rows, depth, out):
    """A from `rows` rows of `depth` numbers, whose addresses stand at `lines`."""
    if MATRIX:
        _pack_left_steps(lines, kind, rows, 0, depth, out)
    else:
        stand = carray(words_at(lines), rows)
        for i in range(rows):
            widen(stand[i], kind, depth, out + 4 * i * padded(depth, LANES), 1.0)


@njit
def _pack_left_steps(lines, kind, rows, first, depth, out):
    """For the matrix unit, the steps from the depth `first` on."""
    stand, size, pieces = carray(words_at(lines), rows), number_size(kind), left_pieces(kind)
    for r in range(0, padded(rows, HIGH), 16):
        to = out + r // 16 % 2 * TILE + (r // 32 * (padded(depth, STEP) // STEP) + first // STEP) * pieces * 2 * TILE
        for d in range(first, depth, STEP):
            for i in range(16):
                row = (
                    stand[min(r + i, rows - 1)] + size * d
                )  # any finite row below the last: nobody reads what comes of it
                if kind == F32 and depth - d >= STEP:
                    x, y = load(row), load(row + 4 * LANES)
                else:
                    x = load_kind(row, kind, depth - d)
                    y = load_kind(row + size * LANES, kind, depth - d - LANES)
                store_pieces(x, y, to + 64 * i, 2 * TILE, pieces)
            to += pieces * 2 * TILE


@njit
def pack_left_across(lines, kind, rows, depth, out, temporary):
    """A from its columns: `depth` of them, `rows` numbers each, whose addresses stand at `lines`, with room for a
    multiple of STEP of them."""
    stand = carray(words_at(lines), padded(depth, STEP))
    if not MATRIX:
        for i in range(depth):
            widen(stand[i], kind, rows, out + i * across_row(rows), 1.0)
        return
    for i in range(depth, padded(depth, STEP)):
        stand[i] = stand[depth - 1]  # meets a zero of B
    pieces, size, steps = left_pieces(kind), number_size(kind), padded(depth, STEP) // STEP
    square, words = temporary, temporary + 4 * LANES * STEP  # 16 rows of 32 steps; 32 steps of 16 rows, widened
    places = words + 4 * LANES * STEP
    here = carray(words_at(places), STEP)
    for r in range(0, padded(rows, HIGH), LANES):
        whole = kind == F32 and rows - r >= LANES
        to = out + r // LANES % 2 * TILE + r // 32 * (steps * pieces * 2 * TILE)
        for s in range(0, depth, STEP):
            if whole:
                transpose(lines + 8 * s, 4 * r, square, 4 * STEP)
                transpose(lines + 8 * (s + LANES), 4 * r, square + 4 * LANES, 4 * STEP)
            else:
                for i in range(STEP):
                    here[i] = words + 4 * LANES * i
                    store(here[i], load_kind(stand[s + i] + size * r, kind, rows - r))
                transpose(places, 0, square, 4 * STEP)
                transpose(places + 8 * LANES, 0, square + 4 * LANES, 4 * STEP)
            for i in range(LANES):
                x, y = load(square + 4 * STEP * i), load(square + 4 * (STEP * i + LANES))
                store_pieces(x, y, to + 64 * i, 2 * TILE, pieces)
            to += pieces * 2 * TILE


@njit
def pack_right(lines, kind, columns, depth, out, factor, left_kind, temporary):
    """A block of B from its columns: at most WIDTH of them, `depth` numbers each, whose addresses stand at `lines`,
    with room for WIDTH of them; times `factor`. `left_kind` is how A is stored."""
    stand, size = carray(words_at(lines), WIDTH), number_size(kind)
    places = temporary + 4 * WIDTH * STEP  # addresses of widened parts of the columns
    here, by, pieces = carray(words_at(places), WIDTH), splat(factor), right_pieces(left_kind)
    square = places + 8 * WIDTH  # for the matrix unit: 32 steps of 16 columns
    for i in range(WIDTH):
        here[i] = temporary + 4 * STEP * i
    for s in range(0, depth, STEP):
        for i in range(padded(columns, LANES)):
            for d in range(0, STEP, LANES):
                x = load_kind(stand[min(i, columns - 1)] + size * (s + d), kind, depth - s - d)
                store(here[i] + 4 * d, x * by)
        for i in range(0, columns, LANES):
            if MATRIX:
                transpose(places + 8 * i, 0, square, 4 * LANES)
                transpose(places + 8 * i, 4 * LANES, square + 4 * LANES * LANES, 4 * LANES)
                to = right_at(out, s, left_kind) + i // LANES * TILE
                for r in range(LANES):
                    x, y = load(square + 4 * LANES * r), load(square + 4 * LANES * (r + LANES))
                    store_pieces(x, y, to + 64 * r, 2 * TILE, pieces)
            else:
                transpose(places + 8 * i, 0, out + 4 * (s * WIDTH + i), 4 * WIDTH)


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
def _multiply_tiles(fresh, vectors, rows, depth, left, step, right, c, c_row, queue):
    """By register tiles, a few rows at a time; meanwhile memory works off the queue. `step` is 0 or, where A lies
    across, the bytes from step to step."""
    row = 4 if step else 4 * padded(depth, LANES)
    for r in range(0, rows, 2 * ROWS):
        _fetch_some(queue, EACH)
        at, to, some = left + r * row, c + r * c_row, min(2 * ROWS, rows - r)
        tile_rows(vectors, some, fresh, at, row, step or 4, right, 4 * WIDTH, to, c_row, depth)


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
        _pack_left_steps(lines, kind, rows, depth // STEP * STEP, depth, out)


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


@njit(forceinline=True)
def _square_of_right(out, s, j, depth, kind):
    """Where the first piece of the depths from s on and of the j-th LANES columns stands in packed blocks of B."""
    return out + j // 2 * (4 * right_size(depth)) + s // STEP * left_pieces(kind) * 2 * TILE + j % 2 * TILE


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


@njit(forceinline=True)
def vectors_of(columns):
    """Registers that a block with so many columns fills."""
    return (min(columns, WIDTH) + LANES - 1) // LANES
