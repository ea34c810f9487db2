"""Attention: its arguments checked, the kernels called, by blocks or for a few query columns key by key, and what
ranges of keys give merged."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate
from math import prod
from typing import Any, NamedTuple

import numpy as np

from accel.cpu.attention.blocks import places
from accel.cpu.attention.by_block import attend
from accel.cpu.attention.by_key import attend_few, few_places
from accel.cpu.attention.layout import Asked, Laid, lay_out_runs, runs_of
from accel.cpu.attention.reads import read_at
from accel.cpu.attention.softmax import NOTHING
from accel.cpu.linear.rows import load_kind, power
from accel.cpu.runtime.arrays import address
from accel.cpu.runtime.kernels import kernel
from accel.cpu.runtime.memory import fresh, scratch
from accel.cpu.runtime.team import THREADS
from accel.cpu.simd import F32, LANES, carray, fetch_add, floats_at, njit, splat, store, store_some, with_rest
from reference import contract
from reference.checks import whole

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
    (out,) = merge(attend_to([[(q, k, v, q_positions, k_positions)]], scale, window, cap))
    return out.transpose(1, 0, 2)


def attention_each(
    reads: Sequence[tuple[Any, Any, Any, Any, Any]],
    *,
    scale: float | None = None,
    window: int | None = None,
    cap: float | None = None,
) -> list[np.ndarray]:
    """Several calls of `attention` in one: (q, k, v, q_positions, k_positions) each -> (T, H·D) each."""
    return [side_by_side(out) for out in merge(attend_to(runs_of(reads), scale, window, cap))]


def side_by_side(out: np.ndarray) -> np.ndarray:
    """(T, H, D) -> (T, H·D)."""
    return out.reshape(len(out), out.shape[1] * out.shape[2])


class Attended(NamedTuple):
    """Reads that have been attended to, by ranges of keys that are still to be merged. Those that are alike (N of them,
    as a rule one) stand together."""

    laid: list[Laid]
    outputs: list[np.ndarray]  # (N, T, H, D), of reads in several ranges once they are merged
    stats: list[np.ndarray]  # peaks and sums of each range, (N, P, H, T, 2), until then
    tables: list[np.ndarray]  # (N, WORDS)
    partial: list[np.ndarray]  # memory that the outputs of the ranges take until then


def attend_to(runs: Sequence[Sequence[Asked]], scale: float | None, window: int | None, cap: float | None) -> Attended:
    """Attend to all reads (q, k, v, q_positions, k_positions), range by range."""
    for first, *others in runs:
        contract.attention(*first, scale, window, cap)
        if others:  # of the same shapes and dtypes
            whole("q_positions", min(read[3] for read in others), least=0)
    laid = lay_out_runs(runs, scale, window, cap)
    sizes = [one.count * one.tokens * one.heads * one.dim for one in laid]
    every, ends = fresh(sum(sizes)), [*accumulate(sizes)]  # the outputs stand one after another
    outputs = [
        every[end - size : end].reshape(one.count, one.tokens, one.heads, one.dim)
        for one, size, end in zip(laid, sizes, ends, strict=True)
    ]
    attended = Attended(laid, outputs, [], [], [])
    for one, out in zip(laid, outputs, strict=True):
        attended.stats.append(np.empty((one.count, one.parts, one.heads, one.tokens, 2), np.float32))
        partial = None
        if one.parts > 1:
            shape = one.count, one.parts, one.heads, one.tokens, one.dim
            attended.partial.append(scratch.take(prod(shape)))
            partial = attended.partial[-1][: prod(shape)].reshape(shape)
        attended.tables.append(one.table(out, partial, attended.stats[-1]))
    for few, attends in ((False, attend), (True, attend_few)):
        some = [n for n, one in enumerate(laid) if one.few == few and one.items]
        if some:
            size = max(few_places(0, one.dim).end if few else block_size(one) for one in (laid[n] for n in some))
            table = np.concatenate([attended.tables[n] for n in some])
            memory = scratch.take(size // 4 * THREADS)
            attends(address(table), len(table), address(memory), size)
            scratch.give(memory)
    return attended


def merge(attended: Attended) -> list[np.ndarray]:
    """The outputs (T, H, D) of all reads. Their peaks are spoiled."""
    merged = [table for table, one in zip(attended.tables, attended.laid, strict=True) if one.parts > 1 and one.items]
    if merged:
        table = np.concatenate(merged)
        _merge(address(table), len(table))
    for memory in attended.partial:
        scratch.give(memory)
    return [out for own in attended.outputs for out in own]


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
