"""One sequence on its way through a model, and the chunk of it that a pass works on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import numpy as np

from reference.cache import KVCache
from reference.checks import require
from reference.config import ModelConfig
from reference.policy import Policy
from reference.trace import Counts, Trace


@dataclass(frozen=True)
class Mark:
    """Where a sequence stood: its position, each layer's newest one and size, what was counted, how much was traced."""

    position: int
    newest: list[int]
    sizes: list[int]
    counts: Counts
    trace: tuple[int, ...] | None


@dataclass
class State:
    """One sequence on its way through a model: all that is needed to go on from here."""

    cache: KVCache
    policy: Policy
    counts: Counts
    position: int = 0  # of the next token
    logits: Any = None  # (V,) of the next token, in the backend, once the prompt is read
    trace: Trace | None = None
    broken: str = ""  # why it cannot be continued

    @property
    def positions(self) -> list[np.ndarray]:
        """The positions still in the cache, layer by layer, (KV, S) each."""
        return [layer.positions for layer in self.cache.layers]

    def mark(self) -> Mark:
        """Where the sequence stands before a pass."""
        newest = [layer.newest for layer in self.cache.layers]
        traced = None if self.trace is None else self.trace.sizes()
        return Mark(self.position, newest, self.cache.sizes, self.counts.copy(), traced)

    def take_back(self, mark: Mark, reason: str) -> None:
        """Go back to where the sequence stood when a pass began that could not be finished.

        What a layer evicted, or an evictor noted of it, cannot be had again: the state is then broken, and says so when
        it is to be continued.
        """
        for layer, newest, size in zip(self.cache.layers, mark.newest, mark.sizes, strict=True):
            added = layer.newest - newest
            noted = added > 0 and (layer.received is not None or layer.queries is not None)
            if noted or layer.size - added != size:
                self.broken = f"{reason} after a layer had evicted"
                return
            if added:
                layer.take_back(added)
            if not size:
                layer.neurons = None  # chosen on a first block that was not read
        self.position, self.counts = mark.position, mark.counts
        if self.trace is not None and mark.trace is not None:
            self.trace.cut(mark.trace)


@dataclass(frozen=True)
class Chunk:
    """The tokens of one sequence that are processed together, (T,), and their rows of the pass that they share.

    `first` is the position of the first of them, `length` that of the prompt that they belong to.
    """

    state: State
    token_ids: np.ndarray
    first: int
    length: int
    rows: slice
    decoding: bool = False


def by_sequence(chunks: Sequence[Chunk]) -> list[list[Chunk]]:
    """The chunks of each sequence of a pass, where they stand together."""
    return [list(own) for _, own in groupby(chunks, key=lambda chunk: id(chunk.state))]


def check_tokens(config: ModelConfig, state: State, token_ids: Sequence[int] | np.ndarray) -> np.ndarray:
    """The ids as (T,) int64, or a ValueError that says what is wrong with them for this model and state."""
    require(not state.broken, f"state: got one whose last pass was {state.broken}, wanted a whole one")
    ids = np.asarray(token_ids)
    require(ids.ndim == 1 and ids.size > 0, f"token_ids: got shape {ids.shape}, wanted (T,) with T of at least 1")
    require(ids.dtype.kind in "iu", f"token_ids: got dtype {ids.dtype}, wanted an integer type")
    require(
        ids.min() >= 0 and ids.max() < config.vocab_size,
        f"token_ids: got ids from {ids.min()} to {ids.max()}, wanted 0 to {config.vocab_size - 1}",
    )
    end = state.position + ids.size
    require(
        end <= config.max_positions,
        f"token_ids: got {ids.size} tokens after {state.position}, which ends at {end}, "
        f"wanted at most the model's {config.max_positions} positions",
    )
    return ids.astype(np.int64)
