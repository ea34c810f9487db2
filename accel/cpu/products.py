"""Products with weight matrices, from float32 or 16-bit weights, any stride from row to row.

How it tiles. For chunks, an item is PANEL rows of W: 192 of their columns at a time are widened and transposed into a
panel that fits the first-level cache, and the register tile multiplies it with all rows of x, adding to a block of
tokens × PANEL until the depth is through. Only the panel is ever widened. For a few tokens (decoding) an item is 32
rows of W, read once from memory and multiplied with every token where they are widened, in registers: memory is the
limit, so 16-bit weights take half the time.
"""

from __future__ import annotations

import numpy as np
from numba import carray, njit

from accel.cpu.attention import ahead, pack_keys, padded
from accel.cpu.compiled import THREADS, kernel
from accel.cpu.simd import (
    BF16,
    F16,
    F32,
    LANES,
    PANEL,
    ROWS,
    VECTORS,
    add_rows,
    compiled_as,
    fetch_add,
    floats_at,
    fma,
    load,
    load_bf16,
    load_f16,
    load_some,
    load_some_bf16,
    load_some_f16,
    splat,
    total,
    unpack,
    words_at,
)
from accel.cpu.views import address, matrix, readable, scratch
from reference.checks import match

DEPTH = 192  # columns of a panel: PANEL · DEPTH numbers stay in the first-level cache
FEW = 4  # tokens up to which weights are read row by row
ROWS_READ = 32  # rows of W per item there


def linear(x: np.ndarray, weight: np.ndarray, bias: np.ndarray | None = None) -> np.ndarray:
    """x Wᵀ + b: x (T, in), weight (out, in), bias (out,) -> (T, out) float32."""
    sizes = match(x=(x, "T in"), weight=(weight, "out in"), **({} if bias is None else {"bias": (bias, "out")}))
    tokens, dim, outs = sizes["T"], sizes["in"], sizes["out"]
    if 0 in (tokens, dim, outs):
        return np.zeros((tokens, outs), np.float32) + (0 if bias is None else bias.astype(np.float32))
    y = np.empty((tokens, outs), np.float32)
    x, weight = whole_vectors(x), readable(weight)
    bias = None if bias is None else np.ascontiguousarray(bias, np.float32)
    shape = 0 if bias is None else address(bias), address(y), tokens, dim, outs
    if tokens <= FEW:
        _read(address(x), x.shape[1], *matrix(weight), *shape)
        return y
    size = panel_size(len(x))
    memory = scratch.take(size * THREADS)
    _project(address(x), x.shape[1], *matrix(weight), *shape, address(memory), size)
    scratch.give(memory)
    return y


def whole_vectors(x: np.ndarray) -> np.ndarray:
    """x (T, E) as float32 with zeros to the right up to whole vectors; as it is where that fits."""
    tokens, dim = x.shape
    shape = tokens, padded.py_func(dim, LANES)
    if x.shape == shape and x.dtype == np.float32 and x.flags.c_contiguous and x.flags.aligned:
        return x
    wide = np.zeros(shape, np.float32)
    wide[:, :dim] = x
    return wide


def panel_size(high: int) -> int:
    """Floats that a worker needs to multiply `high` rows by panels: `multiply_panel` lays them out."""
    return 2 * PANEL * DEPTH + 4 * PANEL + 2 + high * (PANEL + 1)


@njit
def dot(w, kind, x, count):
    """Product of a stored row and a float32 row that is padded with zeros: four sums in flight."""
    if kind == BF16:
        return _dot_bf16(w, x, count)
    if kind == F16:
        return _dot_f16(w, x, count)
    return _dot_f32(w, x, count)


