"""Products with weight matrices, from float32, 16-bit or 8-bit weights, any stride from row to row.

How it tiles. For chunks, the tokens are packed once, for all workers. An item is a span of them and HEIGHT rows of W,
or several times as many where the tokens, packed, outgrow the second-level cache. DEPTH of the rows' columns at a time
are packed, HEIGHT rows after another, and multiplied with the span, adding to rows × tokens sums until the depth is
through; then the sums are turned and written. Only what is packed is ever widened. Several matrices may share one call,
and so the packing of x. A few tokens (decoding) are left to few_tokens.py.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from accel.cpu.linear.few_tokens import FEW, STREAMS, read, rows_read, whole_vectors
from accel.cpu.linear.rows import bytes_of, kind_of, list_rows, padded, rounded
from accel.cpu.linear.unit import (
    DEPTH,
    HEIGHT,
    HIGH,
    TEMPORARY,
    WIDTH,
    left_size,
    multiply_packing,
    pack_right,
    plan_left,
    plan_size,
    ready_and_plan,
    right_at,
    right_size,
    vectors_of,
)
from accel.cpu.runtime.arrays import Matrix, address, matrix, readable, readable_matrix
from accel.cpu.runtime.kernels import kernel
from accel.cpu.runtime.memory import fresh, scratch
from accel.cpu.runtime.team import THREADS, TOGETHER
from accel.cpu.simd import (
    LANES,
    carray,
    close_tiles,
    fetch_add,
    floats_at,
    load,
    njit,
    open_tiles,
    splat,
    store,
    transpose,
    words_at,
)
from reference import contract

SPAN = 256  # tokens per item: what is packed of them should stay in the second-level cache
MOST_TOKENS = SPAN * TOGETHER // 2  # per call of a kernel: so many spans that many cores find items enough


def linear(x: np.ndarray, weight: Matrix, bias: np.ndarray | None = None) -> np.ndarray:
    """x Wᵀ + b: x (T, in), weight (out, in), bias (out,) -> (T, out) float32."""
    return linear_each(x, [(weight, bias)])[0]


def linear_each(x: np.ndarray, maps: Sequence[tuple[Matrix, np.ndarray | None]]) -> list[np.ndarray]:
    """Several maps (W, b) of one input, as `linear`, in one pass: x is packed once for all of them."""
    outputs, tasks, held = [], [], []
    for weight, bias in maps:
        sizes = contract.linear(x, weight, bias)
        tokens, outs = sizes["T"], sizes["out"]
        y = fresh(tokens, outs)
        weight = readable_matrix(weight)
        bias = None if bias is None else np.ascontiguousarray(bias, np.float32)
        outputs.append(y)
        held.append((weight, bias))  # until the kernel is done
        tasks.append((*matrix(weight), 0 if bias is None else address(bias), address(y), outs))
    if x.shape[1] == 0:
        return [y + b if b is not None else y for y, (_, b) in zip(map(np.zeros_like, outputs), held, strict=True)]
    run_maps(x, tasks)
    return outputs


def run_maps(x: np.ndarray, tasks: Sequence[tuple[int, ...]]) -> None:
    """Compute maps that are given as (W, bytes from row to row, kind, bias or 0, y, outs)."""
    tokens, dim = x.shape
    words = np.array(tasks, np.int64)
    if tokens <= FEW:
        x, memory = whole_vectors(x, 32), np.empty(THREADS * STREAMS, np.int64)
        each = rows_read(words[0, 1], words[:, 5].sum())
        read(address(x), x.shape[1], address(words), len(tasks), tokens, dim, each, address(memory))
        return
    x, each = readable(x), rows_per_item(dim, int(words[:, 5].sum()))
    for form in sorted({rounded(task[2]) for task in tasks}):  # as a rule one
        some = np.array([task for task in tasks if rounded(task[2]) == form], np.int64)
        for start in range(0, tokens, MOST_TOKENS):
            here = min(MOST_TOKENS, tokens - start)
            size, packed = places(0, min(SPAN, here), dim, each).end, blocks_of(here) * right_size(dim)
            memory = scratch.take(packed + size // 4 * THREADS)
            right = address(memory)
            own = right + 4 * packed
            pack_tokens(*matrix(x[start:]), here, dim, form, right, own, size, workers=min(THREADS, blocks_of(here)))
            _project(right, address(some), len(some), here, dim, form, start, each, own, size)
            scratch.give(memory)


def rows_per_item(dim: int, rows: int) -> int:
    """Rows of W that an item passes over the tokens: more than HEIGHT where the tokens come from beyond the
    second-level cache, as far as there are items enough."""
    return HEIGHT * (1 if dim <= 2 * DEPTH else max(1, min(8, rows // (HEIGHT * 4 * THREADS))))


@njit
def blocks_of(tokens):
    """Blocks of columns for so many tokens."""
    return (tokens + WIDTH - 1) // WIDTH


class Places(NamedTuple):
    """Where each part of a worker's memory begins, for so many tokens and items of so many rows."""

    left: int  # parts of W, packed, two in turns
    sums: int  # (blocks, rows, WIDTH)
    turned: int  # (LANES, LANES)
    temporary: int
    plan: int
    lines: int  # addresses of an item's rows, and of some of those from some depth on
    coming: int  # addresses of the rows after them
    end: int


