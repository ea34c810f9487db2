"""Attention by tiles, with an online softmax: nothing of size T × S is ever held.

How it tiles. The G heads of a group share their keys, so one work item is a KV head, a block of at most 512 of its
G·T query rows, and a range of keys. Keys come in blocks of 128: each is transposed once into panels as wide as the
register tile, Q·Kᵀ fills a rows × 128 buffer panel by panel, the softmax turns it into weights in place, and the
product with V is added to the rows' output, which is rescaled in the same pass when a row's peak grows. All of it stays
in the second-level cache; the tile product (simd.py) is what limits it.

Positions ascend along T and S, so a query sees one contiguous range of columns: masks compare column numbers with two
bounds per query, and blocks outside every bound are not visited. Ranges of keys are merged at the end by their peaks
and sums. Powers of two instead of e: log2(e) is folded into the scale, which is folded into the queries.
"""

from __future__ import annotations

import math

import numpy as np
from numba import carray, njit

from accel.cpu.compiled import THREADS, kernel
from accel.cpu.simd import (
    F16,
    F32,
    LANES,
    PANEL,
    VECTORS,
    add_rows,
    exp2,
    fetch_add,
    floats_at,
    fma,
    highest,
    larger,
    load,
    load_bf16,
    load_f16,
    load_some,
    load_some_bf16,
    load_some_f16,
    only,
    prefetch,
    real,
    set_rows,
    splat,
    store,
    store_some,
    total,
    transpose,
    unpack,
    words_at,
)
from accel.cpu.views import address, readable, rows, scratch
from reference.checks import ascending, match, require, whole

