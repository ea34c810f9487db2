"""One sequence on its way through a model, and the chunk of it that a pass works on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from reference.cache import KVCache
from reference.checks import require
from reference.config import ModelConfig
from reference.policy import Policy
from reference.trace import Counts, Trace


@dataclass
class State:
    """One sequence on its way through a model: all that is needed to go on from here."""

    cache: KVCache
    policy: Policy
    counts: Counts
    position: int = 0  # of the next token
    logits: np.ndarray | None = None  # (V,) of the next token, once the prompt is read
    trace: Trace | None = None

    @property
    def positions(self) -> list[np.ndarray]:
        """The positions still in the cache, layer by layer, (KV, S) each."""
        return [layer.positions for layer in self.cache.layers]


@dataclass(frozen=True)
class Chunk:
    """The tokens of one sequence that are processed together, (T,). `first` is the position of the first of them,
    `length` that of the prompt that they belong to."""

    state: State
    token_ids: np.ndarray
    first: int
    length: int
    decoding: bool = False

    @property
    def positions(self) -> np.ndarray:
        """(T,) int64."""
        return np.arange(self.first, self.first + len(self.token_ids))


def check_tokens(config: ModelConfig, state: State, token_ids: Sequence[int] | np.ndarray) -> np.ndarray:
    """The ids as (T,) int64, or a ValueError that says what is wrong with them for this model and state."""
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
