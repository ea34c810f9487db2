"""The experts of a mixture: small FFNs, in memory or fetched when a token is sent to them.

A model may have more experts than memory has room for, while a token runs few of them. `StoredExperts` then stands in
the place of a layer's tuple of experts. It knows how many there are and what they are like; their numbers are fetched
by each `experts[n]`. Who keeps an expert for the next time is not known here.
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


class StoredExperts:
    """`count` experts of one layer that are not in memory: `experts[n]` is read(n). `alike` is an expert with their
    shapes, whatever its numbers; `nbytes` is what all of them take when they are read."""

    def __init__(self, count: int, alike: Expert, nbytes: int, read: Callable[[int], Expert]) -> None:
        self.alike, self.nbytes = alike, nbytes
        self._count, self._read = count, read

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, n: int) -> Expert:
        return self._read(n)

    def then(self, step: Callable[[Expert], Expert]) -> StoredExperts:
        """The same experts, each as `step` makes it out of what was read."""
        return StoredExperts(self._count, self.alike, self.nbytes, lambda n: step(self._read(n)))


Experts = Sequence[Expert] | StoredExperts  # of one layer
