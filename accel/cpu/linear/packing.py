"""Blocks for products C = A·B: how both sides are packed for the unit that multiplies: register tiles or the
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

from accel.cpu.linear.rows import load_kind, number_size, padded, widen
from accel.cpu.simd import F16, F32, LANES, MATRIX, TILE, VECTORS, load, pair, rest, splat, store, transpose, words_at

WIDTH = 2 * LANES if MATRIX else VECTORS * LANES  # columns of a block
HIGH = 32 if MATRIX else 1  # rows of A and of C are padded to a multiple of this
STEP = 32 if MATRIX else LANES  # and the depth to a multiple of this
# Of one pass over long depths: both sides then stay in the second-level cache, or B in the first.
DEPTH = 576 if MATRIX else 128
RIGHT = 3  # the form of a product whose B, not A, is stored as bfloat16
TEMPORARY = (WIDTH + 2 * LANES) * STEP + 2 * WIDTH + 64  # floats that packing needs


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
def vectors_of(columns):
    """Registers that a block with so many columns fills."""
    return (min(columns, WIDTH) + LANES - 1) // LANES


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
        pack_left_steps(lines, kind, rows, 0, depth, out)
    else:
        stand = carray(words_at(lines), rows)
        for i in range(rows):
            widen(stand[i], kind, depth, out + 4 * i * padded(depth, LANES), 1.0)


@njit
def pack_left_steps(lines, kind, rows, first, depth, out):
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
