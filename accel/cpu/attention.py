"""Attention by blocks, with an online softmax: nothing of size T × S is ever held.

How it tiles. The G heads of a group share their keys, so one work item is a KV head, at most 512 of its G·T query
columns, and a range of keys. Keys come in blocks of KEYS, packed once for all columns of the item, as are the values.
K·Qᵀ fills a buffer of KEYS rows and WIDTH columns, the softmax turns it into weights, down the columns and so without
any step across lanes, and Vᵀ times the weights is added to the columns' output. All of it stays in the second-level
cache; the product (blocks.py) is what limits it. A few columns, as in decoding, go key by key where the keys are: there
the memory is the limit.

Positions ascend along T and S, so a query sees one contiguous range of keys: masks compare key numbers with two bounds
per query, and blocks outside every bound are not visited. Ranges of keys are merged at the end by their peaks and sums.
Powers of two instead of e: log2(e) is folded into the scale, which is folded into the queries. A column's peak is
raised only when it is exceeded by 2⁸, so that the output is hardly ever rescaled. On a matrix unit one block of columns
is softened while the scores of the next are multiplied.
"""

from __future__ import annotations

import math

import numpy as np
from numba import carray, njit
from numba.extending import register_jitable

from accel.cpu.blocks import (
    HIGH,
    STEP,
    TEMPORARY,
    WIDTH,
    across_row,
    add_row,
    ahead,
    copy_row,
    empty_queue,
    enqueue,
    left_size,
    multiply,
    multiply_softening,
    number_size,
    pack_left,
    pack_left_across,
    pack_right,
    padded,
    queue_size,
    right_size,
    vectors_of,
    widen,
)
from accel.cpu.compiled import THREADS, kernel
from accel.cpu.memory import fresh, scratch
from accel.cpu.simd import (
    F32,
    LANES,
    MATRIX,
    ROWS,
    VECTORS,
    close_tiles,
    exp2,
    fetch_add,
    floats_at,
    fma,
    highest,
    larger,
    load,
    only,
    open_tiles,
    real,
    soften_units,
    splat,
    store,
    tile_rows,
    total,
    transpose,
    unpack,
    within,
    words_at,
)
from accel.cpu.views import Chosen, address, readable, rows
from reference.checks import ascending, match, require, whole

KEYS = 128 if MATRIX else 128 // ROWS * ROWS  # keys per block
MOST_COLUMNS = 512  # query columns per item
TOKENS = 32  # that items share a multiple of: whole blocks of columns, whatever the group
FEW = 8  # query columns up to which keys are read where they are: decoding
LOG2E = math.log2(math.e)
NOTHING = -1e30  # the peak of a column that has seen no key; finite, so that differences are numbers
SLACK = 8.0  # powers of two by which a peak may be exceeded


def attention(
    q: np.ndarray,
    k: np.ndarray,
    v: np.ndarray,
    q_positions: np.ndarray,
    k_positions: np.ndarray,
    *,
    scale: float | None = None,
    window: int | None = None,
) -> np.ndarray:
    """Attention output: q (H, T, D), k and v (KV, S, D), q_positions (T,), k_positions (KV, S) -> (H, T, D) float32.

    As `reference.attention`, computed in float32 from any stored dtype. In memory the heads of a token are neighbours.
    """
    match(k=(k, "KV S D"), v=(v, "KV S D"))
    return Plan(q, k, q_positions, k_positions, scale, window).output(v)


