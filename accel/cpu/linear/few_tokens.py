"""Products of a few tokens with a matrix, as in decoding: each row is read once from memory, which is the limit.

A processor fetches ahead along a row, but not far enough to hide what memory takes: with STREAMS rows at a time, far
apart, twice as much is under way. Stored numbers are widened in registers, so 16-bit weights take half the time.
"""

from __future__ import annotations

import numpy as np

from accel.cpu.linear.rows import add_row, load_kind, number_size, padded
from accel.cpu.runtime.kernels import kernel
from accel.cpu.runtime.team import THREADS
from accel.cpu.simd import (
    BF16,
    F16,
    F32,
    GROUP,
    LANES,
    MATRIX,
    Q8,
    carray,
    compiled_as,
    fetch_add,
    floats_at,
    fma,
    load,
    load_bf16,
    load_bytes,
    load_f16,
    load_some,
    load_some_bf16,
    load_some_f16,
    njit,
    scale_at,
    splat,
    store,
    store_some,
    store_totals,
    total,
    words_at,
)

FEW = 8 if MATRIX else 16  # tokens up to which weights are read row by row: the matrix unit pays earlier (chosen)
BYTES_READ = 147456  # of a matrix per item
STREAMS = 8  # rows that are read at a time
LINE = 64  # bytes that memory is read by: rows that stand closer take no less


def whole_vectors(x: np.ndarray, step: int = LANES) -> np.ndarray:
    """x (T, E) as float32 with zeros to the right up to a multiple of a step, of whole vectors; as it is where that
    fits."""
    tokens, dim = x.shape
    shape = tokens, padded(dim, step)
    if x.shape == shape and x.dtype == np.float32 and x.flags.c_contiguous and x.flags.aligned:
        return x
    wide = np.zeros(shape, np.float32)
    wide[:, :dim] = x
    return wide


def rows_together(row: int) -> int:
    """Rows that are read in one go, where they stand `row` bytes apart: any number, 0 where one row is repeated."""
    return BYTES_READ // max(abs(int(row)), LINE)


