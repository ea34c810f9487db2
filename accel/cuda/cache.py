"""The KV cache on the device, in buffers that grow by half and are compacted where they are.

Sizes and places are whole numbers on the host (accel/shared/room.py), so that nothing waits to learn them. Appending
writes only the new columns and the inverse of each new key's length beside it; evicting moves what stays to the front,
in one launch. `k`, `v` and `received` are views of the columns held, valid until the cache next changes; `positions` of
before an eviction stay as they were, since traces read them afterwards.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass, field, fields, replace
from functools import cache
from typing import Any

import numpy as np
from numba import cuda

import reference
from accel.cuda.linear.inverse_norms import rate_of, write_rates
from accel.cuda.ptx.numbers import narrow, wide
from accel.cuda.ptx.simulator import SIMULATED
from accel.cuda.runtime.arrays import F32, F64, I64, Array, empty, in_words, stored, to_backend, write
from accel.cuda.runtime.errors import listed
from accel.cuda.runtime.kernels import blocks, device, kernel
from accel.cuda.runtime.moves import put, zeros
from accel.cuda.runtime.reduce import THREADS, block_sum
from accel.cuda.runtime.views import Growing, Places, Positions, plain, to_numpy
from accel.shared.lazy import Chosen, Keys
from accel.shared.room import SPARE, Room
from reference import contract
from reference.config import ModelConfig

MOVERS, LANES = (THREADS, 1) if SIMULATED else (512, 8)  # threads of a block that compacts; those that share a row
ROWS, AHEAD = MOVERS // LANES, 8  # rows that a block asks for at once, and how often before it writes the first


@dataclass
class LayerCache(reference.LayerCache):
    """One layer's cache, with room: everything means what it means in `reference.LayerCache`."""

    k: Any
    v: Any
    positions: Any
    received: Any = None
    queries: Any = None
    neurons: Any = None

    def __post_init__(self) -> None:
        positions = np.asarray(self.positions, np.int64)
        k, v, received, self.received = to_backend(self.k), to_backend(self.v), self.received, None
        self.queries, self.neurons = to_backend(self.queries), to_backend(self.neurons)
        self._k: Any = None
        self._v: Any = None
        self._positions: Any = None
        self._rates: Any = None
        self._received: Any = None
        self._room, self._run = Room(0), 0  # columns at the end that follow one another
        self._places: Places | None = None  # in a pass that is recorded
        self._make(k.shape[1], k, v)
        self._room.size = size = k.shape[1]
        self._show()
        if size:
            put(k, self.k)
            put(v, self.v)
            put(to_backend(positions), self.positions)
            write_rates(self.k, self.keys().rates)
            newest = positions[0, -1]
            follow = (positions == newest - np.arange(size)[::-1]).all(axis=0)[::-1]
            self._run = int(follow.argmin()) if not follow.all() else size
            self._room.consecutive, self._room.newest = self._run == size, int(positions[:, -1].max())
            self.newest = self._room.newest
        if received is not None:
            self._received = empty(np.shape(received), F64)
            write(self._received, np.ascontiguousarray(received, np.float64))
        self._show()

    @property
    def capacity(self) -> int:
        """Columns that fit before the buffers must grow."""
        return self._room.capacity

    @property
    def nbytes(self) -> int:
        """Bytes of all arrays that this layer holds."""
        return sum(array.nbytes for array in self._named().values())

    def arrays(self) -> dict[str, np.ndarray]:
        """The arrays held, by name, on the host; `restore_cache` takes them back."""
        return {name: to_numpy(array) for name, array in self._named().items()}

    def keys(self, count: int | None = None) -> Any:
        """The first `count` keys, or all, with their inverse lengths, for the functions that score keys."""
        room = self._room
        if self._places is not None and self._places.grows:
            return Growing(self._k, self._rates, new=self._places.new)
        every = Keys(self.k, self._rates.columns(room.start, room.end))
        return every if count is None else every.first(min(count, room.size))

    def reserve(self, tokens: int) -> None:
        """Make room for so many tokens per KV head, and for an answer."""
        if tokens > self.capacity:
            self._move(tokens + SPARE)

    def append(self, k: Any, v: Any, first: int) -> None:
        """Add tokens: k and v (KV, T, D), at positions first, first + 1, …, which follow everything held."""
        tokens = contract.append(k, v, first, self.newest)["T"]
        room = self._room
        if not self.has_room(tokens):
            self._move(room.wanted_for(tokens))
        if tokens:
            at = (_nowhere(), room.end, first)
            if self._places is not None:  # from the first token of the pass on
                at = (self._places.new, 0, first - self._places.first)
            _append[(tokens, len(k)), THREADS](k, v, *at, self._k, self._v, self._positions, self._rates)
            if self._received is not None:
                put(zeros((len(self._received), tokens), F64), self._received[:, room.end : room.end + tokens])
        self._appended(tokens, first)

    def has_room(self, tokens: int) -> bool:
        """Whether so many tokens can be appended where the buffers are."""
        return self._room.end + tokens <= self.capacity

    @property
    def buffers(self) -> tuple[Any, ...]:
        """What the kernels that appended and kept tokens here were given."""
        return self._k, self._positions, self._received, self.queries

    def place(self) -> tuple[int, int]:
        """The column of the oldest token held, and that of the next."""
        return self._room.start, self._room.end

    def find_in(self, places: Places | None) -> None:
        """From now on take from the device where a new token stands and what it sees. None ends it."""
        self._places = places

    def repeat(self, first: int, tokens: int, budget: int | None) -> None:
        """Note that the device has appended so many tokens, and kept `budget` of all, as it did before."""
        self._appended(tokens, first)
        if budget is not None and self.size > budget:
            self._kept(budget)

    def _appended(self, tokens: int, first: int) -> None:
        if tokens:
            self._run = (self._run if first == self.newest + 1 else 0) + tokens
        self._room.append(tokens, first)
        self._show()
        self.newest = self._room.newest

    def _kept(self, count: int) -> None:
        self._run = self._run if count == self._room.size else 0
        self._room.keep(count)
        self._show()

    def gather(self, columns: Any) -> tuple[Any, Any, Any]:
        """Keys, values and positions of some columns per KV head, as attention takes them: columns (KV, R), or None
        for all -> (KV, R, D) twice and (KV, R). They are read where they are, with what is known of their positions."""
        positions = Positions(self.positions, self.newest, min(self._run, self.size))
        positions = replace(positions, places=self._places)
        if columns is None and self._places is not None and self._places.grows:
            return self._k, self._v, replace(positions, held=self._positions)
        if columns is None:
            return self.k, self.v, positions
        columns = self.checked(columns)
        return Chosen(self.k, columns), Chosen(self.v, columns), Chosen(positions, columns)

    def checked(self, columns: Any) -> Any:
        """Columns (KV, R) of the device, or of the host, that ascend and are all there: ValueError, or noted."""
        contract.columns(columns, len(self.k))
        if isinstance(columns, np.ndarray):
            self.check(columns)
            return to_backend(columns)
        if columns.below is not None and columns.below <= self.size:
            return columns
        return listed("columns", plain(columns), self.size)

    def keep(self, columns: Any) -> None:
        """Forget every column but these: columns (KV, B) ascending. Their room is used again."""
        kept, room = plain(self.checked(columns)), self._room
        count = kept.shape[1]
        positions = empty(self._positions.shape, I64) if self._places is None else self._positions
        if kept.size:
            received = _none() if self.received is None else self.received
            k, v = in_words(self.k), in_words(self.v)
            grid = blocks(k.shape[2], LANES) + blocks(v.shape[2], LANES) + 1, len(kept)
            rates, to = self._rates.columns(room.start, room.end), positions.columns(room.start, room.end)
            _compact[grid, MOVERS](k, v, rates, self.positions, received, kept, to)
        self._positions = positions
        self._kept(count)

    def keep_newest(self, count: int) -> None:
        """Forget all but the newest `count` columns, without moving them."""
        if self.size > count:
            self._room.keep_newest(count)
            self._show()

    def take_back(self, count: int) -> None:
        """Forget the newest `count` columns, as if they had not been appended."""
        self._room.take_back(count)
        self._run = max(self._run - count, 0)
        self.newest = self._room.newest
        self._show()

    def receive(self, mass: Any, columns: Any) -> None:
        """Add attention mass (H, R) to what the tokens at `columns` (KV, R), or all, have received."""
        if self._received is None:
            self._received = zeros((len(mass), self.capacity), F64)
            self._show()
        spread = self.spread(mass, columns)
        if spread.size:
            _receive[(blocks(spread.shape[1], THREADS), len(mass)), THREADS](spread, self.received)

    def spread(self, scores: Any, columns: Any) -> Any:
        """Scores of the keys read as scores of all keys held: (H, R), columns (KV, R) -> (H, S), zero for a key not
        read. None for the columns means that all were read."""
        if columns is None:
            return scores
        out = zeros((len(scores), self.size), F32)
        if scores.size:
            _spread[(blocks(scores.shape[1], THREADS), len(scores)), THREADS](scores, plain(columns), out)
        return out

    def copy(self) -> LayerCache:
        """An independent cache with the same content."""
        twin = copy.copy(self)
        for name in ("_k", "_v", "_positions", "_rates", "_received", "queries", "neurons"):
            array = getattr(self, name)
            if array is not None:
                other = empty(array.shape, array.dtype)
                put(array, other)
                setattr(twin, name, other)
        twin._room = replace(self._room)
        twin._show()
        return twin

    def _named(self) -> dict[str, Array]:
        named = {f.name: getattr(self, f.name) for f in fields(self) if f.name != "newest"}
        return {name: array for name, array in named.items() if array is not None}

    def _make(self, room: int, k: Array, v: Array) -> None:
        """Buffers of `room` columns for keys and values like these, (KV, room, …) each."""
        kv_heads, _, dim = k.shape
        self._k, self._v = empty((kv_heads, room, dim), k.dtype), empty((kv_heads, room, dim), v.dtype)
        self._positions, self._rates = empty((kv_heads, room), I64), empty((kv_heads, room), F32)
        if self._received is not None:
            self._received = zeros((len(self._received), room), F64)
        self._room.moved(room)

    def _show(self) -> None:
        """Let k, v, positions and received be the columns held."""
        held = self._room.start, self._room.end
        self.k, self.v, self.positions = (x.columns(*held) for x in (self._k, self._v, self._positions))
        self.positions.below = self._room.newest + 1
        self.received = None if self._received is None else self._received.columns(*held)

    def _move(self, room: int) -> None:
        """What is held, moved to the front of buffers of `room` columns."""
        before = (self.k, self.v, self.positions, self.keys().rates, self.received)
        self._make(room, self.k, self.v)
        for held, buffer in zip(before, (self._k, self._v, self._positions, self._rates, self._received), strict=True):
            if held is not None and buffer is not None:
                put(held, buffer[:, : self.size])
        self._show()


