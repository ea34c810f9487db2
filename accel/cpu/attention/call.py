"""Attention: its arguments checked and laid out, and the results of ranges of keys merged.

The work is attend.py's, by blocks, or for a few query columns attend_few.py's. Items are enough to keep all cores busy
to the end: long ranges of keys are shared out, which are merged by their peaks and sums, and else the tokens, for each
of whose blocks keys and values are packed anew.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numba import carray

from accel.cpu.attention.by_block import KEYS, NOTHING, attend, places
from accel.cpu.attention.by_key import FEW, attend_few, few_places
from accel.cpu.attention.visible import bounds
from accel.cpu.linear.rows import load_kind, power
from accel.cpu.runtime.arrays import address, readable, rows
from accel.cpu.runtime.kernels import kernel
from accel.cpu.runtime.memory import fresh, scratch
from accel.cpu.runtime.team import THREADS
from accel.cpu.simd import F32, LANES, LOG2E, fetch_add, floats_at, splat, store, store_some, with_rest
from accel.shared.lazy import Chosen
from reference import contract
from reference.attention import as_positions, merge_heads

MOST_COLUMNS = 512  # query columns per item
TOKENS = 32  # that items share a multiple of: whole blocks of columns, whatever the group


def attention(
    q: np.ndarray,
    k: np.ndarray,
    v: np.ndarray,
    q_positions: np.ndarray | int,
    k_positions: np.ndarray,
    *,
    scale: float | None = None,
    window: int | None = None,
) -> np.ndarray:
    """Attention output: q (H, T, D), k and v (KV, S, D), q_positions (T,), k_positions (KV, S) -> (H, T, D) float32.

    As `reference.attention`, computed in float32 from any stored dtype. In memory the heads of a token are neighbours.
    """
    contract.attention(q, k, v, q_positions, k_positions, scale, window)
    return Plan(q, k, q_positions, k_positions, scale, window).output(v)


def attention_each(
    reads: Sequence[tuple[Any, Any, Any, Any, Any]], *, scale: float | None = None, window: int | None = None
) -> list[np.ndarray]:
    """Several calls of `attention`: (q, k, v, q_positions, k_positions) each -> (T, H·D) each."""
    return [merge_heads(attention(*read, scale=scale, window=window)) for read in reads]


class Plan:
    """One call's arguments, checked and as kernels take them."""

    def __init__(
        self,
        q: np.ndarray,
        k: np.ndarray | Chosen,
        q_positions: np.ndarray | int,
        k_positions: np.ndarray,
        scale: float | None,
        window: int | None,
    ) -> None:
        sizes = contract.attention_mass(q, k, q_positions, k_positions, scale, window)
        scale = 1 / math.sqrt(sizes["D"]) if scale is None else scale
        self.heads, self.kv, self.tokens, self.keys = sizes["H"], sizes["KV"], sizes["T"], sizes["S"]
        self.dim, self.group = sizes["D"], sizes["H"] // sizes["KV"]
        self.q = readable(q)
        self.k, self.columns = where_it_stands(k)
        self.scale = float(scale) * LOG2E
        self.bounds = bounds(as_positions(q_positions, self.tokens), k_positions, window)  # (KV, T, 2)
        self.few = self.tokens * self.group <= FEW
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
        (attend_few if self.few else attend)(
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


@kernel
def _merge(task, worker, partial, stats, out, out_head, out_row, parts, heads, tokens, dim):
    summary = carray(floats_at(stats), (parts, heads * tokens, 2))
    while True:
        first = fetch_add(task, 1) * 64
        if first >= heads * tokens:
            return
        for r in range(first, min(first + 64, heads * tokens)):
            to = out + r // tokens * out_head + r % tokens * out_row
            peak, mass = np.float32(NOTHING), 0.0
            for p in range(parts):
                peak = max(peak, summary[p, r, 0])
            for p in range(parts):
                summary[p, r, 0] = power(summary[p, r, 0] - peak)
                mass += np.float64(summary[p, r, 1]) * np.float64(summary[p, r, 0])
            rate = splat(np.float32(1.0 / mass)) if mass != 0.0 else splat(np.float32(0.0))
            for d in range(0, dim, LANES):
                total, lost = splat(np.float32(0.0)), splat(np.float32(0.0))
                for p in range(parts):
                    source = partial + 4 * ((p * heads * tokens + r) * dim + d)
                    x = load_kind(source, F32, dim - d) * splat(summary[p, r, 0])
                    new = total + x
                    added = new - total
                    lost, total = lost + ((total - (new - added)) + (x - added)), new
                if dim - d >= LANES:
                    store(to + 4 * d, with_rest(total, lost) * rate)
                else:
                    store_some(to + 4 * d, dim - d, with_rest(total, lost) * rate)
