"""Reads as kernels take them: arrays laid out, and the work shared out between cores.

Items are enough to keep all cores busy to the end: long ranges of keys are shared out, which are merged by their peaks
and sums, and else the tokens, for each of whose blocks keys and values are packed anew.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from accel.cpu.attention.by_key import FEW
from accel.cpu.attention.reads import WORDS, Read
from accel.cpu.attention.visible import bounds_each
from accel.cpu.linear.unit import KEYS
from accel.cpu.runtime.arrays import address, readable, rows
from accel.cpu.runtime.team import THREADS
from accel.cpu.simd import LOG2E
from accel.shared.lazy import Chosen

MOST_COLUMNS = 512  # query columns per item
TOKENS = 32  # that items share a multiple of: whole blocks of columns, whatever the group
ITEMS = 3 * THREADS  # at least, where there is work enough
SHORTEST = 16  # blocks of keys in a range: each range has sums of its own, which are merged

Asked = tuple[Any, Any, Any, Any, Any]  # a read as attention takes it: (q, k, v, q_positions, k_positions)
_PLACES = ("q", "chosen", "seen", "out", "partial", "stats")  # what differs between reads that are alike
_Q, _CHOSEN, _SEEN, _OUT, _PARTIAL, _STATS = (Read._fields.index(name) for name in _PLACES)


def runs_of(reads: Sequence[Asked]) -> list[list[Asked]]:
    """Neighbouring reads that are alike: chunks of as many queries, which chose as many columns of one cache."""
    runs: list[list[Asked]] = []
    for read in reads:
        if runs and _alike(runs[-1][0], read):
            runs[-1].append(read)
        else:
            runs.append([read])
    return runs


def _alike(one: Asked, other: Asked) -> bool:
    """Whether two reads differ in no more than which queries they are, and which columns they read."""
    (q, k, v, first, at), (its_q, its_k, its_v, its_first, its_at) = one, other
    return (
        type(its_k) is type(its_v) is type(its_at) is type(k) is type(v) is type(at) is Chosen
        and k.held is its_k.held and v.held is its_v.held and at.held is its_at.held
        and its_v.columns is its_at.columns is its_k.columns and its_k.columns.shape == k.columns.shape
        and q.shape == its_q.shape and q.strides == its_q.strides and q.dtype == its_q.dtype
        and type(first) is type(its_first) is int and q.flags.aligned == its_q.flags.aligned
    )  # fmt: skip


class Laid:
    """Reads that are alike, as a rule one, whose arguments fit."""

    def __init__(self, run: Sequence[Asked], bounds: np.ndarray, scale: float | None, cap: float | None) -> None:
        q, k, v, *_ = run[0]
        (self.heads, self.tokens, self.dim), (self.kv, self.keys, _) = q.shape, k.shape
        self.count, self.group = len(run), self.heads // self.kv
        self.q, self.k, self.v = [readable(read[0]) for read in run], _where_it_stands(k), _where_it_stands(v)
        self.columns: list[np.ndarray] = []  # none where all are read
        if isinstance(k, Chosen):
            self.columns = [np.ascontiguousarray(read[1].columns, np.int64) for read in run]
        self.scale = (1 / math.sqrt(self.dim) if scale is None else float(scale)) * LOG2E
        self.cap = float(cap or 0) * LOG2E
        self.bounds = bounds[0]  # (KV or 1, T, 2), those of the next read right after it
        self.few = self.tokens * self.group <= FEW
        self.block = self.tokens if self.few else min(self.tokens, max(1, MOST_COLUMNS // self.group))  # tokens
        self.parts = 1  # ranges of keys

    @property
    def blocks(self) -> int:
        """Blocks of tokens."""
        return -(-self.tokens // max(self.block, 1))

    @property
    def items(self) -> int:
        """That the work of each read is shared out to."""
        return self.kv * self.blocks * self.parts if self.dim else 0

    @property
    def span(self) -> int:
        """Keys per range."""
        return -(-self.keys // (self.parts * KEYS)) * KEYS

    def words(
        self, v: np.ndarray | None, out: np.ndarray | None, partial: np.ndarray | None, stats: np.ndarray
    ) -> Read:
        """The first read's row of the table for values (KV, S, D), what is written to (T, H, D) and (P, H, T, D), and
        peaks and sums (P, H, T, 2)."""
        values, target = (0, 0, 0, 0), (0, 0, 0)
        if v is not None and out is not None:
            values, target = rows(v), (address(out), out.strides[1], out.strides[0])
        return Read(
            self.items, *rows(self.q[0]), *rows(self.k), *values, address(self.columns[0]) if self.columns else 0,
            address(self.bounds), self.bounds.strides[0] if len(self.bounds) > 1 else 0, *target,
            0 if partial is None else address(partial), address(stats), self.heads, self.kv, self.tokens, self.keys,
            self.dim, self.block, self.blocks, self.parts, self.span, int(np.float64(self.scale).view(np.int64)),
            int(np.float64(self.cap).view(np.int64)),
        )  # fmt: skip

    def table(self, out: np.ndarray, partial: np.ndarray | None, stats: np.ndarray) -> np.ndarray:
        """The rows of the table for all reads (N, WORDS): as `words`, of arrays that have an axis N more."""
        table = np.empty((self.count, WORDS), np.int64)
        table[:] = self.words(self.v, out[0], None if partial is None else partial[0], stats[0])
        if self.count > 1:
            number = np.arange(self.count)
            table[:, _Q] = [address(q) for q in self.q]
            table[:, _CHOSEN] = [address(columns) for columns in self.columns]
            table[:, _SEEN] += number * self.bounds.nbytes
            table[:, _OUT] += number * out.strides[0]
            table[:, _PARTIAL] += number * (0 if partial is None else partial.strides[0])
            table[:, _STATS] += number * stats.strides[0]
        return table


def lay_out(
    reads: Sequence[tuple[Any, Any, Any, Any]], scale: float | None, window: int | None, cap: float | None
) -> list[Laid]:
    """All reads (q, k, q_positions, k_positions) of one call, whose values are of no interest here, their work shared
    out."""
    return lay_out_runs([[(q, k, None, asked, held)] for q, k, asked, held in reads], scale, window, cap)


def lay_out_runs(
    runs: Sequence[Sequence[Asked]], scale: float | None, window: int | None, cap: float | None
) -> list[Laid]:
    """The same of whole reads, of which those that are alike stand together."""
    every = bounds_each(runs, window)
    laid = [Laid(run, bounds, scale, cap) for run, bounds in zip(runs, every, strict=True)]
    for few in (False, True):
        some = [one for one in laid if one.few == few and one.items]
        keys = sum(one.count * one.items * one.keys for one in some)  # that all items read, before any are shared out
        for one in some:
            shortest = KEYS if few else SHORTEST * KEYS
            # Decoding is shared out as if alone: a sequence must get the same bits in any company.
            wanted = -(-ITEMS // one.items) if few or one.tokens == 1 else -(-one.keys * ITEMS // max(keys, 1))
            one.parts = max(1, min(wanted, one.keys // shortest))
        shares = -(-ITEMS // max(sum(one.count * one.items for one in some), 1))
        for one in some:
            if not few and shares > 1:
                one.block = min(one.block, -(-one.block // shares // TOKENS) * TOKENS)
    return laid


def _where_it_stands(x: Any) -> Any:
    """The array to read from, or None where there is none."""
    return readable(x.held if isinstance(x, Chosen) else x) if x is not None else None
