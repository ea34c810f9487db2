"""The experts of a mixture: small FFNs, in memory or fetched when a token is sent to them.

A model may have more experts than memory has room for, while a token runs few of them. `StoredExperts` then stands in
the place of a layer's tuple of experts. It knows how many there are and what they are like; their numbers are fetched
by each `experts[n]`. Who keeps an expert for the next time is not known here.

Experts that do fit into memory may stand so too, until a backend lays out a model's weights. It then fetches one after
another, so that none is in memory twice.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Expert:
    """One FFN of a mixture, F its own width."""

    w_gate: Any  # (F, E)
    w_up: Any  # (F, E)
    w_down: Any  # (E, F)

    @property
    def nbytes(self) -> int:
        """Bytes of the three."""
        return sum(matrix.nbytes for matrix in vars(self).values())


@dataclass(frozen=True)
class StoredExperts:
    """`count` experts of one layer that are not in memory: `experts[n]` is read(n). `alike` is an expert of their
    shapes and dtypes, whatever its numbers. They `stay` out of memory, or are fetched when weights are prepared."""

    count: int
    alike: Expert
    read: Callable[[int], Expert]
    stay: bool = True

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, n: int) -> Expert:
        return self.read(n)

    @property
    def nbytes(self) -> int:
        """Bytes of all of them when they are read."""
        return self.count * self.alike.nbytes

    def prepared(self, step: Callable[[Expert], Expert]) -> Experts:
        """Each as `step` makes it out of what was read: those that stay when they are asked for, others now."""
        if self.stay:
            return StoredExperts(self.count, self.alike, lambda n: step(self.read(n)))
        return tuple(step(self.read(n)) for n in range(self.count))


Experts = Sequence[Expert] | StoredExperts  # of one layer
