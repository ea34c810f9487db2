"""What a run did: counts that are always kept, and a trace of every choice where one is asked for.

A trace holds positions, not columns, so that it can be read without the cache that it came from.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Self

import numpy as np


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

    def read(self, layer: int, keys: int, of: int) -> None:
        """One chunk read `keys` of the `of` keys in the cache."""
        self.keys_read[layer] += keys
        self.keys_visible[layer] += of

    def evicted(self, layer: int, keys: int) -> None:
        """A layer forgot `keys` per KV head."""
        self.keys_evicted[layer] += keys

    def ran(self, layer: int, neurons: int, of: int) -> None:
        """A block ran `neurons` (token, neuron) pairs of `of`."""
        self.neurons_run[layer] += neurons
        self.neurons_total[layer] += of


@dataclass
class Trace:
    """Every choice of a run, in order. One entry of `reads` per layer and chunk, of `evictions` per layer and eviction,
    of `neurons` per layer and FFN block (None: dense)."""

    reads: list[tuple[int, np.ndarray]] = field(default_factory=list)  # layer, positions read (KV, R)
    evictions: list[tuple[int, np.ndarray, np.ndarray]] = field(default_factory=list)  # layer, positions, scores
    neurons: list[tuple[int, np.ndarray | None]] = field(default_factory=list)  # layer, neurons run (K,)

    def read(self, layer: int, positions: np.ndarray) -> None:
        """A chunk read these positions (KV, R)."""
        self.reads.append((layer, positions))

    def evicted(self, layer: int, positions: np.ndarray, scores: np.ndarray, kept: np.ndarray) -> None:
        """A layer scored `positions` with `scores` (KV, S each) and kept the columns `kept` (KV, B)."""
        gone = np.ones(positions.shape, bool)
        np.put_along_axis(gone, kept, False, axis=1)
        shape = (len(positions), -1)  # every head forgets equally many
        self.evictions.append((layer, positions[gone].reshape(shape), scores[gone].reshape(shape)))

    def ran(self, layer: int, neurons: np.ndarray | None) -> None:
        """A block ran these neurons (K,), or all of them."""
        self.neurons.append((layer, neurons))