KEYS = 128  # keys per block
MOST_ROWS = 512  # query rows per item
FEW_ROWS = 8  # query rows up to which keys and values are read where they are: decoding
LOG2E = math.log2(math.e)


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

    As `reference.attention`, computed in float32 from any stored dtype.
    """
    match(k=(k, "KV S D"), v=(v, "KV S D"))
    plan = Plan(q, k, q_positions, k_positions, scale, window)
    partial, stats = plan.attend(readable(v))  # (P, H, T, D), (P, H, T, 2)
    return merge(partial, stats)


class Plan:
    """One call's arguments, checked and as kernels take them.

    With `columns` (KV, R), ascending, only those columns of k and v are read, gathered tile by tile.
    """

    def __init__(
        self,
        q: np.ndarray,
        k: np.ndarray,
        q_positions: np.ndarray,
        k_positions: np.ndarray,
        scale: float | None,
        window: int | None,
        columns: np.ndarray | None = None,
    ) -> None:
        sizes = match(
            q=(q, "H T D"), k=(k, "KV S D"), q_positions=(q_positions, "T"), k_positions=(k_positions, "KV S")
        )
        ascending("q_positions", q_positions)
        ascending("k_positions", k_positions)
        if window is not None:
            whole("window", window)
        scale = 1 / math.sqrt(sizes["D"]) if scale is None else scale
        require(math.isfinite(scale), f"scale: got {scale}, wanted a finite number")
        self.q, self.k = readable(q), readable(k)
        self.heads, self.kv, self.tokens, self.keys = sizes["H"], sizes["KV"], sizes["T"], sizes["S"]
        self.dim, self.group = sizes["D"], sizes["H"] // sizes["KV"]
        if columns is not None:
            self.keys, k_positions = columns.shape[1], np.take_along_axis(k_positions, columns, axis=1)
        self.columns = None if columns is None else np.ascontiguousarray(columns)
        self.scale = float(scale) * LOG2E
        self.bounds = bounds(q_positions, k_positions, window)  # (KV, T, 2)

    def attend(self, v: np.ndarray | None) -> tuple[np.ndarray, np.ndarray]:
        """Unnormalised outputs of P ranges of keys (P, H, T, D), and each row's peak and sum there (P, H, T, 2).

        Without v only peaks and sums are computed.
        """
        block = max(1, min(self.tokens, MOST_ROWS // self.group))  # tokens per item
        blocks = -(-self.tokens // block)
        parts = max(1, min(-(-8 * THREADS // max(1, self.kv * blocks)), -(-self.keys // (4 * KEYS))))
        span = -(-self.keys // (parts * KEYS)) * KEYS  # keys per range
        dim = self.dim if v is not None else 0
        partial = np.empty((parts, self.heads, self.tokens, dim), np.float32)
        stats = np.empty((parts, self.heads, self.tokens, 2), np.float32)
        size = _scratch_size(block * self.group, self.dim)
        with_v = rows(v) if v is not None else (0, 0, 0, 0)
        columns = 0 if self.columns is None else address(self.columns)
        memory = scratch.take(size * THREADS)
        _attend(
            *rows(self.q), *rows(self.k), *with_v, columns, address(self.bounds), address(partial), address(stats),
            address(memory), size, self.heads, self.kv, self.tokens, self.keys, self.dim, block, blocks, parts, span,
            self.scale,
        )  # fmt: skip
        scratch.give(memory)
        return partial, stats


def bounds(q_positions: np.ndarray, k_positions: np.ndarray, window: int | None) -> np.ndarray:
    """First and one past the last column that each query sees: (KV, T, 2) int64."""
    found = np.empty((len(k_positions), len(q_positions), 2), np.int64)
    for seen, held in zip(found, k_positions, strict=True):
        seen[:, 1] = np.searchsorted(held, q_positions, side="right")
        seen[:, 0] = 0 if window is None else np.searchsorted(held, q_positions - window, side="right")
    return found


def merge(partial: np.ndarray, stats: np.ndarray) -> np.ndarray:
    """Outputs over all keys from those over ranges of them: (P, H, T, D), (P, H, T, 2) -> (H, T, D)."""
    parts, heads, tokens, dim = partial.shape
    out = np.empty((heads, tokens, dim), np.float32)
    _merge(address(partial), address(stats), address(out), parts, heads * tokens, dim)
    return out


def _padded(n: int, step: int) -> int:
    return -(-n // step) * step


def _scratch_size(rows: int, dim: int) -> int:
    """Floats that a worker needs for items of so many rows; `_attend` lays them out."""
    wide_dim = _padded(dim, LANES)
    return rows * (2 * wide_dim + KEYS + 3) + KEYS * (2 * wide_dim + _padded(dim, PANEL)) + 2 * KEYS + 2


@njit(forceinline=True)
def padded(n, step):
    """n rounded up to a multiple of step."""
    return (n + step - 1) // step * step


@njit(forceinline=True)
def load_kind(at, kind, left):
    """LANES stored numbers as float32, or zeros after the `left` that there are."""
    if left >= LANES:
        return load(at) if kind == F32 else load_f16(at) if kind == F16 else load_bf16(at)
    if kind == F32:
        return load_some(at, left)
    return load_some_f16(at, left) if kind == F16 else load_some_bf16(at, left)


@njit(forceinline=True)
def ahead(row, kind, dim):
    """Fetch a row that will be read soon, so that memory works while the tile does."""
    for at in range(row, row + dim * (4 if kind == F32 else 2), 64):
        prefetch(at)


@njit(forceinline=True)
def widen(source, kind, count, out, factor):
    """A row of `count` stored numbers times `factor`, as float32 with zeros up to a multiple of LANES."""
    by, size = splat(factor), 4 if kind == F32 else 2
    if kind == F32 and count % LANES == 0:  # the common case, without a question per vector
        for i in range(0, count, LANES):
            store(out + 4 * i, load(source + 4 * i) * by)
        return
    for i in range(0, count, LANES):
        store(out + 4 * i, load_kind(source + size * i, kind, count - i) * by)


@njit(forceinline=True)
def copy_row(source, target, count):
    """Copy `count` float32."""
    for i in range(0, count, LANES):
        if count - i >= LANES:
            store(target + 4 * i, load(source + 4 * i))
        else:
            store_some(target + 4 * i, count - i, load_some(source + 4 * i, count - i))


@njit
def pack_queries(q, q_head, q_row, kind, group, tokens, dim, out, scale):
    """The queries of a group one under another, (G·T, wide_dim), times the scale."""
    wide_dim, r = padded(dim, LANES), 0
    for g in range(group):
        for t in range(tokens):
            widen(q + g * q_head + t * q_row, kind, dim, out + 4 * r * wide_dim, scale)
            r += 1


@njit
def pack_keys(lines, kind, count, dim, wide, panels):
    """Transpose `count` keys, whose addresses stand at `lines`, into panels: (KEYS/PANEL, wide_dim, PANEL).

    Rows that are not float32, or not a multiple of LANES long, are first widened into `wide`.
    """
    wide_dim = padded(dim, LANES)
    stand = carray(words_at(lines), KEYS)
    if kind != F32 or dim != wide_dim:
        for i in range(count):
            widen(stand[i], kind, dim, wide + 4 * i * wide_dim, 1.0)
            stand[i] = wide + 4 * i * wide_dim
    for i in range(count, padded(count, PANEL)):
        stand[i] = stand[count - 1]  # any finite row: masked later
    for first in range(0, count, PANEL):
        panel = panels + 4 * first * wide_dim
        for d in range(0, wide_dim, LANES):
            for i in range(0, PANEL, LANES):
                transpose(lines + 8 * (first + i), 4 * d, panel + 4 * (d * PANEL + i), 4 * PANEL)


@njit(forceinline=True)
def product(x, y, dim):
    """Dot product of two widened rows."""
    sums = splat(np.float32(0.0))
    for i in range(0, dim, LANES):
        sums = fma(load(x + 4 * i), load(y + 4 * i), sums)
    return total(sums)


@njit
def score_few(queries, rows, lines, kind, count, dim, wide, scores):
    """The same scores for a few rows, by a product per row and key: transposing the keys would cost more."""
    wide_dim, stand = padded(dim, LANES), carray(words_at(lines), KEYS)
    for i in range(count):
        key = stand[i]
        if kind != F32 or dim != wide_dim:
            widen(key, kind, dim, wide, 1.0)
            key = wide
        for r in range(rows):
            carray(floats_at(scores), (rows, KEYS))[r, i] = product(queries + 4 * r * wide_dim, key, dim)


@njit
def score_block(queries, rows, dim, panels, count, scores):
    """scores (rows, KEYS) = queries (rows, wide_dim) · keys, for the first `count` keys in panels."""
    wide_dim = padded(dim, LANES)
    for first in range(0, count, PANEL):
        set_rows(
            VECTORS, rows, queries, 4 * wide_dim, panels + 4 * first * wide_dim, 4 * PANEL, scores + 4 * first,
            4 * KEYS, dim, 0,
        )  # fmt: skip


@njit
def hide(row, count, first, last):
    """Minus infinity in the columns of a row outside first ≤ column < last, up to `count` rounded up to LANES."""
    for i in range(0, count, LANES):
        store(row + 4 * i, only(load(row + 4 * i), first - i, last - i))


@njit(forceinline=True)
def peak_of(row, count):
    """The largest of a row of scores."""
    top = load(row)
    for i in range(LANES, count, LANES):
        top = larger(top, load(row + 4 * i))
    return highest(top)


@njit(forceinline=True)
def soften(row, count, peak):
    """2^(x - peak) in place over a row of scores; returns the sum."""
    offset, sums = splat(finite(peak)), splat(np.float32(0.0))
    for i in range(0, count, LANES):
        weights = exp2(load(row + 4 * i) - offset)
        store(row + 4 * i, weights)
        sums = sums + weights
    return total(sums)


@njit(forceinline=True)
def finite(peak):
    """The peak, or 0 where a row has seen nothing yet."""
    return peak if peak > -np.inf else np.float32(0.0)


@njit(forceinline=True)
def power(x):
    """2^x of one number."""
    return highest(exp2(splat(x)))


@njit
def pack_values(lines, kind, count, dim, panels):
    """Copy `count` values, whose addresses stand at `lines`, into panels (D/PANEL, KEYS, PANEL).

    In place, the rows of a panel may lie so that they share few lines of the first-level cache.
    """
    stand, size = carray(words_at(lines), KEYS), 4 if kind == F32 else 2
    for first in range(0, dim, PANEL):
        panel, here = panels + 4 * first * KEYS, min(PANEL, dim - first)
        for i in range(count):
            widen(stand[i] + size * first, kind, here, panel + 4 * i * PANEL, 1.0)


@njit
def add_values(scores, rows, values, values_row, panel, count, dim, out, factors):
    """out (rows, wide_dim) = diag(factors) · out + scores (rows, count) · values (count, dim).

    `values_row` and `panel` are the bytes from one value to the next, and from PANEL columns to the next PANEL.
    """
    wide_dim = padded(dim, LANES)
    for first in range(0, wide_dim, PANEL):
        vectors = min(VECTORS, (wide_dim - first) // LANES)
        add_rows(
            vectors, rows, scores, 4 * KEYS, values + first // PANEL * panel, values_row, out + 4 * first, 4 * wide_dim,
            count, factors,
        )  # fmt: skip


@kernel
def _attend(task, worker):
    (
        q, q_head, q_row, q_kind, k, k_head, k_row, k_kind, v, v_head, v_row, v_kind, chosen, seen, partial, stats,
        memory, size, heads, kv_heads, tokens, keys, dim, block, blocks, parts, span, scale,
    ) = unpack(task + 8, 28)  # fmt: skip
    group, wide_dim = heads // kv_heads, padded(dim, LANES)
    limits = carray(words_at(seen), (kv_heads, tokens, 2))
    summary = carray(floats_at(stats), (parts, heads, tokens, 2))
    most = block * group
    queries = memory + 4 * size * worker
    scores = queries + 4 * most * wide_dim
    out = scores + 4 * most * KEYS
    panels = out + 4 * most * wide_dim
    values = panels + 4 * KEYS * wide_dim
    wide = values + 4 * KEYS * padded(dim, PANEL)
    lines = wide + 4 * KEYS * wide_dim
    lines += -lines % 8
    state = lines + 8 * KEYS
    factors = carray(floats_at(state), most)
    peaks = carray(floats_at(state + 4 * most), most)
    sums = carray(floats_at(state + 8 * most), most)
    columns = carray(words_at(chosen or seen), (kv_heads, keys))
    while True:
        item = fetch_add(task, 1)
        if item >= kv_heads * blocks * parts:
            return
        part, kv, first_token = item % parts, item // parts % kv_heads, item // (parts * kv_heads) * block
        here = min(block, tokens - first_token)
        rows = here * group
        source = q + kv * group * q_head + first_token * q_row
        pack_queries(source, q_head, q_row, q_kind, group, here, dim, queries, real(scale))
        peaks[:] = -np.inf
        sums[:] = 0.0
        if v:
            carray(floats_at(out), rows * wide_dim)[:] = 0.0
        begin = max(part * span, limits[kv, first_token, 0] // KEYS * KEYS)
        end = min((part + 1) * span, limits[kv, first_token + here - 1, 1])
        for start in range(begin, end, KEYS):
            count = min(KEYS, end - start)
            stand = carray(words_at(lines), KEYS)
            for i in range(count):
                column = columns[kv, start + i] if chosen else start + i
                stand[i] = k + kv * k_head + column * k_row
            if rows <= FEW_ROWS:
                score_few(queries, rows, lines, k_kind, count, dim, wide, scores)
            else:
                pack_keys(lines, k_kind, count, dim, wide, panels)
                score_block(queries, rows, dim, panels, count, scores)
            last_token = first_token + here - 1
            if limits[kv, last_token, 0] > start or limits[kv, first_token, 1] < start + padded(count, LANES):
                for r in range(rows):  # some query does not see all of this block
                    token = first_token + r % here
                    low, high = limits[kv, token, 0] - start, min(limits[kv, token, 1] - start, count)
                    hide(scores + 4 * r * KEYS, count, low, high)
            for r in range(rows):  # all peaks before all powers: neither then waits for the other's last step
                peak = max(peaks[r], peak_of(scores + 4 * r * KEYS, count))
                factors[r] = power(peaks[r] - peak) if peaks[r] < peak else np.float32(1.0)
                peaks[r] = peak
            for r in range(rows):
                sums[r] = sums[r] * factors[r] + soften(scores + 4 * r * KEYS, count, peaks[r])
            if v:
                for i in range(count):
                    column = columns[kv, start + i] if chosen else start + i
                    stand[i] = v + kv * v_head + column * v_row
                at, row, panel = stand[0], v_row, 4 * PANEL
                if rows > FEW_ROWS or chosen or v_kind != F32 or dim != wide_dim:
                    pack_values(lines, v_kind, count, dim, values)
                    at, row, panel = values, 4 * PANEL, 4 * KEYS * PANEL
                add_values(scores, rows, at, row, panel, count, dim, out, state)
        for g in range(group):
            head = kv * group + g
            for t in range(here):
                r, token = g * here + t, first_token + t
                summary[part, head, token, 0] = peaks[r]
                summary[part, head, token, 1] = sums[r]
                if v:
                    target = partial + 4 * ((part * heads + head) * tokens + token) * dim
                    copy_row(out + 4 * r * wide_dim, target, dim)


@kernel
def _merge(task, worker):
    partial, stats, out, parts, rows, dim = unpack(task + 8, 6)
    ranges = carray(floats_at(partial), (parts, rows, dim))
    summary = carray(floats_at(stats), (parts, rows, 2))
    merged = carray(floats_at(out), (rows, dim))
    while True:
        first = fetch_add(task, 1) * 64
        if first >= rows:
            return
        for r in range(first, min(first + 64, rows)):
            peak = summary[0, r, 0]
            for p in range(1, parts):
                peak = max(peak, summary[p, r, 0])
            merged[r] = 0.0
            mass = np.float32(0.0)
            for p in range(parts):
                if summary[p, r, 1] != 0.0:
                    factor = power(summary[p, r, 0] - peak)
                    mass += summary[p, r, 1] * factor
                    for d in range(dim):
                        merged[r, d] += ranges[p, r, d] * factor
            if mass != 0.0:
                for d in range(dim):
                    merged[r, d] /= mass
