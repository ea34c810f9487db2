"""The KV cache in buffers that grow by half and are compacted in place.

Appending writes only the new columns, and evicting moves only the columns that stay, so a layer with a budget settles
in one buffer of budget + chunk columns. `k` and `v` are views of the columns held, valid until the cache next changes;
`positions` of before an eviction stay as they were, since traces read them afterwards; a recorded token, which nobody
traces, moves them in place.

Beside every key stands the inverse of its length, and beside every head's keys the sum of their directions: cosines
then cost one pass over the keys (quoka.py, keydiff.py). Both are computed when a key is written; the sum is kept in
float64, so that a million additions and subtractions leave it where adding up afresh would.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

import reference
from accel.cpu.linear.columns import ascend, keep_columns, write_columns
from accel.cpu.linear.rows import padded
from accel.cpu.runtime.arrays import address, readable, rows
from accel.cpu.runtime.calls import Call, at_once
from accel.cpu.runtime.memory import scratch
from accel.cpu.runtime.team import THREADS
from accel.cpu.simd import HALF, LANES
from accel.shared.lazy import Chosen, Consecutive, Keys
from accel.shared.room import SPARE, Room
from reference import contract
from reference.config import ModelConfig

FEW = 8192  # numbers up to which one core writes a chunk by itself


@dataclass
class LayerCache(reference.LayerCache):
    """One layer's cache, with room: everything means what it means in `reference.LayerCache`."""

    def __post_init__(self) -> None:
        k, v, positions = self.k, self.v, np.ascontiguousarray(self.positions, np.int64)
        received, self.received = self.received, None
        self._room, self._rates = Room(0), np.empty((0, 0), np.float32)
        self._received: np.ndarray | None = None
        self._summed = True  # whether the sum of directions is that of all keys held
        self._sums = np.zeros((k.shape[0], k.shape[2]))  # (KV, D)
        self._allocate(k.shape[1])
        self._show()
        if k.shape[1]:
            first = int(positions[0, 0])
            self._write(k, v, positions, first)
            follow = (positions == np.arange(first, first + k.shape[1])).all()
            self._room.consecutive, self._room.newest = bool(follow), int(positions[:, -1].max())
            self.newest = self._room.newest
        if received is not None:
            self.receive(received, None)

    @property
    def capacity(self) -> int:
        """Columns that fit before the buffers must grow."""
        return self._room.capacity

    def keys(self, count: int | None = None) -> Keys:  # type: ignore[override]
        """The first `count` keys, or all, with what is known of them, for the functions that score keys."""
        room = self._room
        every = Keys(self.k, self._rates[:, room.start : room.end], self._sums if self._summed else None)
        return every if count is None else every.first(min(count, room.size))

    def reserve(self, tokens: int) -> None:
        """Make room for so many tokens per KV head, and for an answer."""
        if tokens > self.capacity:
            self._move(tokens + SPARE)

    def append(self, k: np.ndarray, v: np.ndarray, first: int) -> None:
        """Add tokens: k and v (KV, T, D), at positions first, first + 1, …, which follow everything held."""
        tokens = contract.append(k, v, first, self.newest)["T"]
        self.make_room(tokens)
        self._write(k, v, np.arange(first, first + tokens)[None], first)
        self.newest = self._room.newest

    def make_room(self, tokens: int) -> None:
        """Have buffers that so many more columns fit into."""
        wanted = self._room.wanted_for(tokens)
        if wanted > self.capacity or self._room.end + tokens > self.capacity:
            self._move(wanted)

    def gather(self, columns: np.ndarray | None) -> tuple[Any, Any, Any]:
        """Keys, values and positions of some columns per KV head, as attention takes them: columns (KV, R), or None
        for all -> (KV, R, D) twice and (KV, R).

        They are read where they are: they too are valid until the cache next changes.
        """
        if columns is None:
            consecutive, oldest = self._room.consecutive, self._room.oldest
            return self.k, self.v, Consecutive(self.positions, oldest) if consecutive else self.positions
        return self.gather_each([columns])[0]

    def gather_each(self, columns: Sequence[np.ndarray]) -> list[tuple[Any, Any, Any]]:
        """`gather` of several lists of columns, which are checked in one go."""
        held = self.k, self.v, self.positions
        return [tuple(Chosen(x, own) for x in held) for own in self._checked(columns)]  # type: ignore[misc]

    def keep(self, columns: np.ndarray) -> None:
        """Forget every column but these: columns (KV, B) ascending. Their room is used again."""
        (columns,) = self._checked([columns])
        positions: np.ndarray = np.empty((len(columns), self.capacity), np.int64)
        memory = scratch.take(THREADS * padded(self.k.shape[2], LANES))
        self.move_kept(at_once, columns, self.size, positions, memory)
        scratch.give(memory)
        self._positions = positions
        self._room.keep(columns.shape[1])
        self._show()

    def move_kept(self, call: Call, columns: np.ndarray, size: int, positions: np.ndarray, memory: np.ndarray) -> None:
        """Of `size` columns held move those that stay, (KV, B), to the front; their positions into `positions`, a
        buffer like that of this layer."""
        start, received = self._room.start, self._received
        call(
            keep_columns, *rows(self.k), *rows(self.v), address(self._rates) + 4 * start,
            address(self._positions) + 8 * start, address(positions) + 8 * start, self.capacity, address(self._sums),
            0 if received is None else address(received) + 8 * start, 0 if received is None else len(received),
            address(columns), address(memory), len(columns), size, columns.shape[1], self.k.shape[2],
        )  # fmt: skip

    def keep_newest(self, count: int) -> None:
        """Forget all but the newest `count` columns, without moving them."""
        if self.size > count:
            self._summed = False  # nothing asks for the sum of a layer with a window
            self._room.keep_newest(count)
            self._show()

    def take_back(self, count: int) -> None:
        """Forget the newest `count` columns, as if they had not been appended."""
        self.keep(np.broadcast_to(np.arange(self.size - count), (len(self.k), self.size - count)))
        self.newest -= count
        self._room.newest = self.newest

    def receive(self, mass: np.ndarray, columns: np.ndarray | None) -> None:
        """Add attention mass (H, R) to what the tokens at `columns` (KV, R), or all, have received."""
        if self._received is None:
            self._received = np.zeros((len(mass), self.capacity))
        held = slice(self._room.start, self._room.end)
        self._received[:, held] += self.spread(mass, columns)
        self._show()

    def copy(self) -> LayerCache:
        """An independent cache with the same content."""
        twin = copy.copy(self)
        for name in ("_k", "_v", "_positions", "_rates", "_sums", "_received", "queries", "neurons"):
            array = getattr(self, name)
            setattr(twin, name, None if array is None else array.copy())
        twin._room = replace(self._room)
        twin._show()
        return twin

    def _allocate(self, room: int) -> None:
        """Buffers of `room` columns, (KV, room, …) each."""
        kv_heads, _, dim = self.k.shape
        dtypes = (np.dtype(np.float32) if x.dtype == np.float64 else x.dtype for x in (self.k, self.v))
        self._k, self._v = (np.empty((kv_heads, room, dim), dtype) for dtype in dtypes)
        self._positions = np.empty((kv_heads, room), np.int64)
        self._rates = np.empty((kv_heads, room), np.float32)  # 1/‖k‖, or NaN: see linear/inverse_norms.py
        self._received = None if self._received is None else np.zeros((len(self._received), room))
        self._room.moved(room)

    def _show(self) -> None:
        """Let k, v, positions and received be the columns held."""
        held = slice(self._room.start, self._room.end)
        self.k, self.v, self.positions = self._k[:, held], self._v[:, held], self._positions[:, held]
        self.received = None if self._received is None else self._received[:, held]

    def _move(self, room: int) -> None:
        """What is held, moved to the front of buffers of `room` columns."""
        k, v, positions, rates, received, size = (
            self.k, self.v, self.positions, self.keys().rates, self.received, self.size,
        )  # fmt: skip
        self._allocate(room)
        self._k[:, :size], self._v[:, :size] = k, v
        self._positions[:, :size], self._rates[:, :size] = positions, rates
        if self._received is not None and received is not None:
            self._received[:, :size] = received
        self._show()

    def _write(self, k: np.ndarray, v: np.ndarray, positions: np.ndarray, first: int) -> None:
        """Write new columns after those held: k and v (KV, T, D), positions (KV or 1, T)."""
        (_, tokens, dim), end = k.shape, self._room.end
        if k.size:
            k, v = (_storable(x, buffer.dtype) for x, buffer in ((k, self._k), (v, self._v)))
            memory = scratch.take(THREADS * padded(dim, LANES))
            self.write_new(at_once, k, v, positions, memory)
            scratch.give(memory)
        if self._received is not None:
            self._received[:, end : end + tokens] = 0
        self._room.append(tokens, first)
        self._show()

    def write_new(self, call: Call, k: np.ndarray, v: np.ndarray, positions: np.ndarray, memory: np.ndarray) -> Any:
        """Write columns that kernels can store, and there is room for, after those held."""
        (kv_heads, tokens, dim), end = k.shape, self._room.end
        return call(
            write_columns, *rows(k), *rows(v), address(positions), positions.strides[0] if len(positions) > 1 else 0,
            *rows(self._k[:, end:]), *rows(self._v[:, end:]), address(self._positions) + 8 * end,
            address(self._rates) + 4 * end, self.capacity, address(self._sums), address(memory), kv_heads, tokens, dim,
            workers=1 if k.size <= FEW else THREADS,
        )  # fmt: skip

    def _checked(self, columns: Sequence[np.ndarray]) -> list[np.ndarray]:
        """Lists of columns, (KV, R) each, as kernels read them; ValueError where one is not there or they do not
        ascend: kernels would read memory that is not the cache's."""
        for own in columns:
            contract.columns(own, len(self.k))
        listed = [np.ascontiguousarray(own, np.int64) for own in columns]
        table = np.array([(address(own), own.shape[1]) for own in listed], np.int64)
        wrong = np.zeros(1, np.int64)
        workers = 1 if len(listed) == 1 else THREADS
        ascend(address(table), len(listed), len(self.k), self.size, address(wrong), workers=workers)
        if wrong[0]:
            for own in columns:
                self.check(own)
        return listed


@dataclass
class KVCache(reference.KVCache):
    """The caches of all layers, on this backend; `step` is how the next token is decoded (recorded/)."""

    step: Any = field(default=None, repr=False, compare=False)

    def copy(self) -> KVCache:
        """An independent cache with the same content."""
        return KVCache([layer.copy() for layer in self.layers])


def new_cache(config: ModelConfig, dtype: np.dtype) -> KVCache:
    """An empty cache whose keys and values are stored as `dtype`, float64 as float32."""
    layers = reference.new_cache(config, dtype).layers
    return KVCache([LayerCache(layer.k, layer.v, layer.positions) for layer in layers])


def restore_cache(layers: list[dict[str, np.ndarray]]) -> KVCache:
    """The cache whose layers' `arrays()` were these."""
    return KVCache([LayerCache(**arrays) for arrays in layers])


def _storable(x: np.ndarray, dtype: np.dtype) -> np.ndarray:
    """What the kernel can store as `dtype`: the numbers as they are, or float32, which it narrows where the processor
    does that too."""
    x = readable(x)
    as_it_is = x.dtype == dtype or (x.dtype == np.float32 and (HALF or dtype != np.float16))
    return x if as_it_is else readable(x.astype(dtype))
