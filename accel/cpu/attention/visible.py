"""What each query sees: positions ascend along T and S, so it is one contiguous range of keys."""

from __future__ import annotations

from functools import lru_cache

import numpy as np

from accel.cpu.runtime.arrays import address
from accel.cpu.runtime.calls import Call, at_once
from accel.cpu.runtime.kernels import kernel
from accel.cpu.simd import carray, njit, words_at
from accel.shared.lazy import Chosen, Consecutive, Lazy
from reference.attention import as_positions
from reference.checks import ascending


def bounds(
    q_positions: np.ndarray | int, tokens: int, k_positions: np.ndarray | Lazy, window: int | None
) -> np.ndarray:
    """First and one past the last key that each query sees, (KV, T, 2) int64, or (1, T, 2) where it is the same for
    all heads. ValueError for positions out of order."""
    kv_heads, keys = k_positions.shape
    if isinstance(q_positions, int) and isinstance(k_positions, Consecutive):
        return _of_consecutive(q_positions - k_positions.first, tokens, keys, window)
    wanted = as_positions(q_positions, tokens)
    asked = np.ascontiguousarray(wanted, np.int64)
    held = k_positions.held if isinstance(k_positions, Lazy) else k_positions
    listed = np.ascontiguousarray(k_positions.columns, np.int64) if isinstance(k_positions, Chosen) else None
    if held.dtype != np.int64 or held.strides[1] != 8:
        held = np.ascontiguousarray(held, np.int64)
    found, disorder = np.empty((kv_heads, tokens, 2), np.int64), np.zeros(1, np.int64)
    list_bounds(at_once, asked, held, listed, found, disorder, keys, window)
    if disorder[0]:
        ascending("q_positions", wanted)
        ascending("k_positions", np.asarray(k_positions))
    return found


def list_bounds(
    call: Call,
    asked: np.ndarray,
    held: np.ndarray,
    listed: np.ndarray | None,
    found: np.ndarray,
    disorder: np.ndarray,
    keys: int,
    window: int | None,
) -> None:
    """found (KV, T, 2) = the bounds of queries at `asked` (T,) to the first keys at `held` (KV, …), or to those at the
    columns `listed` (KV, S); disorder (1,) is set where positions do not rise. All int64."""
    call(
        _bounds, address(asked), address(held), held.strides[0], 0 if listed is None else address(listed),
        address(found), address(disorder), *found.shape[:2], keys, -1 if window is None else window, workers=1,
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
def _bounds(task, worker, asked, held, held_row, chosen, found, disorder, kv_heads, tokens, keys, window):
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