@njit
def places(base, tokens, dim, rows):
    """The places from an address on; from 0 on the last is how many bytes there are."""
    left = base
    sums = left + 8 * left_size(HEIGHT, DEPTH)
    turned = sums + 4 * blocks_of(tokens) * padded(rows, HIGH) * WIDTH
    temporary = turned + 4 * LANES * LANES
    plan = temporary + 4 * TEMPORARY
    lines = plan + 4 * plan_size(HEIGHT, DEPTH)
    coming = lines + 8 * padded(max(WIDTH, rows + HEIGHT), LANES)
    end = padded(coming + 8 * max(rows, LANES), 64)
    return Places(left, sums, turned, temporary, plan, lines, coming, end)


@kernel
def pack_tokens(task, worker, x, x_row, x_kind, tokens, dim, form, out, memory, size):
    """All tokens as packed blocks of columns; an item is a block. A worker has `size` bytes at `memory`, of which this
    needs 4 · TEMPORARY + 8 · WIDTH."""
    temporary = memory + size * worker
    lines = temporary + 4 * TEMPORARY
    stand = carray(words_at(lines), WIDTH)
    while True:
        first = fetch_add(task, 1) * WIDTH
        if first >= tokens:
            return
        columns = min(WIDTH, tokens - first)
        for i in range(columns):
            stand[i] = x + (first + i) * x_row
        pack_right(lines, x_kind, columns, dim, packed_at(out, first, dim), 1.0, form, temporary)