@dataclass
class KVCache(reference.KVCache):
    """The caches of all layers, on this backend. `passed` is the pass that was recorded over them (recorded.py)."""

    passed: Any = field(default=None, compare=False, repr=False)

    def copy(self) -> KVCache:
        """An independent cache with the same content."""
        return KVCache([layer.copy() for layer in self.layers])


def new_cache(config: ModelConfig, dtype: np.dtype) -> KVCache:
    """An empty cache whose keys and values are stored as `dtype`, float64 as float32."""
    layers = reference.new_cache(config, stored(np.dtype(dtype))).layers
    return KVCache([LayerCache(layer.k, layer.v, layer.positions) for layer in layers])


def restore_cache(layers: list[dict[str, np.ndarray]]) -> KVCache:
    """The cache whose layers' `arrays()` were these."""
    return KVCache([LayerCache(**arrays) for arrays in layers])


@cache
def _nowhere() -> Array:
    return empty((0,), I64)


@cache
def _none() -> Array:
    return empty((0, 0), F64)


@kernel
def _append(k, v, place, at, first, to_k, to_v, positions, rates):
    memory = cuda.shared.array(THREADS, np.float64)
    t, head, thread = cuda.blockIdx.x, cuda.blockIdx.y, cuda.threadIdx.x
    column, position = at + t, first + t
    if place.shape[0] > 0:
        column, position = column + place[0], position + place[1]
    squares = 0.0
    d = thread
    while d < k.shape[2]:
        to_v[head, column, d] = narrow(to_v, wide(v[head, t, d]))
        to_k[head, column, d] = narrow(to_k, wide(k[head, t, d]))
        x = np.float64(wide(to_k[head, column, d]))  # of the key as it is stored
        squares += x * x
        d += THREADS
    squares = block_sum(squares, memory)
    if thread == 0:
        positions[head, column] = position
        rates[head, column] = rate_of(squares)


