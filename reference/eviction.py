"""What every eviction method shares: a hard budget, protected tokens, and the step that forgets the rest.

After a chunk has attended, a layer that holds more than `budget` tokens per KV head scores all of them and keeps the
highest, every KV head on its own. One scoring per chunk; the lowest (size - budget) go together. Methods differ in
their scores alone; where a method carries something from chunk to chunk it writes it to the layer's cache in `observe`.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from types import ModuleType
from typing import Self

import numpy as np

from reference.cache import LayerCache
from reference.checks import require, whole
from reference.topk import check_budget, resolve_budget


@dataclass(frozen=True)
class Seen:
    """What one chunk's attention saw in one layer.

    `first` is the position of the first of its T tokens. `k` and `k_positions` are the keys that the chunk read: all S
    in the cache, or where a selection narrowed them the R at `columns` (KV, R) of the cache. `mass` is what each of
    them received of the attention, where the evictor `notes_mass`.
    """

    q: np.ndarray  # (H, T, D)
    first: int
    k: np.ndarray  # (KV, R, D)
    k_positions: np.ndarray  # (KV, R)
    columns: np.ndarray | None
    cache: LayerCache
    scale: float
    cap: float | None
    decoding: bool
    backend: ModuleType
    mass: np.ndarray | None = None  # (H, R)

    def spread(self, scores: np.ndarray) -> np.ndarray:
        """Scores of the keys read as scores of all keys in the cache: (H, R) -> (H, S), zero for a key not read."""
        return self.cache.spread(scores, self.columns)


@dataclass(frozen=True)
class Evictor:
    """Base of the eviction methods.

    budget: tokens kept per layer and KV head, at all times; a fraction means that share of all that has been read when
      a prompt ends.
    sinks: the first tokens of the sequence, always kept; recent: the newest, always kept. Both count in the budget.
    """

    budget: int | float
    sinks: int = 0
    recent: int = 0

    def __post_init__(self) -> None:
        check_budget(self.budget)
        whole("sinks", self.sinks, least=0)
        whole("recent", self.recent, least=0)
        if not isinstance(self.budget, float):
            require(
                self.sinks + self.recent <= self.budget,
                f"sinks + recent: got {self.sinks} + {self.recent}, wanted at most the budget, {self.budget}",
            )

    def resolve(self, length: int) -> Self:
        """The same method with its budget in tokens, for a prompt of `length` tokens."""
        return replace(self, budget=resolve_budget(self.budget, length))

    @property
    def notes_mass(self) -> bool:
        """Whether `observe` needs `seen.mass`, so that it is computed with the attention."""
        return False

    def observe(self, seen: Seen) -> None:
        """Take note of a chunk, whether or not anything must go."""

    def scores(self, seen: Seen) -> np.ndarray:
        """(KV, S), higher = keep."""
        raise NotImplementedError

    def newest_kept(self, seen: Seen) -> int:
        """How many of the newest tokens stay whatever their score."""
        return self.recent

    def evict(self, seen: Seen) -> tuple[np.ndarray, np.ndarray] | None:
        """Bring the layer back to the budget.

        Returns the scores (KV, S) and the columns kept (KV, B), or None where nothing had to go.
        """
        self.observe(seen)
        if seen.cache.size <= self.budget:
            return None
        scores = self.scores(seen)
        kept = seen.backend.keep_top(
            scores, self.budget, sinks=self.sinks, recent=self.newest_kept(seen), positions=seen.cache.positions
        )
        seen.cache.keep(kept)
        return scores, kept


def group_mean(h: np.ndarray, kv_heads: int) -> np.ndarray:
    """Scores per query head averaged over each group: (H, S) -> (KV, S)."""
    return h.reshape(kv_heads, -1, h.shape[1]).mean(axis=1)
