"""The KV cache in buffers that grow by half and are compacted in place.

Appending writes only the new columns, and evicting moves only the columns that stay, so a layer with a budget settles
in one buffer of budget + chunk columns. `k` and `v` are views of the columns held, valid until the cache next changes;
`positions` of before an eviction stay as they were, since traces read them afterwards.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numba import carray, njit

import reference
from accel.cpu.compiled import THREADS, kernel
from accel.cpu.simd import LANES, bytes_at, fetch_add, load, store, unpack, words_at
from accel.cpu.views import Chosen, address
from reference.checks import require
from reference.config import ModelConfig

SPARE = 256  # columns that a buffer grows by at least: an answer


@dataclass
class LayerCache(reference.LayerCache):
    """One layer's cache, with room: everything means what it means in `reference.LayerCache`."""

    def __post_init__(self) -> None:
        self._buffers = [self.k, self.v, self.positions]  # (KV, room, …) each
        self._start = 0  # first column held

    @property
    def capacity(self) -> int:
        """Columns that fit before the buffers must grow."""
        return self._buffers[2].shape[1]

    def reserve(self, tokens: int) -> None:
        """Make room for so many tokens per KV head, and for an answer."""
        if tokens > self.capacity:
            self._move(tokens + SPARE)

    def append(self, k: np.ndarray, v: np.ndarray, positions: np.ndarray) -> None:
        """Add a chunk: k and v (KV, T, D), positions (T,) that follow everything held."""
        tokens, size = self.check(k, v, positions)["T"], self.size
        if self._start + size + tokens > self.capacity:
            self._move(
                max(self.capacity, size + tokens + max(size // 2, SPARE)) if size + tokens > self.capacity else 0
            )
        end = self._start + size
        for buffer, new in zip(self._buffers, (k, v, positions), strict=True):
            buffer[:, end : end + tokens] = new
        self._show(size + tokens)
        if self.received is not None:
            self.received = np.pad(self.received, ((0, 0), (0, tokens)))

    def gather(self, columns: np.ndarray) -> tuple[Chosen, Chosen, np.ndarray]:  # type: ignore[override]
        """Keys, values and positions of some columns per KV head: columns (KV, R) -> (KV, R, D) twice and (KV, R).

        Keys and values are read where they are: they too are valid until the cache next changes.
        """
        columns = self._checked(columns)
        positions = np.take_along_axis(self.positions, columns, axis=1)
        return Chosen(self.k, columns), Chosen(self.v, columns), positions

    def keep(self, columns: np.ndarray) -> None:
        """Forget every column but these: columns (KV, B) ascending. Their room is used again."""
        columns = self._checked(columns)
        _copy_columns(self.k, columns, self.k)
        _copy_columns(self.v, columns, self.v)
        positions = np.empty_like(self._buffers[2])
        end = self._start + columns.shape[1]
        positions[:, self._start : end] = np.take_along_axis(self.positions, columns, axis=1)
        self._buffers[2] = positions
        self._show(columns.shape[1])
        if self.received is not None:
            per_head = np.repeat(columns, len(self.received) // len(columns), axis=0)  # (H, B)
            self.received = np.take_along_axis(self.received, per_head, axis=1)

    def keep_newest(self, count: int) -> None:
        """Forget all but the newest `count` columns, without moving them."""
        forgotten = self.size - count
        if forgotten > 0:
            self._start += forgotten
            self._show(count)
            if self.received is not None:
                self.received = self.received[:, forgotten:]

    def _show(self, size: int) -> None:
        """Let k, v and positions be the `size` columns from the first one held."""
        self.k, self.v, self.positions = (buffer[:, self._start : self._start + size] for buffer in self._buffers)

    def _move(self, room: int) -> None:
        """What is held, moved to the front of buffers of `room` columns, or of these where that is 0."""
        held = self.k, self.v, self.positions
        room = room or self.capacity
        self._buffers = [np.empty((len(x), room, *x.shape[2:]), x.dtype) for x in held]
        self._start = 0
        for buffer, x in zip(self._buffers, held, strict=True):
            buffer[:, : x.shape[1]] = x
        self._show(held[2].shape[1])

    def _checked(self, columns: np.ndarray) -> np.ndarray:
        """The columns as kernels read them; ValueError where there is none of that number."""
        require(
            columns.ndim == 2 and len(columns) == len(self.k) and columns.dtype.kind in "iu",
            f"columns: got shape {columns.shape} of {columns.dtype}, wanted ({len(self.k)}, R) of an integer type",
        )
        low, high = int(columns.min(initial=0)), int(columns.max(initial=-1))
        require(low >= 0 and high < self.size, f"columns: got {low} to {high}, wanted 0 to {self.size - 1}")
        return np.ascontiguousarray(columns, np.int64)


@dataclass
class KVCache(reference.KVCache):
    """The caches of all layers, on this backend."""

    def copy(self) -> KVCache:
        """An independent cache with the same content."""
        return KVCache([layer.copy() for layer in self.layers])


def new_cache(config: ModelConfig, dtype: np.dtype) -> KVCache:
    """An empty cache whose keys and values are stored as `dtype`, float64 as float32."""
    dtype = np.dtype(np.float32) if dtype == np.float64 else dtype
    layers = reference.new_cache(config, dtype).layers
    return KVCache([LayerCache(layer.k, layer.v, layer.positions) for layer in layers])


def restore_cache(layers: list[dict[str, np.ndarray]]) -> KVCache:
    """The cache whose layers' `arrays()` were these."""
    return KVCache([LayerCache(**arrays) for arrays in layers])


def _copy_columns(source: np.ndarray, columns: np.ndarray, target: np.ndarray) -> None:
    """target (KV, R, D) = the columns (KV, R) of source (KV, S, D). The two may be one buffer if columns ascend."""
    kv_heads, count = columns.shape
    blocks = 1 if source is target else -(-4 * THREADS // kv_heads)
    _copy(
        address(source), *source.strides[:2], address(columns), address(target), *target.strides[:2], kv_heads, count,
        -(-count // blocks), blocks, source.shape[2] * source.itemsize,
    )  # fmt: skip


@njit
def copy_bytes(source, target, count):
    """A row of `count` bytes."""
    whole = count // (4 * LANES) * (4 * LANES)
    for i in range(0, whole, 4 * LANES):
        store(target + i, load(source + i))
    rest, out = carray(bytes_at(source), count), carray(bytes_at(target), count)
    for i in range(whole, count):
        out[i] = rest[i]


@kernel
def _copy(task, worker):
    (source, source_head, source_row, columns, target, target_head, target_row, kv_heads, count, span, blocks, size) = (
        unpack(task + 8, 12)
    )
    chosen = carray(words_at(columns), (kv_heads, count))
    while True:
        item = fetch_add(task, 1)
        if item >= kv_heads * blocks:
            return
        kv, first = item // blocks, item % blocks * span
        for i in range(first, min(first + span, count)):
            at, to = source + kv * source_head + chosen[kv, i] * source_row, target + kv * target_head + i * target_row
            if at != to:
                copy_bytes(at, to, size)