class Plan:
    """One call's arguments, checked and as kernels take them."""

    def __init__(
        self,
        q: np.ndarray,
        k: np.ndarray | Chosen,
        q_positions: np.ndarray,
        k_positions: np.ndarray,
        scale: float | None,
        window: int | None,
    ) -> None:
        sizes = match(
            q=(q, "H T D"), k=(k, "KV S D"), q_positions=(q_positions, "T"), k_positions=(k_positions, "KV S")
        )
        if window is not None:
            whole("window", window)
        scale = 1 / math.sqrt(sizes["D"]) if scale is None else scale
        require(math.isfinite(scale), f"scale: got {scale}, wanted a finite number")
        self.heads, self.kv, self.tokens, self.keys = sizes["H"], sizes["KV"], sizes["T"], sizes["S"]
        self.dim, self.group = sizes["D"], sizes["H"] // sizes["KV"]
        self.q = readable(q)
        self.k, self.columns = where_it_stands(k)
        self.scale = float(scale) * LOG2E
        self.bounds = bounds(q_positions, k_positions, window)  # (KV, T, 2)
        self.few = self.tokens * self.group <= FEW
        # Items enough to keep all cores busy to the end: long ranges of keys are shared out, which are merged
        # afterwards, and else the tokens, for each of whose blocks keys and values are packed anew.
        block = self.tokens if self.few else max(1, min(self.tokens, MOST_COLUMNS // self.group))
        items = max(1, self.kv * -(-self.tokens // max(block, 1)))
        shortest = KEYS if self.few else 16 * KEYS
        self.parts = max(1, min(-(-3 * THREADS // items), self.keys // shortest))
        shares = -(-3 * THREADS // (items * self.parts))
        if not self.few and shares > 1:
            block = min(block, -(-block // shares // TOKENS) * TOKENS)
        self.block, self.blocks = block, -(-self.tokens // max(block, 1))
        self.span = -(-self.keys // (self.parts * KEYS)) * KEYS  # keys per range

    def output(self, v: np.ndarray | Chosen) -> np.ndarray:
        """Attention to all keys, (H, T, D)."""
        out = fresh(self.tokens, self.heads, self.dim).transpose(1, 0, 2)
        if self.parts == 1 or out.size == 0:
            self._run(v, out, True)
            return out
        partial = fresh(self.parts, self.heads, self.tokens, self.dim)
        stats = self._run(v, partial, False)
        _merge(address(partial), address(stats), *rows(out)[:3], self.parts, self.heads, self.tokens, self.dim)
        return out

    def peaks_and_sums(self) -> np.ndarray:
        """Of every query and range of keys, the exponent that its weights are relative to, and their sum: (P, H, T,
        2)."""
        return self._run(None, None, False)

    def _run(self, v: np.ndarray | Chosen | None, target: np.ndarray | None, final: bool) -> np.ndarray:
        """Attention to each range of keys, normalised if `final`, written to `target` (…, H, T, D); returns peaks and
        sums (P, H, T, 2). Without v only these are computed."""
        stats = np.empty((self.parts, self.heads, self.tokens, 2), np.float32)
        if self.tokens * self.dim == 0:
            return stats
        held = None if v is None else where_it_stands(v)[0]  # a copy lives until the kernel is done
        values = (0, 0, 0, 0) if held is None else rows(held)
        out: tuple[int, ...] = (0, 0, 0, 0)
        if target is not None:
            out = address(target), target.strides[0] if target.ndim == 4 else 0, *target.strides[-3:-1]
        size = few_places(self.dim)[-1] if self.few else places(self.block * self.group, self.dim)[-1]
        memory = scratch.take(size * THREADS)
        (_attend_few if self.few else _attend)(
            *rows(self.q), *rows(self.k), *values, self.chosen, address(self.bounds), *out, int(final), address(stats),
            address(memory), size, self.heads, self.kv, self.tokens, self.keys, self.dim, self.block, self.blocks,
            self.parts, self.span, self.scale,
        )  # fmt: skip
        scratch.give(memory)
        return stats

    @property
    def chosen(self) -> int:
        """Where the columns to read stand, 0 for all."""
        return 0 if self.columns is None else address(self.columns)


def where_it_stands(x: np.ndarray | Chosen) -> tuple[np.ndarray, np.ndarray | None]:
    """The array to read from, and which of its columns (None: all)."""
    if isinstance(x, Chosen):
        return readable(x.held), np.ascontiguousarray(x.columns, np.int64)
    return readable(x), None


def bounds(q_positions: np.ndarray, k_positions: np.ndarray | Chosen, window: int | None) -> np.ndarray:
    """First and one past the last key that each query sees: (KV, T, 2) int64. ValueError for positions out of
    order."""
    asked, columns = np.ascontiguousarray(q_positions, np.int64), 0
    (kv_heads, keys), tokens = k_positions.shape, len(asked)
    held = k_positions.held if isinstance(k_positions, Chosen) else k_positions
    if held.dtype != np.int64 or held.strides[1] != 8:
        held = np.ascontiguousarray(held, np.int64)
    if isinstance(k_positions, Chosen):
        columns = address(k_positions.columns)
    found, disorder = np.empty((kv_heads, tokens, 2), np.int64), np.zeros(1, np.int64)
    _bounds(
        address(asked), address(held), held.strides[0], columns, address(found), address(disorder), kv_heads, tokens,
        keys, -1 if window is None else window, workers=1,
    )  # fmt: skip
    if disorder[0]:
        ascending("q_positions", q_positions)
        ascending("k_positions", np.asarray(k_positions))
    return found


@njit(forceinline=True)
def _position(held, columns, i):
    """The i-th position, or that at the i-th of the columns listed."""
    return held[columns[i]] if columns.size else held[i]


@njit
def _in_order(held, columns, count):
    """Whether the first `count` rise."""
    wrong = 0
    for i in range(1, count):
        wrong += _position(held, columns, i) <= _position(held, columns, i - 1)
    return wrong == 0


@njit
def _first_after(held, columns, count, position):
    """How many of the first `count` are at most `position`."""
    low, high = 0, count
    while low < high:
        middle = (low + high) // 2
        if _position(held, columns, middle) <= position:
            low = middle + 1
        else:
            high = middle
    return low


@kernel
def _bounds(task, worker):
    asked, held, held_row, chosen, found, disorder, kv_heads, tokens, keys, window = unpack(task + 8, 10)
    wanted, wrong = carray(words_at(asked), tokens), carray(words_at(disorder), 1)
    seen, listed = carray(words_at(found), (kv_heads, tokens, 2)), carray(words_at(chosen or asked), (kv_heads, keys))
    wrong[0] = 0 if _in_order(wanted, listed[0, :0], tokens) else 1
    for kv in range(kv_heads):
        columns = listed[kv, : keys if chosen else 0]
        positions = carray(words_at(held + kv * held_row), keys)  # longer where columns are listed
        if not _in_order(positions, columns, keys):
            wrong[0] = 1
        for side in range(2):
            reach = window if side == 0 else 0
            if reach < 0 or tokens == 0:  # no window: from the first key on
                seen[kv, :, side] = 0
                continue
            first = _first_after(positions, columns, keys, wanted[0] - reach)
            for t in range(tokens):
                while first < keys and _position(positions, columns, first) <= wanted[t] - reach:
                    first += 1
                seen[kv, t, side] = first


@register_jitable
def places(columns, dim):
    """Where each part of a worker's memory begins, in floats, for items of so many columns; the last is how many."""
    blocks = (columns + WIDTH - 1) // WIDTH
    high = padded(padded(dim, LANES), HIGH)
    queries = 0  # (blocks,) packed
    out = queries + blocks * right_size(dim)  # (blocks, high, WIDTH)
    state = out + blocks * high * WIDTH  # peaks and sums (blocks, 2, WIDTH)
    left_keys = state + blocks * 2 * WIDTH
    left_values = left_keys + left_size(KEYS, dim)
    scores = left_values + left_size(dim, KEYS)  # (KEYS, WIDTH), of two blocks of columns in turns
    weights = scores + 2 * padded(KEYS, HIGH) * WIDTH  # packed; register tiles read the scores' own place
    temporary = weights + (right_size(KEYS) if MATRIX else 0)
    turned = temporary + TEMPORARY  # (LANES, dim)
    lines = turned + LANES * padded(dim, LANES)  # addresses
    queue = lines + 2 * max(WIDTH, padded(KEYS, STEP))
    ends = queue + 2 * queue_size(KEYS, 4 * dim)  # two bounds per column
    return (
        queries, out, state, left_keys, left_values, scores, weights, temporary, turned, lines, queue, ends,
        padded(ends + 2 * WIDTH, 16),
    )  # fmt: skip


@njit
def hide(vectors, count, scores, ends):
    """Minus infinity wherever a column's two bounds leave a key out."""
    for j in range(0, vectors * LANES, LANES):
        lows, highs = load(ends + 4 * j), load(ends + 4 * (WIDTH + j))
        for i in range(count):
            at = scores + 4 * (i * WIDTH + j)
            store(at, within(load(at), lows, highs, np.float32(i)))


@njit
def bound_columns(seen, first_column, columns, here, first_token, start, ends):
    """The bounds of a block's columns, counted from the key `start`, as the floats that `hide` compares."""
    edges = carray(floats_at(ends), (2, WIDTH))
    for i in range(columns):
        token = first_token + (first_column + i) % here
        for side in range(2):
            edges[side, i] = min(max(seen[token, side] - start, -1), KEYS)


@njit
def raise_peaks(vectors, count, scores, state, out, high):
    """Raise the peaks that a block of scores exceeds by far, and rescale what was summed under the old ones."""
    for j in range(0, vectors * LANES, LANES):
        at = scores + 4 * j
        a, b, c, d = load(at), load(at), load(at), load(at)
        for i in range(0, count - 3, 4):
            row = at + 4 * WIDTH * i
            a, b = larger(a, load(row)), larger(b, load(row + 4 * WIDTH))
            c, d = larger(c, load(row + 8 * WIDTH)), larger(d, load(row + 12 * WIDTH))
        for i in range(count // 4 * 4, count):
            a = larger(a, load(at + 4 * WIDTH * i))
        best, peak = larger(larger(a, b), larger(c, d)), load(state + 4 * j)
        if highest(best - peak) > SLACK:
            raised = larger(peak, best)
            factor = exp2(peak - raised)
            store(state + 4 * j, raised)
            sums = state + 4 * (WIDTH + j)
            store(sums, load(sums) * factor)
            for i in range(high):
                row = out + 4 * (i * WIDTH + j)
                store(row, load(row) * factor)


@njit
def soften(first, vectors, count, scores, weights, kind, state):
    """2^(x - peak) of a block of scores, whose columns' sums are added up: in place, or packed for the matrix unit,
    from the unit `first` on. `kind` is how the values are stored."""
    if MATRIX:
        soften_units(kind, first, units_of(count), vectors, scores, weights, state)
        return
    for j in range(0, vectors * LANES, LANES):
        peak, sums = load(state + 4 * j), state + 4 * (WIDTH + j)
        sum_x = load(sums)
        for i in range(count):
            row = scores + 4 * (i * WIDTH + j)
            x = exp2(load(row) - peak)
            sum_x = sum_x + x
            store(row, x)
        store(sums, sum_x)


@njit(forceinline=True)
def units_of(count):
    """Units of the softmax for so many keys."""
    return padded(count, STEP)


@njit
def prepare(vectors, count, scores, edge, limits, first_column, columns, here, first_token, start, ends):
    """Hide what a block of columns must not see, and the rows that fill up the last step."""
    if edge:
        bound_columns(limits, first_column, columns, here, first_token, start, ends)
        hide(vectors, count, scores, ends)
    if MATRIX:
        for i in range(count, padded(count, STEP)):
            for j in range(0, vectors * LANES, LANES):
                store(scores + 4 * (i * WIDTH + j), splat(np.float32(-np.inf)))


@njit(forceinline=True)
def list_rows(lines, base, row, first, count, columns, chosen):
    """Write the addresses of `count` rows: those of columns first, first + 1, … of the list, or of the array itself."""
    stand = carray(words_at(lines), count)
    for i in range(count):
        stand[i] = base + (columns[first + i] if chosen else first + i) * row


@njit
def pack_queries(q, q_head, q_row, q_kind, group, here, dim, out, scale, k_kind, lines, temporary):
    """The queries of a group, head by head, as the columns of packed blocks."""
    stand, columns = carray(words_at(lines), WIDTH), group * here
    for first in range(0, columns, WIDTH):
        count = min(WIDTH, columns - first)
        for i in range(count):
            stand[i] = q + (first + i) // here * q_head + (first + i) % here * q_row
        to = out + 4 * first // WIDTH * right_size(dim)
        pack_right(lines, q_kind, count, dim, to, scale, k_kind, temporary)


@kernel
def _attend(task, worker):
    (
        q, q_head, q_row, q_kind, k, k_head, k_row, k_kind, v, v_head, v_row, v_kind, chosen, seen, target, target_part,
        target_head, target_row, final, stats, memory, size, heads, kv_heads, tokens, keys, dim, block, blocks, parts,
        span, scale,
    ) = unpack(task + 8, 32)  # fmt: skip
    group, wide_dim = heads // kv_heads, padded(dim, LANES)
    high = padded(wide_dim, HIGH)
    limits = carray(words_at(seen), (kv_heads, tokens, 2))
    summary = carray(floats_at(stats), (parts, heads, tokens, 2))
    listed = carray(words_at(chosen or seen), (kv_heads, keys))
    mine = memory + 4 * size * worker
    p = places(block * group, dim)
    queries, out, state, left_keys = mine + 4 * p[0], mine + 4 * p[1], mine + 4 * p[2], mine + 4 * p[3]
    left_values, scores, weights = mine + 4 * p[4], mine + 4 * p[5], mine + 4 * p[6]
    temporary, turned, lines, queue, ends = (
        mine + 4 * p[7], mine + 4 * p[8], mine + 4 * p[9], mine + 4 * p[10], mine + 4 * p[11],
    )  # fmt: skip
    stand = carray(words_at(lines), LANES)
    open_tiles()
    while True:
        item = fetch_add(task, 1)
        if item >= kv_heads * blocks * parts:
            close_tiles()
            return
        part, kv, first_token = item % parts, item // parts % kv_heads, item // (parts * kv_heads) * block
        here = min(block, tokens - first_token)
        columns, last_token = here * group, first_token + here - 1
        source = q + kv * group * q_head + first_token * q_row
        pack_queries(source, q_head, q_row, q_kind, group, here, dim, queries, real(scale), k_kind, lines, temporary)
        for c in range(0, columns, WIDTH):
            column_state = carray(floats_at(state + 8 * c), (2, WIDTH))
            column_state[0] = NOTHING
            column_state[1] = 0.0
        if v:
            for i in range(0, padded(columns, WIDTH) * high, LANES):
                store(out + 4 * i, splat(np.float32(0.0)))
        begin = max(part * span, limits[kv, first_token, 0] // KEYS * KEYS)
        end = min((part + 1) * span, limits[kv, last_token, 1])
        for start in range(begin, end, KEYS):
            count, coming = min(KEYS, end - start), min(KEYS, end - start - KEYS)
            list_rows(lines, k + kv * k_head, k_row, start, count, listed[kv], chosen)
            pack_left(lines, k_kind, count, dim, left_keys)
            if v:
                list_rows(lines, v + kv * v_head, v_row, start, count, listed[kv], chosen)
                pack_left_across(lines, v_kind, dim, count, left_values, temporary)
            empty_queue(queue)
            if coming > 0:
                list_rows(lines, k + kv * k_head, k_row, start + KEYS, coming, listed[kv], chosen)
                enqueue(queue, lines, coming, 0, dim * number_size(k_kind))
                if v:
                    list_rows(lines, v + kv * v_head, v_row, start + KEYS, coming, listed[kv], chosen)
                    enqueue(queue, lines, coming, 0, dim * number_size(v_kind))
            edge = limits[kv, last_token, 0] > start or limits[kv, first_token, 1] < start + count
            # A block of columns is softened while the next one's scores are computed.
            overlap = MATRIX and k_kind == v_kind and v != 0
            for c in range(0, columns + WIDTH, WIDTH):
                done = 0
                fresh_scores = scores + c // WIDTH % 2 * (4 * padded(KEYS, HIGH) * WIDTH)
                before = c - WIDTH
                old_scores, old_state = (
                    scores + before // WIDTH % 2 * (4 * padded(KEYS, HIGH) * WIDTH),
                    state + 8 * before,
                )
                if c < columns:
                    vectors, right = vectors_of(columns - c), queries + 4 * c // WIDTH * right_size(dim)
                    if overlap:
                        units = units_of(count) if c else 0
                        done = multiply_softening(
                            k_kind, vectors, count, dim, left_keys, right, fresh_scores, units, old_scores, weights,
                            old_state,
                        )  # fmt: skip
                    else:
                        multiply(k_kind, 1, vectors, count, dim, left_keys, 0, right, fresh_scores, 4 * WIDTH, queue)
                    prepare(
                        vectors, count, fresh_scores, edge, limits[kv], c, min(WIDTH, columns - c), here, first_token,
                        start, ends,
                    )  # fmt: skip
                    raise_peaks(vectors, count, fresh_scores, state + 8 * c, out + 4 * c * high, high if v else 0)
                if c:
                    vectors = vectors_of(columns - before)
                    to = weights if MATRIX else old_scores
                    soften(done, vectors, count, old_scores, to, v_kind, old_state)
                    if v:
                        column_out = out + 4 * before * high
                        multiply(
                            v_kind, 0, vectors, dim, count, left_values, across_row(dim), to, column_out, 4 * WIDTH,
                            queue,
                        )  # fmt: skip
        for c in range(0, columns, LANES):
            place = c // WIDTH
            column_state = carray(floats_at(state + 8 * place * WIDTH), (2, WIDTH))
            if v:
                for d in range(0, wide_dim, LANES):
                    for i in range(LANES):
                        stand[i] = out + 4 * WIDTH * (place * high + d + i)
                    transpose(lines, 4 * (c % WIDTH), turned + 4 * d, 4 * wide_dim)
            for i in range(min(LANES, columns - c)):
                head, token = kv * group + (c + i) // here, first_token + (c + i) % here
                peak, mass = column_state[0, c % WIDTH + i], column_state[1, c % WIDTH + i]
                summary[part, head, token, 0] = peak
                summary[part, head, token, 1] = mass
                if v:
                    to = target + part * target_part + head * target_head + token * target_row
                    factor = np.float32(1.0)
                    if final:
                        factor = np.float32(1.0) / mass if mass != 0.0 else np.float32(0.0)
                    copy_row(turned + 4 * i * wide_dim, to, dim, factor)


@register_jitable
def few_places(dim):
    """Where each part of a worker's memory begins, in floats, for a few columns."""
    wide_dim = padded(dim, LANES)
    queries = 0  # (FEW, wide_dim)
    scores = queries + FEW * wide_dim  # (FEW, KEYS)
    out = scores + FEW * padded(KEYS, LANES)  # (FEW, wide_dim)
    wide = out + FEW * wide_dim  # (KEYS, wide_dim)
    lines = wide + KEYS * wide_dim  # addresses
    coming = lines + 2 * KEYS  # addresses of what is read after them
    state = coming + 2 * KEYS  # peaks and sums (2, FEW)
    return queries, scores, out, wide, lines, coming, state, padded(state + 2 * FEW, 16)


@njit(forceinline=True)
def product(x, y, dim):
    """Dot product of two widened rows."""
    sums = splat(np.float32(0.0))
    for i in range(0, dim, LANES):
        sums = fma(load(x + 4 * i), load(y + 4 * i), sums)
    return total(sums)


@njit
def score_few(queries, rows, lines, kind, count, dim, wide, scores, coming, coming_count):
    """Scores of a few rows (rows, KEYS) by a product per row and key: packing the keys would cost more. Meanwhile the
    rows whose addresses stand at `coming` are fetched."""
    wide_dim, stand = padded(dim, LANES), carray(words_at(lines), KEYS)
    out = carray(floats_at(scores), (FEW, padded(KEYS, LANES)))
    following, done = carray(words_at(coming), KEYS), 0
    for i in range(count):
        while done < coming_count * (i + 1) // count:
            ahead(following[done], kind, dim)
            done += 1
        key = stand[i]
        if kind != F32 or dim != wide_dim:
            widen(key, kind, dim, wide, 1.0)
            key = wide
        for r in range(rows):
            out[r, i] = product(queries + 4 * r * wide_dim, key, dim)


@njit(forceinline=True)
def power(x):
    """2^x of one number."""
    return highest(exp2(splat(x)))


@kernel
def _attend_few(task, worker):
    (
        q, q_head, q_row, q_kind, k, k_head, k_row, k_kind, v, v_head, v_row, v_kind, chosen, seen, target, target_part,
        target_head, target_row, final, stats, memory, size, heads, kv_heads, tokens, keys, dim, block, blocks, parts,
        span, scale,
    ) = unpack(task + 8, 32)  # fmt: skip
    group, wide_dim, score_row = heads // kv_heads, padded(dim, LANES), 4 * padded(KEYS, LANES)
    columns = group * tokens
    limits = carray(words_at(seen), (kv_heads, tokens, 2))
    summary = carray(floats_at(stats), (parts, heads, tokens, 2))
    listed = carray(words_at(chosen or seen), (kv_heads, keys))
    mine = memory + 4 * size * worker
    p = few_places(dim)
    queries, scores, out, wide, lines, coming = (
        mine + 4 * p[0], mine + 4 * p[1], mine + 4 * p[2], mine + 4 * p[3], mine + 4 * p[4], mine + 4 * p[5],
    )  # fmt: skip
    stand = carray(words_at(lines), KEYS)
    peaks, sums = carray(floats_at(mine + 4 * p[6]), FEW), carray(floats_at(mine + 4 * p[6] + 4 * FEW), FEW)
    while True:
        item = fetch_add(task, 1)
        if item >= kv_heads * parts:
            return
        part, kv = item % parts, item // parts
        for r in range(columns):
            at = q + (kv * group + r // tokens) * q_head + r % tokens * q_row
            widen(at, q_kind, dim, queries + 4 * r * wide_dim, real(scale))
            peaks[r], sums[r] = NOTHING, 0.0
        carray(floats_at(out), FEW * wide_dim)[:] = 0.0
        begin = max(part * span, limits[kv, 0, 0] // KEYS * KEYS)
        end = min((part + 1) * span, limits[kv, tokens - 1, 1])
        for start in range(begin, end, KEYS):
            count = min(KEYS, end - start)
            list_rows(lines, k + kv * k_head, k_row, start, count, listed[kv], chosen)
            fetched = 0
            if v:
                list_rows(coming, v + kv * v_head, v_row, start, count, listed[kv], chosen)
                fetched = count
            score_few(queries, columns, lines, k_kind, count, dim, wide, scores, coming, fetched)
            for r in range(columns):
                row, token = scores + r * score_row, r % tokens
                low, last = limits[kv, token, 0] - start, min(limits[kv, token, 1] - start, count)
                top = splat(np.float32(NOTHING))
                for i in range(0, count, LANES):
                    x = only(load(row + 4 * i), low - i, last - i)
                    store(row + 4 * i, x)
                    top = larger(top, x)
                peak = max(peaks[r], highest(top))
                if peak > peaks[r]:
                    factor = power(peaks[r] - peak)
                    sums[r] *= factor
                    copy_row(out + 4 * r * wide_dim, out + 4 * r * wide_dim, dim, factor)
                    peaks[r] = peak
                mass = splat(np.float32(0.0))
                for i in range(0, count, LANES):
                    x = exp2(load(row + 4 * i) - splat(peak))
                    store(row + 4 * i, x)
                    mass = mass + x
                sums[r] += total(mass)
            if v:
                at, step = v + kv * v_head + start * v_row, v_row
                if chosen or v_kind != F32 or dim != wide_dim:
                    list_rows(lines, v + kv * v_head, v_row, start, count, listed[kv], chosen)
                    for i in range(count):
                        widen(stand[i], v_kind, dim, wide + 4 * i * wide_dim, 1.0)
                    at, step = wide, 4 * wide_dim
                for d in range(0, wide_dim, VECTORS * LANES):
                    vectors, to = min(VECTORS, (wide_dim - d) // LANES), out + 4 * d
                    tile_rows(vectors, columns, 0, scores, score_row, 4, at + 4 * d, step, to, 4 * wide_dim, count)
        for r in range(columns):
            head, token = kv * group + r // tokens, r % tokens
            summary[part, head, token, 0] = peaks[r]
            summary[part, head, token, 1] = sums[r]
            if v:
                factor = np.float32(1.0)
                if final:
                    factor = np.float32(1.0) / sums[r] if sums[r] != 0.0 else np.float32(0.0)
                to = target + part * target_part + head * target_head + token * target_row
                copy_row(out + 4 * r * wide_dim, to, dim, factor)


@kernel
def _merge(task, worker):
    partial, stats, out, out_head, out_row, parts, heads, tokens, dim = unpack(task + 8, 9)
    summary = carray(floats_at(stats), (parts, heads * tokens, 2))
    while True:
        first = fetch_add(task, 1) * 64
        if first >= heads * tokens:
            return
        for r in range(first, min(first + 64, heads * tokens)):
            to = out + r // tokens * out_head + r % tokens * out_row
            peak, mass = np.float32(NOTHING), np.float32(0.0)
            for p in range(parts):
                peak = max(peak, summary[p, r, 0])
            for p in range(parts):
                mass += summary[p, r, 1] * power(summary[p, r, 0] - peak)
            rate = np.float32(1.0) / mass if mass != 0.0 else np.float32(0.0)
            for p in range(parts):
                factor, source = power(summary[p, r, 0] - peak) * rate, partial + 4 * (p * heads * tokens + r) * dim
                if p == 0:
                    copy_row(source, to, dim, factor)
                else:
                    add_row(source, F32, dim, factor, to)