def rows_read(row: int, rows: int) -> int:
    """Rows that an item of a few tokens reads, of so many, where they stand `row` bytes apart. Fewer where there are
    many cores, so that each has two items or more."""
    return max(STREAMS, min(rows_together(row), rows // (2 * THREADS)) // STREAMS * STREAMS)


@njit
def multiply_few(lines, base, row, kind, first, count, chosen, x, x_row, tokens, dim, out, out_row):
    """out (tokens, count) = a few tokens times rows of a matrix, listed as in `list_rows`; `lines` is room for STREAMS
    addresses. As many rows are read at a time, far apart: one after the other, each would wait for memory."""
    stand, list_of = carray(words_at(lines), STREAMS), carray(words_at(chosen or lines), first + count)
    apart = count // STREAMS
    for i in range(apart):
        for s in range(STREAMS):
            n = first + s * apart + i
            stand[s] = base + (list_of[n] if chosen else n) * row
        for t in range(tokens):
            dots(lines, kind, x + t * x_row, dim, out + t * out_row + 4 * i, 4 * apart)
    for i in range(apart * STREAMS, count):
        at = base + (list_of[first + i] if chosen else first + i) * row
        for t in range(tokens):
            carray(floats_at(out + t * out_row), count)[i] = dot(at, kind, x + t * x_row, dim)


@njit
def add_few(lines, base, row, kind, first, count, chosen, weights, weights_row, tokens, dim, out, out_row):
    """out (tokens, dim) += weights (tokens, count) times rows of a matrix, read as in `multiply_few`."""
    stand, list_of = carray(words_at(lines), STREAMS), carray(words_at(chosen or lines), first + count)
    apart = count // STREAMS
    for i in range(apart):
        for s in range(STREAMS):
            n = first + s * apart + i
            stand[s] = base + (list_of[n] if chosen else n) * row
        for t in range(tokens):
            by = carray(floats_at(weights + t * weights_row), count)
            for s in range(0, STREAMS, STREAMS // 2):
                _add_four(
                    lines + 8 * s, kind, by[s * apart + i], by[(s + 1) * apart + i], by[(s + 2) * apart + i],
                    by[(s + 3) * apart + i], dim, out + t * out_row,
                )  # fmt: skip
    for i in range(apart * STREAMS, count):
        at = base + (list_of[first + i] if chosen else first + i) * row
        for t in range(tokens):
            add_row(at, kind, dim, carray(floats_at(weights + t * weights_row), count)[i], out + t * out_row)


@njit
def _add_four(lines, kind, p, q, r, s, dim, out):
    """out += p, q, r and s times the four stored rows whose addresses stand at `lines`."""
    a, b, c, d = carray(words_at(lines), STREAMS // 2)
    size, by_p, by_q, by_r, by_s = number_size(kind), splat(p), splat(q), splat(r), splat(s)
    for i in range(0, dim, LANES):
        left, at = dim - i, size * i
        sums = load(out + 4 * i) if left >= LANES else load_some(out + 4 * i, left)
        sums = fma(load_kind(a + at, kind, left), by_p, fma(load_kind(b + at, kind, left), by_q, sums))
        sums = fma(load_kind(c + at, kind, left), by_r, fma(load_kind(d + at, kind, left), by_s, sums))
        if left >= LANES:
            store(out + 4 * i, sums)
        else:
            store_some(out + 4 * i, left, sums)


@njit
def dot(w, kind, x, count):
    """Product of a stored row and a float32 row that is padded with zeros, for 8-bit rows up to a whole group."""
    sums = splat(np.float32(0.0))
    if kind == Q8:
        for g in range(0, count, 32):
            sums = fma(_group_dot(w + g // 32 * GROUP, x + 4 * g), scale_at(w + g // 32 * GROUP), sums)
        return total(sums)
    for i in range(0, count, LANES):
        sums = fma(load_kind(w + number_size(kind) * i, kind, count - i), load(x + 4 * i), sums)
    return total(sums)


@njit(forceinline=True)
def _group_dot(group, x):
    """The numbers of a group, without its scale, times those of x."""
    sums = load_bytes(group + 2) * load(x)
    for i in range(LANES, 32, LANES):
        sums = fma(load_bytes(group + 2 + i), load(x + 4 * i), sums)
    return sums


@njit
def dots(lines, kind, x, count, out, apart):
    """Products of the STREAMS stored rows whose addresses stand at `lines` with a float32 row that is padded with
    zeros, written `apart` bytes from one to the next."""
    if kind == BF16:
        _dots_bf16(lines, x, count, out, apart)
    elif kind == F16:
        _dots_f16(lines, x, count, out, apart)
    elif kind == Q8:
        _dots_i8(lines, x, count, out, apart)
    else:
        _dots_f32(lines, x, count, out, apart)


def _dots_of(name, load_row, load_end, size):
    def build(lines, x, count, out, apart):
        a, b, c, d, e, f, g, h = carray(words_at(lines), STREAMS)
        zero = splat(np.float32(0.0))
        s, t, u, v, w, y, z, r = zero, zero, zero, zero, zero, zero, zero, zero
        whole = count // LANES * LANES
        for i in range(0, whole, LANES):
            by, at = load(x + 4 * i), size * i
            s, t = fma(load_row(a + at), by, s), fma(load_row(b + at), by, t)
            u, v = fma(load_row(c + at), by, u), fma(load_row(d + at), by, v)
            w, y = fma(load_row(e + at), by, w), fma(load_row(f + at), by, y)
            z, r = fma(load_row(g + at), by, z), fma(load_row(h + at), by, r)
        if whole < count:
            by, at, left = load(x + 4 * whole), size * whole, count - whole
            s, t = fma(load_end(a + at, left), by, s), fma(load_end(b + at, left), by, t)
            u, v = fma(load_end(c + at, left), by, u), fma(load_end(d + at, left), by, v)
            w, y = fma(load_end(e + at, left), by, w), fma(load_end(f + at, left), by, y)
            z, r = fma(load_end(g + at, left), by, z), fma(load_end(h + at, left), by, r)
        _write_totals(s, t, u, v, w, y, z, r, out, apart)

    return compiled_as(name, build)


@njit(forceinline=True)
def _write_totals(s, t, u, v, w, y, z, r, out, apart):
    n = apart // 4
    if n == 1:
        store_totals(out, s, t, u, v, w, y, z, r)
        return
    found = carray(floats_at(out), (STREAMS - 1) * n + 1)
    found[0], found[n], found[2 * n], found[3 * n] = total(s), total(t), total(u), total(v)
    found[4 * n], found[5 * n], found[6 * n], found[7 * n] = total(w), total(y), total(z), total(r)


@njit
def _dots_i8(lines, x, count, out, apart):
    a, b, c, d, e, f, g, h = carray(words_at(lines), STREAMS)
    zero = splat(np.float32(0.0))
    s, t, u, v, w, y, z, r = zero, zero, zero, zero, zero, zero, zero, zero
    for i in range(0, count, 32):
        by, at = x + 4 * i, i // 32 * GROUP
        s = fma(_group_dot(a + at, by), scale_at(a + at), s)
        t = fma(_group_dot(b + at, by), scale_at(b + at), t)
        u = fma(_group_dot(c + at, by), scale_at(c + at), u)
        v = fma(_group_dot(d + at, by), scale_at(d + at), v)
        w = fma(_group_dot(e + at, by), scale_at(e + at), w)
        y = fma(_group_dot(f + at, by), scale_at(f + at), y)
        z = fma(_group_dot(g + at, by), scale_at(g + at), z)
        r = fma(_group_dot(h + at, by), scale_at(h + at), r)
    _write_totals(s, t, u, v, w, y, z, r, out, apart)


_dots_f32, _dots_f16, _dots_bf16 = (
    _dots_of("dots_f32", load, load_some, 4),
    _dots_of("dots_f16", load_f16, load_some_f16, 2),
    _dots_of("dots_bf16", load_bf16, load_some_bf16, 2),
)


@kernel
def read(task, worker, x, x_row, maps, count, tokens, dim, rows, memory):
    """The work of `linear_each` for a few tokens: maps as in maps.py, an item being some rows of one of them."""
    described, lines = carray(words_at(maps), (count, 6)), memory + 8 * STREAMS * worker
    while True:
        item = fetch_add(task, 1)
        n = 0
        while n < count and item >= (described[n, 5] + rows - 1) // rows:
            item -= (described[n, 5] + rows - 1) // rows
            n += 1
        if n == count:
            return
        w, w_row, kind, bias, y, outs = described[n]
        first = item * rows
        here, to = min(rows, outs - first), y + 4 * first
        multiply_few(lines, w, w_row, kind, first, here, 0, x, 4 * x_row, tokens, dim, to, 4 * outs)
        if bias:
            for t in range(tokens):
                add_row(bias + 4 * first, F32, here, 1.0, to + 4 * t * outs)
