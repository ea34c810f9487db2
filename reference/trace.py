"""What a run did: counts that are always kept, and a trace of every choice where one is asked for.

A trace holds positions, not columns, so that it can be read without the cache that it came from, and only what cannot
be inferred: nothing for a chunk that read all that was cached or a block that ran all neurons but the fact itself.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any, NamedTuple, Self

import numpy as np

from reference.checks import require


@dataclass
class Counts:
    """Work done so far, (L,) int64 each; keys are counted per KV head, since all heads of a layer hold equally many."""

    keys_read: np.ndarray  # (chunk, key) pairs that attention read
    keys_visible: np.ndarray  # the same pairs had every cached key been read
    keys_evicted: np.ndarray
    neurons_run: np.ndarray  # (token, neuron) pairs
    neurons_total: np.ndarray  # the same pairs had every FFN been dense

    @classmethod
    def zeros(cls, layers: int) -> Self:
        """Nothing done yet."""
        return cls(*(np.zeros(layers, np.int64) for _ in range(5)))

    def copy(self) -> Self:
        """The same counts, which go on by themselves."""
        return type(self)(*(getattr(self, f.name).copy() for f in fields(self)))

    def read(self, layer: int, keys: int, of: int) -> None:
        """Chunks read `keys` of the `of` keys that they could have, added up."""
        self.keys_read[layer] += keys
        self.keys_visible[layer] += of

    def evicted(self, layer: int, keys: int) -> None:
        """A layer forgot `keys` per KV head."""
        self.keys_evicted[layer] += keys

    def ran(self, layer: int, neurons: int, of: int) -> None:
        """Blocks ran `neurons` (token, neuron) pairs of `of`, added up."""
        self.neurons_run[layer] += neurons
        self.neurons_total[layer] += of


class Read(NamedTuple):
    """A chunk's choice of past keys in one layer; its own keys are read besides."""

    layer: int
    at: int  # position of the chunk's first token
    positions: np.ndarray | None  # (KV, B) int32, ascending; None: all that was cached


class Eviction(NamedTuple):
    """What one layer forgot after one chunk."""

    layer: int
    at: int  # position of the chunk's first token
    positions: np.ndarray  # (KV, X) int32, ascending
    scores: np.ndarray  # (KV, X), those that they were forgotten for


class Ran(NamedTuple):
    """Which neurons one layer's FFN ran for one block."""

    layer: int
    at: int  # position of the block's first token
    neurons: np.ndarray | None  # (K,) int32, ascending; None: all


@dataclass
class Trace:
    """Every choice of a run, in order: one Read per layer and chunk, one Eviction whenever a layer forgot, one Ran per
    layer and FFN block."""

    reads: list[Read] = field(default_factory=list)
    evictions: list[Eviction] = field(default_factory=list)
    neurons: list[Ran] = field(default_factory=list)

    def read(self, layer: int, at: int, positions: np.ndarray | None) -> None:
        """The chunk at `at` chose these past positions (KV, B), or read all."""
        self.reads.append(Read(layer, at, None if positions is None else positions.astype(np.int32)))

    def evicted(self, layer: int, at: int, positions: np.ndarray, scores: np.ndarray, kept: np.ndarray) -> None:
        """A layer scored `positions` with `scores` (KV, S each) and kept the columns `kept` (KV, B)."""
        gone = np.ones(positions.shape, bool)
        np.put_along_axis(gone, kept, False, axis=1)
        shape = (len(positions), -1)  # every head forgets equally many
        forgotten = positions[gone].reshape(shape).astype(np.int32)
        self.evictions.append(Eviction(layer, at, forgotten, scores[gone].reshape(shape)))

    def ran(self, layer: int, at: int, neurons: np.ndarray | None) -> None:
        """The block at `at` ran these neurons (K,), or all."""
        self.neurons.append(Ran(layer, at, None if neurons is None else neurons.astype(np.int32)))

    def sizes(self) -> tuple[int, ...]:
        """How many entries there are of each kind, for `cut`."""
        return len(self.reads), len(self.evictions), len(self.neurons)

    def cut(self, sizes: tuple[int, ...]) -> None:
        """Forget all entries after the first so many of each kind."""
        reads, evictions, neurons = sizes
        del self.reads[reads:], self.evictions[evictions:], self.neurons[neurons:]

    def to_arrays(self) -> dict[str, np.ndarray]:
        """The whole trace as a few flat arrays, for a file: `from_arrays` takes them back."""
        rows = [None if ran.neurons is None else ran.neurons[None] for ran in self.neurons]  # (1, K)
        return {
            **_pack("reads", [(r.layer, r.at) for r in self.reads], [r.positions for r in self.reads], np.int32),
            **_pack(
                "evictions", [(e.layer, e.at) for e in self.evictions], [e.positions for e in self.evictions], np.int32
            ),
            **_pack(
                "scores", [(e.layer, e.at) for e in self.evictions], [e.scores for e in self.evictions], np.float32
            ),
            **_pack("neurons", [(r.layer, r.at) for r in self.neurons], rows, np.int32),
        }

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, np.ndarray]) -> Self:
        """The trace whose `to_arrays()` were these. ValueError for an array that is missing or ends too early."""
        scores = [part for _, _, part in _unpack(arrays, "scores")]
        forgotten = _unpack(arrays, "evictions")
        require(len(scores) == len(forgotten), f"scores: got {len(scores)} entries, wanted {len(forgotten)}")
        return cls(
            [Read(*entry) for entry in _unpack(arrays, "reads")],
            [Eviction(*entry, part) for entry, part in zip(forgotten, scores, strict=True)],
            [Ran(n, at, None if row is None else row[0]) for n, at, row in _unpack(arrays, "neurons")],
        )


def _pack(name: str, where: list[tuple[int, int]], parts: list[Any], empty: type) -> dict[str, np.ndarray]:
    """Entries as two arrays: one line of layer, at and shape for each, and all their values in a row.

    None, for all, has the shape (-1, -1).
    """
    shapes = [(-1, -1) if part is None else part.shape for part in parts]
    table = [(*place, *shape) for place, shape in zip(where, shapes, strict=True)]
    values = [part.ravel() for part in parts if part is not None]
    return {
        f"{name}.table": np.array(table, np.int32).reshape(-1, 4),
        f"{name}.values": np.concatenate(values) if values else np.zeros(0, empty),
    }


def _unpack(arrays: Mapping[str, np.ndarray], name: str) -> list[tuple[int, int, Any]]:
    """Layer, at and part of each entry that `_pack` wrote under `name`."""
    for key in (f"{name}.table", f"{name}.values"):
        require(key in arrays, f"trace: got no array {key}, wanted one")
    table, values = arrays[f"{name}.table"], arrays[f"{name}.values"]
    require(table.ndim == 2 and table.shape[1] == 4, f"{name}.table: got shape {table.shape}, wanted (n, 4)")
    entries: list[tuple[int, int, Any]] = []
    start = 0
    for layer, at, rows, width in table.tolist():
        end = start + max(rows, 0) * max(width, 0)
        require(end <= len(values), f"{name}.values: got {len(values)} values, wanted at least {end}")
        entries.append((layer, at, None if rows < 0 else values[start:end].reshape(rows, width)))
        start = end
    return entries