@device
def _move_rows(x, columns, d):
    """Word d of the rows of x (S, D) at `columns` (B,) to the first B. Columns ascend, so that a row is never written
    to before it was read: what is read later stands further back."""
    held = cuda.local.array(AHEAD, np.int64)
    own, last, first = cuda.threadIdx.x // LANES, columns.shape[0] - 1, 0
    word = min(d, x.shape[1] - 1)
    while first <= last:
        for u in range(AHEAD):
            held[u] = x[columns[min(first + u * ROWS + own, last)], word]
        cuda.syncthreads()
        for u in range(AHEAD):
            i = first + u * ROWS + own
            if i <= last and d == word:
                x[i, d] = held[u]
        first += AHEAD * ROWS


@device
def _move_numbers(x, columns, out):
    """The numbers of x (S,) at `columns` (B,) to the first B of out, which may be x."""
    first = 0
    while first < columns.shape[0]:
        i = first + cuda.threadIdx.x
        found = x[columns[min(i, columns.shape[0] - 1)]]
        cuda.syncthreads()
        if i < columns.shape[0]:
            out[i] = found
        first += MOVERS


@kernel(threads=MOVERS)
def _compact(k, v, rates, positions, received, columns, to_positions):
    """What stays of each KV head, to the front: a block for some words of every key or value, one for the rest."""
    block, head = cuda.blockIdx.x, cuda.blockIdx.y
    of_k, group = (k.shape[2] + LANES - 1) // LANES, received.shape[0] // k.shape[0]
    listed, lane = columns[head], cuda.threadIdx.x % LANES
    if block < of_k:
        _move_rows(k[head], listed, block * LANES + lane)
    elif block < cuda.gridDim.x - 1:
        _move_rows(v[head], listed, (block - of_k) * LANES + lane)
    else:
        _move_numbers(rates[head], listed, rates[head])
        _move_numbers(positions[head], listed, to_positions[head])
        for n in range(head * group, (head + 1) * group):
            _move_numbers(received[n], listed, received[n])


@kernel
def _receive(mass, received):
    j, head = cuda.blockIdx.x * cuda.blockDim.x + cuda.threadIdx.x, cuda.blockIdx.y
    if j < mass.shape[1]:
        received[head, j] += np.float64(mass[head, j])


@kernel
def _spread(scores, columns, out):
    i, head = cuda.blockIdx.x * cuda.blockDim.x + cuda.threadIdx.x, cuda.blockIdx.y
    if i < scores.shape[1]:
        out[head, columns[head // (scores.shape[0] // columns.shape[0]), i]] = scores[head, i]