@njit(forceinline=True)
def packed_at(right, token, dim):
    """Where packed tokens begin with this one, the first of a block."""
    return right + 4 * (token // WIDTH) * right_size(dim)


@njit
def multiply_rows(lines, form, rows, tokens, dim, right, left, turn, sums, plan, coming, coming_rows):
    """sums (blocks, rows padded to HIGH, WIDTH) = the rows of a matrix, whose addresses stand at `lines`, times packed
    tokens. After those addresses there is room for HEIGHT more.

    The first part must be planned, for the `turn`-th of the two places at `left`; at the end the first part of the rows
    whose addresses stand at `coming` is, if there are any, for the place whose turn is returned.
    """
    stand, here = carray(words_at(lines), rows), carray(words_at(lines + 8 * rows), HEIGHT)
    high, blocks, place = padded(rows, HIGH), blocks_of(tokens), 4 * left_size(HEIGHT, DEPTH)
    kind = kind_of(form)
    for depth in range(0, dim, DEPTH):
        deep = min(DEPTH, dim - depth)
        for first in range(0, rows, HEIGHT):
            some, after = min(HEIGHT, rows - first), first + HEIGHT
            for i in range(some):
                here[i] = stand[first + i] + bytes_of(kind, depth)
            packed, following = left + turn * place, left + (1 - turn) * place
            then, then_rows, then_depth = coming, coming_rows, 0
            if after < rows:
                then, then_rows, then_depth = lines + 8 * after, rows - after, depth
            elif depth + DEPTH < dim:
                then, then_rows, then_depth = lines, rows, depth + DEPTH
            ready_and_plan(
                plan, lines + 8 * rows, form, some, deep, packed, then, min(HEIGHT, then_rows),
                bytes_of(kind, then_depth), min(DEPTH, dim - then_depth), following,
            )  # fmt: skip
            turn = 1 - turn
            for n in range(blocks):
                at = right_at(right + 4 * n * right_size(dim), depth, form)
                to, vectors = sums + 4 * (n * high + first) * WIDTH, vectors_of(tokens - n * WIDTH)
                multiply_packing(form, depth == 0, vectors, some, deep, packed, 0, at, to, 4 * WIDTH, plan)
    return turn


@njit
def write_turned(sums, high, rows, tokens, out, out_row, shift, lines, turned):
    """out (tokens, rows), rows `out_row` bytes apart, = the sums (blocks, high, WIDTH) turned, plus a number per row
    that stands at `shift`, where that is not 0."""
    stand = carray(words_at(lines), LANES)
    added, flat = carray(floats_at(shift or sums), rows), carray(floats_at(turned), (LANES, LANES))
    for n in range(blocks_of(tokens)):
        block = sums + 4 * n * high * WIDTH
        for r in range(0, rows, LANES):
            wide = min(LANES, rows - r)
            for i in range(LANES):
                stand[i] = block + 4 * (r + min(i, wide - 1)) * WIDTH
                if shift and i < wide:
                    for c in range(0, WIDTH, LANES):
                        at = stand[i] + 4 * c
                        store(at, load(at) + splat(added[r + i]))
            for c in range(0, min(WIDTH, tokens - n * WIDTH), LANES):
                token = n * WIDTH + c
                to = out + token * out_row + 4 * r
                if wide == LANES and token + LANES <= tokens:
                    transpose(lines, 4 * c, to, out_row)
                    continue
                transpose(lines, 4 * c, turned, 4 * LANES)
                for t in range(min(LANES, tokens - token)):
                    line = carray(floats_at(to + t * out_row), wide)
                    for i in range(wide):
                        line[i] = flat[t, i]


@njit
def list_item(item, each, maps, count, tokens, lines):
    """Write the addresses of the rows of item `item` to `lines`; returns which map it belongs to, its first row there,
    how many rows, none where there is no such item, and its first token. All rows of a span of tokens come before those
    of the next, so that the span stays in the caches."""
    described, total = carray(words_at(maps), (count, 6)), 0
    for n in range(count):
        total += (described[n, 5] + each - 1) // each
    if item >= total * ((tokens + SPAN - 1) // SPAN):
        return 0, 0, 0, 0
    span, item, n = item // total, item % total, 0
    while item >= (described[n, 5] + each - 1) // each:
        item -= (described[n, 5] + each - 1) // each
        n += 1
    first = item * each
    rows = min(each, described[n, 5] - first)
    list_rows(lines, described[n, 0], described[n, 1], first, rows, 0)
    return n, first, rows, span * SPAN


@kernel
def _project(task, worker, right, maps, count, tokens, dim, form, first_token, each, memory, size):
    described, turn = carray(words_at(maps), (count, 6)), 0
    at = places(memory + size * worker, min(SPAN, tokens), dim, each)
    open_tiles()
    n, first, rows, token = list_item(fetch_add(task, 1), each, maps, count, tokens, at.lines)
    if rows:
        plan_left(at.plan, at.lines, form, min(HEIGHT, rows), 0, min(DEPTH, dim), at.left)
    while rows:
        bias, y, outs = described[n, 3], described[n, 4], described[n, 5]
        here, packed = min(SPAN, tokens - token), packed_at(right, token, dim)
        next_n, next_first, next_rows, next_token = list_item(fetch_add(task, 1), each, maps, count, tokens, at.coming)
        turn = multiply_rows(
            at.lines, form, rows, here, dim, packed, at.left, turn, at.sums, at.plan, at.coming, next_rows
        )
        to, shift = y + 4 * ((first_token + token) * outs + first), bias + 4 * first if bias else 0
        write_turned(at.sums, padded(rows, HIGH), rows, here, to, 4 * outs, shift, at.lines, at.turned)
        n, first, rows, token = next_n, next_first, next_rows, next_token
        list_rows(at.lines, described[n, 0], described[n, 1], first, rows, 0)
    close_tiles()
