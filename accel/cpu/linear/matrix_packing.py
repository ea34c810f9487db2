"""How both sides of a product are cut for the matrix unit: into pieces of bfloat16, tile by tile (simd/matrix.py).

A pair of depths is r and r + 16 of a step of 32, so that packing needs no shuffling, only halves of two registers.
"""

from __future__ import annotations

import numpy as np

from accel.cpu.linear.rows import bytes_of, group_part, kind_of, load_kind, number_size, padded
from accel.cpu.simd import (
    F16,
    F32,
    LANES,
    Q8,
    ROUNDED,
    TILE,
    carray,
    load,
    njit,
    pair,
    rest,
    rounded_pair,
    splat,
    store,
    transpose,
    words_at,
)

WIDTH, HIGH, STEP = 2 * LANES, 32, 32
TEMPORARY = (WIDTH + 2 * LANES) * STEP + 2 * WIDTH + 64


@njit(forceinline=True)
def rows_of_tiles(count):
    """Floats of the tiles of so many rows or columns, all three pieces, for one depth."""
    return padded(count, HIGH) // 32 * (3 * 2 * TILE // 4 // STEP)


@njit(forceinline=True)
def left_size(rows, depth):
    """Floats of a packed A."""
    return rows_of_tiles(rows) * padded(depth, STEP)


@njit(forceinline=True)
def right_size(depth):
    """Floats of a packed block of B."""
    return rows_of_tiles(WIDTH) * padded(depth, STEP)


@njit(forceinline=True)
def hidden_size(neurons):
    """Floats of a block of tokens that are activations of so many neurons, packed as A."""
    return left_size(WIDTH, neurons)


@njit(forceinline=True)
def weights_size(keys):
    """Floats of a packed block of softmax weights, besides the scores."""
    return right_size(keys)


@njit(forceinline=True)
def stored_pieces(form):
    """Pieces of a number of the stored side."""
    return 3 if form == F32 else 2 if form == F16 else 1


@njit(forceinline=True)
def other_pieces(form):
    """Pieces of a number of the other side, which was just computed."""
    return 3 if form == F32 else 2 if form < ROUNDED else 1


@njit(forceinline=True)
def steps_of(depth):
    """Steps of such a depth."""
    return padded(depth, STEP) // STEP


@njit(forceinline=True)
def right_at(right, start, form):
    """Where the depth `start`, a multiple of STEP, stands in a packed block of B."""
    return right + start // STEP * other_pieces(form) * 2 * TILE


@njit(forceinline=True)
def hidden_at(hidden, neuron, form):
    """Where neuron number `neuron`, a multiple of STEP, begins in a packed block of tokens."""
    return hidden + neuron // STEP * other_pieces(form) * 2 * TILE


@njit(forceinline=True)
def square_of_right(out, s, j, depth, form):
    """Where the first piece of the depths from s on and of the j-th LANES columns stands in packed blocks of B."""
    return out + j // 2 * (4 * right_size(depth)) + s // STEP * stored_pieces(form) * 2 * TILE + j % 2 * TILE


@njit(forceinline=True)
def store_pieces(x, y, out, apart, pieces):
    """The pieces of two vectors, pair by pair, `apart` bytes from one to the next; a single piece is rounded."""
    if pieces == 1:
        store(out, rounded_pair(x, y))
    else:
        store(out, pair(x, y))
        x, y = rest(x), rest(y)
        store(out + apart, pair(x, y))
    if pieces > 2:
        store(out + 2 * apart, pair(rest(x), rest(y)))


@njit
def pack_left(lines, form, rows, depth, out):
    """A, which is stored, from `rows` rows of `depth` numbers, whose addresses stand at `lines`."""
    pack_left_steps(lines, form, rows, 0, depth, out)


@njit
def pack_left_steps(lines, form, rows, first, depth, out):
    """The steps from the depth `first` on."""
    stand, kind, pieces = carray(words_at(lines), rows), kind_of(form), stored_pieces(form)
    size = number_size(kind)
    for r in range(0, padded(rows, HIGH), 16):
        to = out + r // 16 % 2 * TILE + (r // 32 * steps_of(depth) + first // STEP) * pieces * 2 * TILE
        for d in range(first, depth, STEP):
            for i in range(16):
                row = stand[min(r + i, rows - 1)]  # any below the last: nobody reads what comes of it
                row += bytes_of(kind, d)
                if kind == Q8:
                    x, y = group_part(row, 0), group_part(row, LANES)
                elif kind == F32 and depth - d >= STEP:
                    x, y = load(row), load(row + 4 * LANES)
                else:
                    x = load_kind(row, kind, depth - d)
                    y = load_kind(row + size * LANES, kind, depth - d - LANES)
                store_pieces(x, y, to + 64 * i, 2 * TILE, pieces)
            to += pieces * 2 * TILE


@njit
def pack_left_across(lines, form, rows, depth, out, temporary):
    """A, which is stored, from its columns: `depth` of them, `rows` numbers each, whose addresses stand at `lines`,
    with room for a multiple of STEP of them."""
    stand = carray(words_at(lines), padded(depth, STEP))
    for i in range(depth, padded(depth, STEP)):
        stand[i] = stand[depth - 1]  # meets a zero of B
    kind, pieces = kind_of(form), stored_pieces(form)
    size = number_size(kind)
    square, words = temporary, temporary + 4 * LANES * STEP  # 16 rows of 32 steps; 32 steps of 16 rows, widened
    places = words + 4 * LANES * STEP
    here = carray(words_at(places), STEP)
    for r in range(0, padded(rows, HIGH), LANES):
        whole = kind == F32 and rows - r >= LANES
        to = out + r // LANES % 2 * TILE + r // 32 * (steps_of(depth) * pieces * 2 * TILE)
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
def pack_right(lines, kind, columns, depth, out, factor, form, temporary):
    """A block of B from its columns: at most WIDTH of them, `depth` numbers each, whose addresses stand at `lines`,
    with room for WIDTH of them; times `factor`. The product's stored side is A."""
    stand, size = carray(words_at(lines), WIDTH), number_size(kind)
    places = temporary + 4 * WIDTH * STEP  # addresses of widened parts of the columns
    here, by, pieces = carray(words_at(places), WIDTH), splat(factor), other_pieces(form)
    square = places + 8 * WIDTH  # 32 steps of 16 columns
    for i in range(WIDTH):
        here[i] = temporary + 4 * STEP * i
    for s in range(0, depth, STEP):
        for i in range(padded(columns, LANES)):
            for d in range(0, STEP, LANES):
                x = load_kind(stand[min(i, columns - 1)] + size * (s + d), kind, depth - s - d)
                store(here[i] + 4 * d, x * by)
        for i in range(0, columns, LANES):
            transpose(places + 8 * i, 0, square, 4 * LANES)
            transpose(places + 8 * i, 4 * LANES, square + 4 * LANES * LANES, 4 * LANES)
            to = right_at(out, s, form) + i // LANES * TILE
            for r in range(LANES):
                x, y = load(square + 4 * LANES * r), load(square + 4 * LANES * (r + LANES))
                store_pieces(x, y, to + 64 * r, 2 * TILE, pieces)


@njit
def pack_hidden(gates, rows, vectors, out, form, temporary):
    """Activations of one block of tokens (rows, WIDTH), which stand as columns, packed as A, token by token, for a
    product whose stored side is B."""
    pieces = other_pieces(form)
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
