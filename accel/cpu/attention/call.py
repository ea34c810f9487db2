"""Attention: its arguments checked, the kernels called, by blocks or for a few query columns key by key, and what
ranges of keys give merged."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from accel.cpu.attention.blocks import places
from accel.cpu.attention.by_block import attend
from accel.cpu.attention.by_key import attend_few, few_places
from accel.cpu.attention.layout import Laid, lay_out, where_it_stands
from accel.cpu.attention.reads import Read, read_at
from accel.cpu.attention.softmax import NOTHING
from accel.cpu.linear.rows import load_kind, power
from accel.cpu.runtime.arrays import address
from accel.cpu.runtime.kernels import kernel
from accel.cpu.runtime.memory import fresh, scratch
from accel.cpu.runtime.team import THREADS
from accel.cpu.simd import F32, LANES, carray, fetch_add, floats_at, njit, splat, store, store_some, with_rest
from reference import contract

ROWS_MERGED = 64  # per item


def attention(
    q: np.ndarray,
    k: np.ndarray,
    v: np.ndarray,
    q_positions: np.ndarray | int,
    k_positions: np.ndarray,
    *,
    scale: float | None = None,
    window: int | None = None,
    cap: float | None = None,
) -> np.ndarray:
    """Attention output: q (H, T, D), k and v (KV, S, D), q_positions (T,), k_positions (KV, S) -> (H, T, D) float32.

    As `reference.attention`, computed in float32 from any stored dtype. In memory the heads of a token are neighbours.
    """
    (out,) = merge(attend_to([(q, k, v, q_positions, k_positions)], scale, window, cap))
    return out.transpose(1, 0, 2)


def attention_each(
    reads: Sequence[tuple[Any, Any, Any, Any, Any]],
    *,
    scale: float | None = None,
    window: int | None = None,
    cap: float | None = None,
) -> list[np.ndarray]:
    """Several calls of `attention` in one: (q, k, v, q_positions, k_positions) each -> (T, H·D) each."""
    return [side_by_side(out) for out in merge(attend_to(reads, scale, window, cap))]


def side_by_side(out: np.ndarray) -> np.ndarray:
    """(T, H, D) -> (T, H·D)."""
    return out.reshape(len(out), out.shape[1] * out.shape[2])


class Attended(NamedTuple):
    """Reads that have been attended to, by ranges of keys that are still to be merged."""

    laid: list[Laid]
    outputs: list[np.ndarray]  # (T, H, D) each, of a read in several ranges once they are merged
    stats: list[np.ndarray]  # peaks and sums of each range, (P, H, T, 2) each, until then
    partial: list[np.ndarray | None]  # outputs of each range
    words: list[Read]


def attend_to(
    reads: Sequence[tuple[Any, Any, Any, Any, Any]], scale: float | None, window: int | None, cap: float | None
) -> Attended:
    """Attend to all reads (q, k, v, q_positions, k_positions), range by range."""
    for read in reads:
        contract.attention(*read, scale, window, cap)
    laid = lay_out([(q, k, asked, held) for q, k, _, asked, held in reads], scale, window, cap)
    values = [where_it_stands(read[2])[0] for read in reads]
    outputs = [fresh(one.tokens, one.heads, one.dim) for one in laid]
    stats = [np.empty((one.parts, one.heads, one.tokens, 2), np.float32) for one in laid]
    partial = [fresh(one.parts, one.heads, one.tokens, one.dim) if one.parts > 1 else None for one in laid]
    every = [one.words(values[n], outputs[n], partial[n], stats[n]) for n, one in enumerate(laid)]
    for few, attends in ((False, attend), (True, attend_few)):
        some = [(one, words) for one, words in zip(laid, every, strict=True) if one.few == few and one.items]
        if some:
            size = max(few_places(0, one.dim).end if few else block_size(one) for one, _ in some)
            table, memory = np.array([words for _, words in some], np.int64), scratch.take(size // 4 * THREADS)
            attends(address(table), len(some), address(memory), size)
            scratch.give(memory)
    return Attended(laid, outputs, stats, partial, every)


def merge(attended: Attended) -> list[np.ndarray]:
    """The outputs (T, H, D) of all reads. Their peaks are spoiled."""
    merged = [words for words in attended.words if words.partial and words.items]
    if merged:
        table = np.array(merged, np.int64)
        _merge(address(table), len(merged))
    return attended.outputs


def block_size(one: Laid) -> int:
    """Bytes that a worker needs for a read by blocks."""
    return places(0, one.block * one.group, one.dim).end


@kernel
def _merge(task, worker, table, reads):
    """The outputs of all reads whose keys were attended to by ranges."""
    while True:
        n, first = _rows_of(table, reads, fetch_add(task, 1))
        if n == reads:
            return
        one = read_at(table, n)
        for r in range(first, min(first + ROWS_MERGED, one.heads * one.tokens)):
            _merge_row(one, r)


@njit
def _rows_of(table, reads, item):
    """Which read an item belongs to, and the first of its rows."""
    for n in range(reads):
        one = read_at(table, n)
        items = (one.heads * one.tokens + ROWS_MERGED - 1) // ROWS_MERGED if one.partial else 0
        if item < items:
            return n, item * ROWS_MERGED
        item -= items
    return reads, 0


@njit
def _merge_row(one, r):
    """Row r, head by head, of what the ranges give: each relative to its own peak, added up without loss."""
    rows, dim = one.heads * one.tokens, one.dim
    summary = carray(floats_at(one.stats), (one.parts, rows, 2))
    to = one.out + r // one.tokens * one.out_head + r % one.tokens * one.out_row
    peak, mass = np.float32(NOTHING), 0.0
    for p in range(one.parts):
        peak = max(peak, summary[p, r, 0])
    for p in range(one.parts):
        summary[p, r, 0] = power(summary[p, r, 0] - peak)
        mass += np.float64(summary[p, r, 1]) * np.float64(summary[p, r, 0])
    rate = splat(np.float32(1.0 / mass)) if mass != 0.0 else splat(np.float32(0.0))
    for d in range(0, dim, LANES):
        total, lost = splat(np.float32(0.0)), splat(np.float32(0.0))
        for p in range(one.parts):
            x = load_kind(one.partial + 4 * ((p * rows + r) * dim + d), F32, dim - d) * splat(summary[p, r, 0])
            new = total + x
            added = new - total
            lost, total = lost + ((total - (new - added)) + (x - added)), new
        if dim - d >= LANES:
            store(to + 4 * d, with_rest(total, lost) * rate)
        else:
            store_some(to + 4 * d, dim - d, with_rest(total, lost) * rate)
