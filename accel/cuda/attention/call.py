"""The attention call: which tier computes it, and which reads go together."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from accel.cuda.attention import by_row
from accel.cuda.attention.lines import in_lines, lined, on_tensor_cores
from accel.cuda.attention.merge import merge
from accel.cuda.attention.visible import own_ranges, what_is_seen
from accel.cuda.runtime.arrays import F32, Array, empty
from accel.cuda.runtime.device import machine
from accel.cuda.runtime.moves import cast, put, zeros
from accel.cuda.runtime.tiers import FORMS, tier
from accel.cuda.runtime.views import Columns, plain
from accel.shared.lazy import Chosen
from reference import contract


@dataclass(frozen=True)
class Read:
    """One call's arguments as the kernels take them: keys and values as they lie, the columns chosen of them, and where
    the queries stand: at columns `start`, start + 1, … of what is read, or each before the end of its range."""

    q: Array  # (H, T, D)
    k: Array  # (KV, S, D)
    v: Array
    columns: Columns | None
    start: int | None
    ranges: Array | None  # (KV, T, 2) int32, where there is no start
    size: int  # columns read


def attention(
    q: Any,
    k: Any,
    v: Any,
    q_positions: Any,
    k_positions: Any,
    *,
    scale: float | None = None,
    window: int | None = None,
    cap: float | None = None,
) -> Array:
    """Attention output: q (H, T, D), k and v (KV, S, D), q_positions (T,) or the first, k_positions (KV, S) ->
    (H, T, D), stored as the values are."""
    (rows,) = _attend([(q, k, v, q_positions, k_positions)], scale, window, cap)
    return rows.axes(1, 0, 2)


def attention_each(
    reads: Sequence[tuple[Any, Any, Any, Any, Any]],
    *,
    scale: float | None = None,
    window: int | None = None,
    cap: float | None = None,
) -> list[Array]:
    """Several calls of `attention`, with their own T and S -> (T, H·D) each, the heads of a token side by side."""
    return [rows.join(1) for rows in _attend(reads, scale, window, cap)]  # type: ignore[misc]


def _attend(
    reads: Sequence[tuple[Any, ...]], scale: float | None, window: int | None, cap: float | None
) -> list[Array]:
    """(T, H, D) for each read."""
    found, last = [], None
    for read in reads:
        q, k, v, q_positions, k_positions = read
        kind = (*[(x.shape, x.dtype) for x in (q, k, v, k_positions)], type(q_positions))
        if kind != last or kind[-1] is not int:  # chunks that share a pass are alike: one check serves them
            contract.attention(q, k, v, q_positions, k_positions, scale, window, cap)
        last = kind
        found.append(_read(q, k, v, q_positions, k_positions, window))
    outs: list[Array] = []
    for run in _runs(found):
        first = run[0]
        heads, tokens, dim = first.q.shape
        out = empty((len(run) * tokens, heads, dim), first.v.dtype, activation=True)
        rate = 1 / math.sqrt(dim) if scale is None else scale
        if out.size and first.size:
            if on_tensor_cores(first.k, rate) and first.v.dtype == first.k.dtype:
                _on_tensor_cores(run, rate, window, cap, out)
            else:
                _portable(run, rate, window, cap, out)
        elif out.size:
            put(zeros(out.shape, out.dtype), out)
        outs += out.split(0, len(run))
    return outs


def _read(q: Array, k: Any, v: Any, q_positions: Any, k_positions: Any, window: int | None) -> Read:
    tokens, size = q.shape[1], k.shape[1]
    columns = None
    if isinstance(k, Chosen) and isinstance(v, Chosen) and isinstance(k.columns, Columns) and k.columns is v.columns:
        columns, held, values = k.columns, plain(k.held), plain(v.held)
    else:
        held, values = plain(k), plain(v)
    return Read(q, held, values, columns, *what_is_seen(q_positions, k_positions, tokens, window), size)


def _runs(reads: list[Read]) -> list[list[Read]]:
    """Reads that one launch can serve: of one cache, alike but for their queries, columns and place."""
    runs: list[list[Read]] = []
    for read in reads:
        if runs and _alike(runs[-1], read):
            runs[-1].append(read)
        else:
            runs.append([read])
    return runs


def _alike(run: list[Read], read: Read) -> bool:
    first, last = run[0], run[-1]
    if read.start is None or read.columns is None or first.columns is None or last.columns is None:
        return False
    same = (
        read.q.shape == first.q.shape and read.q.strides == first.q.strides and read.q.memory is first.q.memory
        and read.k.address == first.k.address and read.v.address == first.v.address
        and read.start == first.start and read.size == first.size
        and read.columns.kept.memory is first.columns.kept.memory
        and read.q.dtype in (F32, read.k.dtype) and in_lines(read.q) and in_lines(first.q)
    )  # fmt: skip
    return same and (len(run) == 1 or _step(last, read) == _step(run[0], run[1]))


def _step(a: Read, b: Read) -> tuple[int, int, int]:
    """How far b's queries, columns and own columns lie from a's."""
    assert a.columns is not None
    assert b.columns is not None
    return (
        b.q.address - a.q.address,
        b.columns.kept.address - a.columns.kept.address,
        b.columns.start - a.columns.start,
    )


def _on_tensor_cores(run: list[Read], scale: float, window: int | None, cap: float | None, out: Array) -> None:
    from accel.cuda.attention import ampere, hopper
    from accel.cuda.attention.tiles import factors, inverse

    cores: Any = hopper if tier() == "wgmma" else ampere
    first = run[0]
    if first.q.dtype not in (F32, first.k.dtype):
        first = replace(first, q=cast(first.q, first.k.dtype))
    q, k, v = (lined(x) for x in (first.q, first.k, first.v))
    (heads, tokens, dim), kv_heads, chunks = q.shape, k.shape[0], len(run)
    group = heads // kv_heads
    q_step = columns_step = own_step = 0
    if chunks > 1:
        q_step, columns_step, own_step = _step(run[0], run[1])
    columns = (0, 0, 0, 0, 0)
    if first.columns is not None:
        kept = first.columns.kept
        columns = (kept.address, columns_step // 8, kept.strides[0] // 8, kept.shape[1], first.columns.start)
    row_tiles = -(-tokens * group // cores.tile_rows(dim))
    splits = _splits(row_tiles * kv_heads * chunks)
    part = empty((chunks, splits, kv_heads, tokens * group, dim), F32) if splits > 1 else out
    stats = empty((chunks, splits, kv_heads, tokens * group, 2), F32) if splits > 1 else out
    cores.attend(dim, FORMS[k.dtype], cap is not None).launch(
        (row_tiles, kv_heads, chunks * splits), cores.THREADS,
        (
            q.address, q_step, q.strides[0], q.strides[1], int(q.dtype == F32),
            k.address, k.strides[0], k.strides[1], v.address, v.strides[0], v.strides[1],
            *columns, own_step, 0 if first.ranges is None else first.ranges.address, first.start or 0,
            window or 0, first.size, tokens, group, inverse(group), *factors(scale, cap), splits, inverse(splits),
            out.address, int(out.dtype == F32), part.address, stats.address,
        ),
    )  # fmt: skip
    if splits > 1:
        merge(part, stats, out, math.log(2))


def _splits(blocks: int) -> int:
    """Blocks that share the keys of one tile of rows, so that about all multiprocessors have one. It is no matter of
    how many keys there are: a pass that is recorded serves every number, and must give the same bits."""
    return max(1, min(machine().processors // blocks, 64))


def _portable(run: list[Read], scale: float, window: int | None, cap: float | None, out: Array) -> None:
    tokens = run[0].q.shape[1]
    for n, read in enumerate(run):
        k, v = read.k, read.v
        if read.columns is not None:
            k, v = plain(Chosen(k, read.columns)), plain(Chosen(v, read.columns))
        ranges = read.ranges
        if ranges is None:
            ranges = own_ranges(read.start or 0, tokens, k.shape[0], window)
        by_row.attend(read.q, k, v, ranges, scale, cap, out[n * tokens : (n + 1) * tokens])