def _dot_of(name, load_row, load_end, size):
    def build(w, x, count):
        zero = splat(np.float32(0.0))
        a, b, c, d = zero, zero, zero, zero
        i = 0
        while i + 4 * LANES <= count:
            a = fma(load_row(w + size * i), load(x + 4 * i), a)
            b = fma(load_row(w + size * (i + LANES)), load(x + 4 * (i + LANES)), b)
            c = fma(load_row(w + size * (i + 2 * LANES)), load(x + 4 * (i + 2 * LANES)), c)
            d = fma(load_row(w + size * (i + 3 * LANES)), load(x + 4 * (i + 3 * LANES)), d)
            i += 4 * LANES
        while i + LANES <= count:
            a = fma(load_row(w + size * i), load(x + 4 * i), a)
            i += LANES
        if i < count:
            b = fma(load_end(w + size * i, count - i), load(x + 4 * i), b)
        return total((a + b) + (c + d))

    return compiled_as(name, build)


_dot_f32, _dot_f16, _dot_bf16 = (
    _dot_of("dot_f32", load, load_some, 4),
    _dot_of("dot_f16", load_f16, load_some_f16, 2),
    _dot_of("dot_bf16", load_bf16, load_some_bf16, 2),
)


@njit
def multiply_panel(x, x_row, high, lines, kind, count, dim, memory, block):
    """block (high, PANEL) = x (high, dim) · Wᵀ for `count` rows of W, whose addresses stand at `lines`.

    `lines` has room for twice PANEL addresses, `memory` for 2 · PANEL · DEPTH + high floats.
    """
    size = 4 if kind == F32 else 2
    wide, panel, ones = memory, memory + 4 * PANEL * DEPTH, memory + 8 * PANEL * DEPTH
    carray(floats_at(ones), high)[:] = 1.0
    stand, here = carray(words_at(lines), PANEL), carray(words_at(lines + 8 * PANEL), PANEL)
    carray(floats_at(block), high * PANEL)[:] = 0.0
    for depth in range(0, dim, DEPTH):
        deep = min(DEPTH, dim - depth)
        for i in range(count):
            here[i] = stand[i] + depth * size
        pack_keys(lines + 8 * PANEL, kind, count, deep, wide, panel)
        for r in range(0, high, ROWS):
            at, to = x + 4 * (r * x_row + depth), block + 4 * r * PANEL
            add_rows(VECTORS, min(ROWS, high - r), at, 4 * x_row, panel, 4 * PANEL, to, 4 * PANEL, deep, ones)
            for i in range(
                r * count // high, min(r + ROWS, high) * count // high
            ):  # the next panel's rows, a few per tile
                ahead(stand[i] + (depth + DEPTH) * size, kind, min(DEPTH, dim - depth - DEPTH))


@kernel
def _project(task, worker):
    (x, x_row, w, w_row, w_kind, bias, y, tokens, dim, outs, memory, size) = unpack(task + 8, 12)
    mine = memory + 4 * worker * size
    lines = mine + 4 * (2 * PANEL * DEPTH + tokens)
    lines += -lines % 8
    block = lines + 16 * PANEL
    stand = carray(words_at(lines), PANEL)
    products, out = carray(floats_at(block), (tokens, PANEL)), carray(floats_at(y), (tokens, outs))
    shift = carray(floats_at(bias or y), outs)
    while True:
        first = fetch_add(task, 1) * PANEL
        if first >= outs:
            return
        count = min(PANEL, outs - first)
        for i in range(count):
            stand[i] = w + (first + i) * w_row
        multiply_panel(x, x_row, tokens, lines, w_kind, count, dim, mine, block)
        for t in range(tokens):
            for i in range(count):
                out[t, first + i] = products[t, i] + (shift[first + i] if bias else np.float32(0.0))


@kernel
def _read(task, worker):
    (x, x_row, w, w_row, w_kind, bias, y, tokens, dim, outs) = unpack(task + 8, 10)
    out, shift = carray(floats_at(y), (tokens, outs)), carray(floats_at(bias or y), outs)
    while True:
        first = fetch_add(task, 1) * ROWS_READ
        if first >= outs:
            return
        for o in range(first, min(first + ROWS_READ, outs)):
            for t in range(tokens):
                value = dot(w + o * w_row, w_kind, x + 4 * t * x_row, dim)
                out[t, o] = value + shift[o] if bias else value
