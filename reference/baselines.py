"""Two evictions that look at nothing: the yardsticks that every method must beat.

    recent   the first `sinks` and the newest tokens stay. With a few sinks this is StreamingLLM
    random   every token draws a number once, u ~ U(0, 1) per KV head and position; the highest stay, so that all tokens
             read so far are as likely to be there

Source of the first: StreamingLLM (arXiv 2309.17453), which differs: its positions are counted anew inside the cache,
here a key keeps the rotation of the place where it was read. A random number is drawn per position and not per layer:
all layers forget the same tokens of a KV head.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from reference.checks import whole
from reference.eviction import Evictor, Seen


@dataclass(frozen=True)
class Recent(Evictor):
    """Keep the newest tokens and the `sinks`: what a sliding window keeps.

    budget: tokens kept per layer and KV head, at all times; a fraction means that share of the prompt.
    sinks: first tokens of the sequence, always kept; recent: changes nothing here. Both count in the budget.
    """

    def newest_kept(self, seen: Seen) -> int:
        """All that the sinks leave of the budget."""
        return int(self.budget) - self.sinks

    def scores(self, seen: Seen) -> np.ndarray:
        """(KV, S) of zeros: the sinks and the newest fill the budget."""
        return seen.backend.to_backend(np.zeros(seen.cache.positions.shape, np.float32))


@dataclass(frozen=True)
class Random(Evictor):
    """Keep a random choice of all tokens read so far.

    budget: tokens kept per layer and KV head, at all times; a fraction means that share of the prompt.
    sinks: first tokens of the sequence, always kept; recent: newest tokens, always kept. Both count in the budget.
    seed: which choice.
    """

    seed: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        whole("seed", self.seed, least=0)

    def scores(self, seen: Seen) -> np.ndarray:
        """(KV, S): u of each token. A longer sequence begins with the same numbers, so that a token keeps its own."""
        positions = seen.backend.to_numpy(seen.cache.positions)  # (KV, S)
        drawn = np.random.default_rng(self.seed).random((seen.cache.newest + 1, len(positions)), np.float32)
        return seen.backend.to_backend(np.ascontiguousarray(np.take_along_axis(drawn.T, positions, axis=1)))
