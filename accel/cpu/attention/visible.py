"""What each query sees: positions ascend along T and S, so it is one contiguous range of keys."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from itertools import chain
from typing import Any

import numpy as np

from accel.cpu.runtime.arrays import address
from accel.cpu.runtime.calls import Call, at_once
from accel.cpu.runtime.kernels import kernel
from accel.cpu.runtime.team import THREADS
from accel.cpu.simd import carray, fetch_add, njit, words_at
from accel.shared.lazy import Chosen, Consecutive, Lazy
from reference.attention import as_positions
from reference.checks import ascending

FEW = 4  # heads that one core looks at by itself


def bounds_each(runs: Sequence[Sequence[tuple[Any, ...]]], window: int | None) -> list[np.ndarray]:
    """First and one past the last key that each query sees, (N, KV, T, 2) int64, or (1, 1, T, 2) where it is the same
    for all heads, of runs of N reads (q, k, v, q_positions, k_positions). ValueError for positions out of order.

    Reads of a run are alike: as many queries each, whose first positions are given, and as many columns of the same
    positions.
    """
    every: list[np.ndarray] = []
    held: list[Any] = []  # until the kernel is done
    tables: list[np.ndarray] = []
    for run in runs:
        q, _, _, q_positions, k_positions = run[0]
        tokens = q.shape[1]
        if isinstance(q_positions, int) and isinstance(k_positions, Consecutive):
            every.append(_of_consecutive(q_positions - k_positions.first, tokens, k_positions.shape[1], window)[None])
            continue
        asked = np.ascontiguousarray(as_positions(q_positions, tokens), np.int64)[None]
        if len(run) > 1:
            asked = np.array([read[3] for read in run])[:, None] + np.arange(tokens)
        at = k_positions.held if isinstance(k_positions, Lazy) else k_positions
        if at.dtype != np.int64 or at.strides[1] != 8:
            at = np.ascontiguousarray(at, np.int64)
        listed = [np.ascontiguousarray(x.columns, np.int64) if isinstance(x, Chosen) else None for *_, x in run]
        found = np.empty((len(run), k_positions.shape[0], tokens, 2), np.int64)
        table = np.empty((len(run), 8), np.int64)
        table[:] = bounds_row(asked[0], at, listed[0], found[0], k_positions.shape[1])
        if len(run) > 1:
            number = np.arange(len(run))
            table[:, 0] += number * asked.strides[0]
            table[:, 3] = [address(columns) for columns in listed]  # type: ignore[arg-type]
            table[:, 4] += number * found.strides[0]
        every.append(found)
        held += [asked, at, listed]
        tables.append(table)
    if tables:
        disorder = np.zeros(1, np.int64)
        list_bounds(at_once, np.concatenate(tables), disorder, window)
        if disorder[0]:
            for q, _, _, q_positions, k_positions in chain.from_iterable(runs):
                ascending("q_positions", as_positions(q_positions, q.shape[1]))
                ascending("k_positions", np.asarray(k_positions))
    return every


def bounds_row(
    asked: np.ndarray, held: np.ndarray, listed: np.ndarray | None, found: np.ndarray, keys: int
) -> tuple[int, ...]:
    """A read as `list_bounds` knows it: queries at `asked` (T,), and where their bounds (KV, T, 2) go, to the first
    `keys` at `held` (KV, …), or to those at the columns `listed` (KV, S). All int64."""
    columns = 0 if listed is None else address(listed)
    return address(asked), address(held), held.strides[0], columns, address(found), *found.shape[:2], keys


def list_bounds(call: Call, table: np.ndarray, disorder: np.ndarray, window: int | None) -> None:
    """The bounds of some reads, a row of the table each; disorder (1,) is set where positions do not rise."""
    few = int(table[:, 5].sum()) <= FEW
    call(
        _bounds, address(table), len(table), address(disorder), -1 if window is None else window,
        workers=1 if few else THREADS,
    )  # fmt: skip


@lru_cache(maxsize=32)  # all layers of a pass ask the same
def _of_consecutive(first: int, tokens: int, keys: int, window: int | None) -> np.ndarray:
    """The bounds (1, T, 2) of queries first, first + 1, … to keys 0, 1, …; not to be written to."""
    reach = np.arange(first + 1, first + 1 + tokens)
    found = np.zeros((1, tokens, 2), np.int64)
    found[0, :, 1] = reach.clip(0, keys)
    if window is not None:
        found[0, :, 0] = (reach - window).clip(0, keys)
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
def _bounds(task, worker, table, reads, disorder, window):
    """An item is a KV head of a read."""
    described, wrong = carray(words_at(table), (reads, 8)), carray(words_at(disorder), 1)
    item, n, before = fetch_add(task, 1), 0, 0
    while True:
        while n < reads and item >= before + described[n, 5]:
            before += described[n, 5]
            n += 1
        if n == reads:
            return
        asked, held, held_row, chosen, found, kv_heads, tokens, keys = described[n]
        kv = item - before
        wanted, seen = carray(words_at(asked), tokens), carray(words_at(found), (kv_heads, tokens, 2))
        columns = carray(words_at(chosen or asked), (kv_heads, keys))[kv, : keys if chosen else 0]
        positions = carray(words_at(held + kv * held_row), keys)  # longer where columns are listed
        if not (_in_order(wanted, columns[:0], tokens) and _in_order(positions, columns, keys)):
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
        item = fetch_add(task, 1)
