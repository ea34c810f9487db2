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
from accel.cpu.attention.reads import Read
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


class Laid:
    """One read, whose arguments fit."""

    def __init__(
        self,
        q: Any,
        k: Any,
        bounds: np.ndarray,
        scale: float | None,
        cap: float | None,
    ) -> None:
        (self.heads, self.tokens, self.dim), (self.kv, self.keys, _) = q.shape, k.shape
        self.group = self.heads // self.kv
        self.q, (self.k, self.columns) = readable(q), where_it_stands(k)
        self.scale = (1 / math.sqrt(self.dim) if scale is None else float(scale)) * LOG2E
        self.cap = float(cap or 0) * LOG2E
        self.bounds = bounds  # (KV or 1, T, 2)
        self.few = self.tokens * self.group <= FEW
        self.block = self.tokens if self.few else min(self.tokens, max(1, MOST_COLUMNS // self.group))  # tokens
        self.parts = 1  # ranges of keys

    @property
    def blocks(self) -> int:
        """Blocks of tokens."""
        return -(-self.tokens // max(self.block, 1))

    @property
    def items(self) -> int:
        """That the work is shared out to."""
        return self.kv * self.blocks * self.parts if self.dim else 0

    @property
    def span(self) -> int:
        """Keys per range."""
        return -(-self.keys // (self.parts * KEYS)) * KEYS

    def words(
        self, v: np.ndarray | None, out: np.ndarray | None, partial: np.ndarray | None, stats: np.ndarray
    ) -> Read:
        """The row of the table for values (KV, S, D), what is written to (T, H, D) and (P, H, T, D), and peaks and sums
        (P, H, T, 2)."""
        values, target = (0, 0, 0, 0), (0, 0, 0)
        if v is not None and out is not None:
            values, target = rows(v), (address(out), out.strides[1], out.strides[0])
        return Read(
            self.items, *rows(self.q), *rows(self.k), *values, 0 if self.columns is None else address(self.columns),
            address(self.bounds), self.bounds.strides[0] if len(self.bounds) > 1 else 0, *target,
            0 if partial is None else address(partial), address(stats), self.heads, self.kv, self.tokens, self.keys,
            self.dim, self.block, self.blocks, self.parts, self.span, int(np.float64(self.scale).view(np.int64)),
            int(np.float64(self.cap).view(np.int64)),
        )  # fmt: skip


def lay_out(
    reads: Sequence[tuple[Any, Any, Any, Any]], scale: float | None, window: int | None, cap: float | None
) -> list[Laid]:
    """All reads (q, k, q_positions, k_positions) of one call, their work shared out."""
    every = bounds_each([(asked, q.shape[1], held) for q, _, asked, held in reads], window)
    laid = [Laid(q, k, bounds, scale, cap) for (q, k, *_), bounds in zip(reads, every, strict=True)]
    for few in (False, True):
        some = [one for one in laid if one.few == few and one.items]
        keys = sum(one.items * one.keys for one in some)  # that all items read, before any are shared out
        for one in some:
            shortest = KEYS if few else SHORTEST * KEYS
            # Decoding is shared out as if alone: a sequence must get the same bits in any company.
            wanted = -(-ITEMS // one.items) if few or one.tokens == 1 else -(-one.keys * ITEMS // max(keys, 1))
            one.parts = max(1, min(wanted, one.keys // shortest))
        shares = -(-ITEMS // max(sum(one.items for one in some), 1))
        for one in some:
            if not few and shares > 1:
                one.block = min(one.block, -(-one.block // shares // TOKENS) * TOKENS)
    return laid


def where_it_stands(x: Any) -> tuple[np.ndarray, np.ndarray | None]:
    """The array to read from, and which of its columns (None: all)."""
    if isinstance(x, Chosen):
        return readable(x.held), np.ascontiguousarray(x.columns, np.int64)
    return readable(x), None
