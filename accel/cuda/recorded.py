"""Passes that are recorded once and then launched as a whole.

Decoding makes the same few hundred launches for every token, each from Python, which takes many times as long as the
device needs; and a prompt whose layers are all at the budget of an eviction makes the same thousands for every pass.
Few of their words change: the ids, the angles of their positions, the column and the position of the new keys, the
range of keys that a token sees. In a pass that is recorded these stand in device memory, one block that is written
before it is launched:

    the first time     the pass runs as ever, but takes its words from the block: all that must be loaded is loaded
    the second time    it is recorded, and launched; at once, if another sequence of this model ran such a pass before
    from then on       the block is written, the graph launched, and the caches note what the device did

That holds as long as the sequences, their buffers and their policies stay. In decoding a layer may be dense, or have a
window, or choose a fixed number of keys by QUOKA, or be at the budget of an eviction, where every token finds what the
one before it found. A layer on its way there is launched call by call, and so are FastForward's blocks and traces.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from accel.cuda.ptx.simulator import SIMULATED
from accel.cuda.runtime.arrays import ALIGNED, F32, I32, I64, Array, empty, write
from accel.cuda.runtime.device import here
from accel.cuda.runtime.graph import Graph
from accel.cuda.runtime.views import Places
from reference import H2O, Caote, KeyDiff, Model, Policy, SnapKV, Tova
from reference import layers as meaning
from reference.state import Chunk

EVICTORS = KeyDiff, H2O, Tova, SnapKV
TOGETHER = 16  # chunks of a prompt that share a pass: the host's part of a pass hardly grows with its tokens
Layers = Callable[[Model, Sequence[Chunk]], Any]
_loaded: dict[int, set[str]] = {}  # by model: the passes for which all is loaded that they need


def run_pass(layers: Layers, model: Model, chunks: Sequence[Chunk]) -> Any:
    """What `layers` returns, the hidden states (ΣT, E): by a graph, where such a pass was recorded or can be."""
    caches: list[Any] = [chunk.state.cache for chunk in chunks]
    if not _repeats(model, chunks):
        for cache in caches:
            cache.passed = None  # buffers may be about to move: the old ones must not be kept
        return layers(model, chunks)
    if caches[0].passed is None or not caches[0].passed.fits(model, chunks):
        caches[0].passed = None  # its memory goes before the next asks for some
        caches[0].passed = Recorded(model, chunks)
    return caches[0].passed.run(layers, model, chunks)


def _repeats(model: Model, chunks: Sequence[Chunk]) -> bool:
    """Whether the pass makes the launches that the next one like it will make too: a token of each of several
    sequences, or equal chunks of one, all of whose layers evict."""
    first, tokens = chunks[0], len(chunks[0].token_ids)
    if model.config.mixture is not None:
        return False  # what is launched depends on the experts chosen
    if not first.decoding:
        alike = all(chunk.state is first.state and len(chunk.token_ids) == tokens for chunk in chunks)
        parts = [first.state.policy.at(n) for n in range(model.config.layers)]
        evict = all(part.evict is not None and part.ffn is None for part in parts) and not any(model.config.windows)
        if not (alike and evict):
            return False
    for chunk in _sequences(chunks):
        if chunk.state.trace is not None:
            return False
        for n, layer in enumerate(chunk.state.cache.layers):
            if not _stays(layer, tokens, model.config.windows[n], chunk.state.policy.at(n)):
                return False
    return True


def _stays(layer: Any, tokens: int, window: int | None, part: Policy) -> bool:
    """Whether a layer will be as it is, or hold more columns and nothing else, before the next pass."""
    if not layer.has_room(tokens) or (part.ffn is not None and part.ffn.decode):
        return False
    if window is not None:
        return True
    select, evict = part.select, part.evict
    if select is not None and not (isinstance(select.budget, int) and select.standard and layer.size > select.budget):
        return False
    if evict is None:
        return layer.received is None
    base = evict.wrapped() if isinstance(evict, Caote) else evict
    if type(base) not in EVICTORS or layer.size != evict.budget or layer.place()[0] != 0:
        return False
    if isinstance(base, SnapKV):
        return layer.queries is not None and layer.queries.shape[1] == base.window
    return not isinstance(base, H2O) or layer.received is not None


class Recorded:
    """One pass over some sequences. It lives in a cache, and keeps neither that nor the model."""

    def __init__(self, model: Model, chunks: Sequence[Chunk]) -> None:
        config, sequences = model.config, _sequences(chunks)
        self._model = weakref.ref(model)
        self._caches = [weakref.ref(chunk.state.cache) for chunk in sequences]
        self._policies = [chunk.state.policy for chunk in sequences]
        self._sizes, self._tokens = _sizes(chunks), len(chunks[0].token_ids)
        self._buffers = _buffers(chunks)
        self._grow = [
            window is not None or policy.at(n).evict is None
            for policy in self._policies
            for n, window in enumerate(config.windows)
        ]
        self._graph: Graph | None = None
        self._hidden: Any = None
        if id(model) not in _loaded:
            weakref.finalize(model, _loaded.pop, id(model))
        self._loaded = _loaded.setdefault(id(model), set())

        self._ropes = [rope for rope in dict.fromkeys(config.ropes) if rope is not None]
        self._windows = np.array([window or 0 for window in config.windows] * len(sequences))
        rows, layers = sum(len(chunk.token_ids) for chunk in chunks), len(sequences) * config.layers
        parts = [np.zeros(rows, I64)]
        for rope in self._ropes:
            half = _table(model, rope, chunks)[0].shape[1]
            parts += [np.zeros((rows, half), F32), np.zeros((rows, half), F32)]
        parts += [np.zeros((layers, 2), I64), np.zeros((layers, config.kv_heads, 1, 2), I32)]
        starts = np.cumsum([0] + [-(-part.nbytes // ALIGNED) * ALIGNED for part in parts])
        self._host = np.zeros(starts[-1], np.uint8)
        self._block = empty(self._host.shape, self._host.dtype)
        self._on_host, self._there = [], []
        for part, start in zip(parts, starts, strict=False):
            own = self._host[start : start + part.nbytes]
            self._on_host.append(own.view(part.dtype).reshape(part.shape))
            there = self._block
            self._there.append(Array(there.memory, there.address + int(start), part.shape, part.strides, part.dtype))

    def fits(self, model: Model, chunks: Sequence[Chunk]) -> bool:
        """Whether this is the pass for these sequences as they are now."""
        if model is not self._model() or _sizes(chunks) != self._sizes:
            return False
        sequences = _sequences(chunks)
        if len(sequences) != len(self._caches):
            return False
        same = zip(sequences, self._caches, self._policies, strict=True)
        return all(c.state.cache is cache() and c.state.policy is policy for c, cache, policy in same) and all(
            now is then for now, then in zip(_buffers(chunks), self._buffers, strict=True)
        )

    def run(self, layers: Layers, model: Model, chunks: Sequence[Chunk]) -> Any:
        """The pass: hidden states (ΣT, E), which the next one overwrites."""
        self._write(model, chunks)
        if self._graph is not None:
            self._graph.launch()
            self._note(model, chunks)
            return self._hidden
        ids, *tables, places, ranges = self._there
        given: dict[Any, Any] = {"ids": ids}
        for n, rope in enumerate(self._ropes):
            given[rope] = tables[2 * n], tables[2 * n + 1]
        firsts = np.repeat([chunk.first for chunk in _sequences(chunks)], model.config.layers)
        try:
            here.given = given
            for n, layer in enumerate(_cached(chunks)):
                layer.find_in(Places(places[n], ranges[n], int(firsts[n]), self._grow[n]))
            kind = repr((self._sizes, self._policies))
            if SIMULATED or kind not in self._loaded:
                hidden = layers(model, chunks)
                self._loaded.add(kind)
                return hidden
            graph = Graph()
            with graph.recorded():
                self._hidden = layers(model, chunks)
        finally:
            here.given = {}
            for layer in _cached(chunks):
                layer.find_in(None)
        self._graph = graph
        graph.launch()
        return self._hidden

    def _write(self, model: Model, chunks: Sequence[Chunk]) -> None:
        """What changes from pass to pass, to the device."""
        ids, *tables, places, ranges = self._on_host
        ids[:] = np.concatenate([chunk.token_ids for chunk in chunks])
        for n, rope in enumerate(self._ropes):
            tables[2 * n][:], tables[2 * n + 1][:] = _table(model, rope, chunks)
        oldest, following = np.array([layer.place() for layer in _cached(chunks)]).T
        places[:, 0] = following
        places[:, 1] = np.repeat([chunk.first for chunk in _sequences(chunks)], model.config.layers)
        end = following + self._tokens
        from_window = np.where(self._windows > 0, end - self._windows, 0)
        ranges[..., 0] = np.maximum(oldest, from_window)[:, None, None]
        ranges[..., 1] = end[:, None, None]
        write(self._block, self._host)

    def _note(self, model: Model, chunks: Sequence[Chunk]) -> None:
        """On the host, what the pass has done to caches and counts."""
        config, tokens = model.config, self._tokens
        windows = self._windows[: config.layers]
        for chunk in chunks:
            state, counts = chunk.state, chunk.state.counts
            own: list[Any] = state.cache.layers
            sizes = np.array(state.cache.sizes)
            visible = tokens + np.where(windows > 0, np.minimum(sizes, windows), sizes)
            counts.keys_visible += visible
            counts.neurons_run += tokens * config.ffn_width
            counts.neurons_total += tokens * config.ffn_width
            for n, layer in enumerate(own):
                part = state.policy.at(n) if config.windows[n] is None else Policy()
                counts.keys_read[n] += part.select.budget_of(sizes[n]) + tokens if part.select else visible[n]
                layer.repeat(chunk.first, tokens, part.evict and part.evict.budget)
                if part.evict is not None:
                    counts.evicted(n, tokens)


def _sequences(chunks: Sequence[Chunk]) -> list[Chunk]:
    """The first chunk of every sequence."""
    return list({id(chunk.state): chunk for chunk in reversed(chunks)}.values())[::-1]


def _sizes(chunks: Sequence[Chunk]) -> list[tuple[int, bool]]:
    """What must be equal besides the sequences: the tokens of each chunk, and whether they are decoded."""
    return [(len(chunk.token_ids), chunk.decoding) for chunk in chunks]


def _cached(chunks: Sequence[Chunk]) -> list[Any]:
    """The layers of all caches, one sequence after the other."""
    return [layer for chunk in _sequences(chunks) for layer in chunk.state.cache.layers]


def _buffers(chunks: Sequence[Chunk]) -> list[Any]:
    """The memory that the layers' kernels are given."""
    return [buffer for layer in _cached(chunks) for buffer in layer.buffers]


def _table(model: Model, rope: Any, chunks: Sequence[Chunk]) -> tuple[np.ndarray, np.ndarray]:
    """Cosines and sines of the tokens' positions, (ΣT, R/2) each."""
    spans = [(chunk.first, len(chunk.token_ids), chunk.length) for chunk in chunks]
    return meaning.rotation_tables(rope, model.config.rotated_dim, spans, F32)
