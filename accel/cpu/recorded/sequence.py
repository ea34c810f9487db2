"""One sequence of a step: what a token does in the sequence's own caches, layer by layer.

    before attention    write the token's key and value after those held; QUOKA scores the held, and lists the columns
                        that are read
    after it            an eviction scores the keys held, by the peaks and sums of this attention where it looks at
                        these, lists the columns that stay, and moves them to the front

A layer that evicts holds its budget before and after every token, so that none of its words change. In one that grows
the place of the new key does, and how many keys there are to read or to choose from.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np

from accel.cpu.attention.layout import ITEMS, Laid, lay_out
from accel.cpu.attention.reads import WORDS, Read
from accel.cpu.attention.received import add_mass, find_peaks, mass_floats
from accel.cpu.attention.visible import bounds_row, list_bounds
from accel.cpu.linear.rows import padded
from accel.cpu.methods import caote, keydiff, quoka, topk
from accel.cpu.methods.scores import average, pool, receive, shift
from accel.cpu.runtime.arrays import address, rows
from accel.cpu.runtime.calls import Calls
from accel.cpu.runtime.memory import fresh
from accel.cpu.runtime.team import THREADS
from accel.cpu.simd import LANES
from accel.shared.lazy import Chosen, Consecutive
from reference import H2O, Caote, Evictor, KeyDiff, ModelConfig, Quoka, SnapKV
from reference.state import Chunk

Memory = Callable[[str, int], np.ndarray]  # (name, numbers): float32 that all layers and sequences work in
_ALL = list(range(WORDS))
_OF_LENGTH = [n for n, name in enumerate(Read._fields) if name == "items" or n > Read._fields.index("chosen")]


class Methods(NamedTuple):
    """What is at work in a layer when a token is decoded; None for nothing."""

    select: Quoka | None
    evict: Evictor | None


class OneSequence:
    """The calls of a sequence's tokens, and what changes in them from token to token."""

    def __init__(
        self, calls: Calls, memory: Memory, config: ModelConfig, chunk: Chunk, methods: Sequence[Methods],
        table: np.ndarray, attended: np.ndarray, wrong: np.ndarray,
    ) -> None:  # fmt: skip
        """`table` (L, WORDS) is for what its layers read, `attended` (1, H, D) for what attention gives, and `wrong`
        (2,) counts heads whose scores are NaN, and those below zero where they must not be."""
        cache: Any = chunk.state.cache
        self._cache, self._methods = weakref.ref(cache), methods
        self._buffers = [weakref.ref(buffer) for buffer in _buffers(cache.layers)]
        self._calls, self._memory, self._config, hold = calls, memory, config, calls.hold
        self._table, self._attended, self._wrong = table, attended, wrong
        h, kv, d = config.heads, config.kv_heads, config.head_dim
        parts = -(-ITEMS // kv)  # at most
        self._partial, self._stats = hold(fresh(parts, h, 1, d)), hold(np.empty((parts, h, 1, 2), np.float32))
        self._line, self._position = memory("line", THREADS * padded(d, LANES)), hold(np.empty((1, 1), np.int64))
        self._scored = hold(np.zeros((config.layers, 4), np.int64))  # QUOKA's table, layer by layer
        self._columns: dict[tuple[str, int, int, bool], np.ndarray] = {}
        self._last: dict[int, tuple[int, np.ndarray]] = {}  # QUOKA's columns, and a layer whose newest is their last
        self.parts = np.ones(config.layers, np.int64)  # ranges of keys that each layer's read is shared out to
        self._bounds: dict[int, np.ndarray] = {}  # what each layer's queries see
        self._voters: dict[int, np.ndarray] = {}  # positions of SnapKV's queries, by their number
        self._writes: list[int] = []
        self._choices: list[tuple[int, int, int]] = []  # layers that grow, their QUOKA's scores and columns
        self._grows = np.array([own.evict is None for own in methods])
        self._budgets = np.array([own.select.budget if own.select else 0 for own in methods])

    def fits(self, chunk: Chunk, methods: Sequence[Methods]) -> bool:
        """Whether this is the sequence, with the same methods and buffers."""
        if self._cache() is not chunk.state.cache or methods != self._methods:
            return False
        buffers = _buffers(chunk.state.cache.layers)
        return all(then() is now for then, now in zip(self._buffers, buffers, strict=True))

    def before(self, n: int, layer: Any, q: np.ndarray, k: np.ndarray, v: np.ndarray) -> None:
        """Note what comes before a layer's attention, q (H, 1, D), k and v (KV, 1, D), and list what it reads."""
        self._writes.append(layer.write_new(self._calls.add, k, v, self._position, self._line))
        select, self._q = self._methods[n].select, q
        columns = None if select is None else self._select(n, layer, select)
        self._one = self._lay_out([n], layer, columns, _ALL)

    def after(self, n: int, layer: Any) -> None:
        """Note what brings a layer back to its budget. The ranges of its attention must not be merged yet, which spoils
        their peaks."""
        evict: Any = self._methods[n].evict
        if evict is None:
            return
        base, keys, add = without_caote(evict), layer.size + 1, self._calls.add
        h, kv, held = self._config.heads, self._config.kv_heads, layer._k[:, :keys]
        scores = self._memory("scores", kv * keys).reshape(kv, keys)
        if isinstance(base, KeyDiff):
            memory = self._memory("of keydiff", keydiff.floats_needed(held.shape[2]))
            keydiff.score_against(add, held, layer._rates[:, :keys], layer._sums, scores, memory)
        else:
            mass = self._mass(layer, base, keys)
            if isinstance(base, H2O):
                scores = self._memory("sums", 2 * kv * keys).view(np.float64).reshape(kv, keys)
                add(receive, address(mass), address(layer._received), layer.capacity, address(scores), h, kv, keys)
                mass = layer._received[:, :keys]
            if isinstance(evict, Caote):
                scores, v = self._memory("scores", kv * keys).reshape(kv, keys), layer._v[:, :keys]
                memory = self._memory("of caote", caote.floats_needed(h, *v.shape))
                caote.score(add, mass, v, scores, self._wrong[1:], memory, fast=evict.fast, group=evict.group)
            elif not isinstance(base, H2O):
                add(average, address(mass), address(scores), h, kv, keys)
        kept, recent = self._listed("kept", evict.budget, layer.size, False), evict.recent
        if isinstance(base, SnapKV):  # as `newest_kept` has it, of a window that is full
            recent = max(recent, min(base.window, evict.budget - evict.sinks))
        self._list_best(layer, evict, recent, scores, kept)
        layer.move_kept(add, kept, keys, layer._positions, self._line)

    def _mass(self, layer: Any, base: Any, keys: int) -> np.ndarray:
        """What the keys receive of the attention that a method looks at, (H, S), and the calls that compute it."""
        add, memory, one, stats = self._calls.add, self._memory, self._one, self._stats
        if isinstance(base, SnapKV):
            one = self._votes(layer, base.window, keys)
            stats = memory("stats", 2 * one.parts * one.heads * one.tokens)
        rates = memory("rates", 2 * one.heads * one.tokens).reshape(one.heads, one.tokens, 2)
        first, second = (self._calls.hold(np.empty((1, WORDS), np.int64)) for _ in range(2))
        mass, space = memory("mass", one.heads * keys).reshape(one.heads, keys), memory("of mass", mass_floats(one))
        if isinstance(base, SnapKV):
            find_peaks(add, one, stats, first, space)
        add_mass(add, one, stats, rates, second, mass, space)
        if not isinstance(base, SnapKV):
            return mass
        pooled = memory("pooled", mass.size).reshape(mass.shape)
        add(pool, address(mass), address(pooled), *mass.shape, base.kernel)
        return pooled

    def _votes(self, layer: Any, window: int, keys: int) -> Laid:
        """The read of SnapKV's queries, and the calls that remember the newest and find what each of them sees."""
        add, hold, k, at = self._calls.add, self._calls.hold, layer._k[:, :keys], layer._positions[:, :keys]
        add(shift, address(layer.queries), *rows(self._q)[:2], len(self._q), window, k.shape[2])
        read = layer.queries, k, keys - window, Consecutive(at, 0)
        one = lay_out([read], self._config.attention_scale, None, None)[0]
        one.bounds = hold(np.empty((len(k), window, 2), np.int64))
        asked = self._voters.setdefault(window, hold(np.empty(window, np.int64)))
        table = hold(np.array([bounds_row(asked, at, None, one.bounds, keys)]))
        list_bounds(add, table, hold(np.zeros(1, np.int64)), None)
        return one

    def finish(self, layers: Sequence[Any]) -> None:
        """All calls are listed: know where they point to, and keep nothing of the cache alive."""
        del self._one
        get = self._calls.get
        self._first_sizes = np.array([layer.size for layer in layers])
        k_row, v_row = layers[0]._k.strides[1], layers[0]._v.strides[1]
        steps = {"to_k": k_row, "to_v": v_row, "to_positions": 8, "to_rates": 4}
        self._places = {name: (get(self._writes, name), step) for name, step in steps.items()}

    def begin(self, chunk: Chunk) -> None:
        """Write what this token changes."""
        layers: list[Any] = chunk.state.cache.layers
        self._position[:], self._sizes = chunk.first, np.array([layer.size for layer in layers])
        for layer, grows in zip(layers, self._grows, strict=True):
            if not grows:  # now, so that who is interrupted in between does not go on from there
                layer.newest = layer._room.newest = chunk.first
                layer._room.consecutive = False
        for window, positions in self._voters.items():
            positions[:] = np.arange(chunk.first + 1 - window, chunk.first + 1)
        if not self._grows.any():
            return
        more = self._sizes - self._first_sizes
        self._calls.set(self._writes, **{name: at + more * step for name, (at, step) in self._places.items()})
        if self._choices:
            self._choose_among(self._sizes)
        whole = self._grows & (self._budgets == 0)
        for size in set(self._sizes[whole].tolist()):
            some = np.flatnonzero(whole & (self._sizes == size))
            self._lay_out(some, layers[some[0]], None, _OF_LENGTH)

    def end(self, chunk: Chunk) -> None:
        """Note what the token did to the caches, and count it."""
        layers: list[Any] = chunk.state.cache.layers
        for layer, grows in zip(layers, self._grows, strict=True):
            if grows:
                layer._room.append(1, chunk.first)
                layer._show()
                layer.newest = chunk.first
        counts, seen, width = chunk.state.counts, self._sizes + 1, self._config.ffn_width
        counts.keys_read += np.where(self._budgets > 0, self._budgets + 1, seen)
        counts.keys_visible += seen
        counts.keys_evicted += ~self._grows
        counts.neurons_run += width
        counts.neurons_total += width

    def _lay_out(self, some: Any, layer: Any, columns: np.ndarray | None, words: list[int]) -> Laid:
        """List that some layers read the `columns` of what they hold, or all; this layer is one of them. Only these
        words of the table: keys and queries of another stand elsewhere."""
        k, v, at, keys = layer._k, layer._v, layer._positions, layer.size + 1
        held = k[:, :keys] if columns is None else Chosen(k, columns)
        reach = held.shape[1] - 1, Consecutive(at[:, : held.shape[1]], 0)  # what is held was before: all is seen
        one = lay_out([(self._q, held, *reach)], self._config.attention_scale, None, None)[0]
        row = one.words(v, self._attended, self._partial if one.parts > 1 else None, self._stats)
        self._table[np.ix_(some, words)] = np.array(row)[words]
        self.parts[some] = one.parts
        self._bounds |= dict.fromkeys(some, one.bounds)
        return one

    def _select(self, n: int, layer: Any, select: Any) -> np.ndarray:
        """The columns that a layer reads, and the calls that list them."""
        add, memory, q, (h, _, d) = self._calls.add, self._memory, self._q, self._q.shape
        kv, past = len(layer._k), layer.size
        slots = memory("slots", kv * d * LANES).reshape(kv, d, LANES)
        chosen = memory("chosen", 2 * h).view(np.int64).reshape(h, 1)
        size = quoka.slot_floats(1, 1, d)
        table = self._calls.hold(np.array([quoka.slots_row(q, chosen, slots)]))
        quoka.choose_slots(add, table, slots, memory("of slots", size), size)
        scores = memory("choices", kv * layer.capacity)[: kv * past].reshape(kv, past)
        self._scored[n] = address(scores), past, 0, LANES
        space = memory("of choices", quoka.score_floats(d, LANES))
        held = layer._k[:, :past], layer._rates[:, :past]
        scored = quoka.score_slots(add, slots, *held, self._scored[n : n + 1], space, past)
        columns = self._listed("read", select.budget + 1, past, bool(self._grows[n]))
        columns[:, -1] = past
        self._last[id(columns)] = n, columns
        listed = self._list_best(layer, select, select.recent, scores, columns[:, :-1])
        if self._grows[n]:
            self._choices.append((n, scored, listed))
        return columns

    def _choose_among(self, sizes: np.ndarray) -> None:
        """How many keys QUOKA chooses among, where layers grow."""
        layers, scored, listed = np.array(self._choices).T
        pasts = sizes[layers]
        self._scored[layers, 1] = pasts
        spans = [quoka.keys_per_item(self._config.kv_heads, past) for past in pasts.tolist()]
        self._calls.set(scored, keys=pasts, span=spans)
        self._calls.set(listed, most=pasts)
        for n, columns in self._last.values():
            columns[:, -1] = sizes[n]

    def _listed(self, name: str, width: int, size: int, grows: bool) -> np.ndarray:
        """Columns (KV, width), which layers share that hold equally many, now and later. Where scores are NaN nothing
        is listed: what stands there must be columns at any time."""
        key = name, width, size, grows
        if key not in self._columns:
            self._columns[key] = self._calls.hold(np.tile(np.arange(width), (self._config.kv_heads, 1)))
        return self._columns[key]

    def _list_best(self, layer: Any, method: Any, recent: int, scores: np.ndarray, kept: np.ndarray) -> int:
        """The call that lists the columns which a method keeps."""
        first = topk.protected(layer.positions, method.sinks)
        memory = self._memory("of topk", topk.floats_needed(layer.capacity))
        return topk.list_best(self._calls.add, scores, self._calls.hold(first), recent, kept, self._wrong, memory)


@lru_cache(maxsize=64)  # every layer asks at every token
def without_caote(evict: Any) -> Any:
    """The evictor that CAOTE wraps, or itself."""
    return evict.wrapped() if isinstance(evict, Caote) else evict


def _buffers(layers: Sequence[Any]) -> list[np.ndarray]:
    """The memory that the calls were given."""
    each = [(x._k, x._v, x._positions, x._rates, x._sums, x._received, x.queries) for x in layers]
    return [buffer for own in each for buffer in own if buffer is not None]
