"""A mixture whose experts do not all fit into memory: which of them are kept there.

An expert is read from its file when a token is sent to it. It is then kept if there is room, or if it is asked for more
often than one that is kept, whose place it takes. A prompt asks for nearly all experts in turn, layer after layer: by
last use each would drive out the one that is asked for soonest, and by how often the same ones stay. Counts are halved
from time to time, so that what a text was about before weighs less (chosen: after 16 uses per known expert).
"""

from __future__ import annotations

from dataclasses import replace

from reference import Expert, StoredExperts, Weights
from reference.experts import Experts
from thresher.sizes import size

HALVED_AFTER = 16  # uses per expert


class ExpertMemory:
    """At most `budget` bytes of the experts of a model, the one in use included; that one is there in any case."""

    def __init__(self, budget: int) -> None:
        self.budget = budget
        self.reads = 0  # of files
        self._uses: dict[tuple[int, int], int] = {}
        self._kept: dict[tuple[int, int], Expert] = {}
        self._total = 0  # uses since counts were halved
        self._room: int | None = None  # for so many experts besides that in use: all are of one size

    @property
    def nbytes(self) -> int:
        """Bytes of the experts that are kept."""
        return sum(expert.nbytes for expert in list(self._kept.values()))

    def keep_some(self, weights: Weights) -> Weights:
        """The weights with those experts that are not in memory taken from here."""
        layers = enumerate(weights.layers)
        return replace(weights, layers=tuple(replace(w, experts=self._of_layer(n, w.experts)) for n, w in layers))

    def take(self, layer: int, n: int, stored: StoredExperts) -> Expert:
        """An expert, kept or read. Threads that ask at the same time may each keep one more."""
        place = layer, n
        self._count(place)
        if (kept := self._kept.get(place)) is not None:
            return kept
        wanted = self._makes_room(place)
        expert = stored[n]
        self.reads += 1
        if self._room is None:
            self._room = max(self.budget // max(expert.nbytes, 1) - 1, 0)
            wanted = self._room > 0
        if wanted:
            self._kept[place] = expert
        return expert

    def _of_layer(self, layer: int, experts: Experts | None) -> Experts | None:
        if not isinstance(experts, StoredExperts):
            return experts
        return replace(experts, read=lambda n: self.take(layer, n, experts))

    def _count(self, place: tuple[int, int]) -> None:
        self._uses[place] = self._uses.get(place, 0) + 1
        self._total += 1
        if self._total > HALVED_AFTER * len(self._uses):
            self._uses = {place: uses // 2 for place, uses in self._uses.items()}
            self._total = sum(self._uses.values())

    def _makes_room(self, place: tuple[int, int]) -> bool:
        """Whether an expert is to be kept; if so there is room for it, before it is read."""
        if self._room is None or len(self._kept) < self._room:
            return True
        rarest = min(list(self._kept), key=self._uses.__getitem__, default=None)
        if rarest is None or self._uses[rarest] >= self._uses[place]:
            return False
        self._kept.pop(rarest, None)
        return True


def fetch_if_they_fit(weights: Weights, room: int | None) -> Weights:
    """The weights with experts that are not in memory told to come there, where all take at most `room` bytes."""
    if room is not None and stored_bytes(weights) > room:
        return weights

    def fetched(experts: Experts | None) -> Experts | None:
        return replace(experts, stay=False) if isinstance(experts, StoredExperts) else experts

    return replace(weights, layers=tuple(replace(w, experts=fetched(w.experts)) for w in weights.layers))


def stored_bytes(weights: Weights) -> int:
    """Bytes of all experts that stay out of memory."""
    return sum(layer.stored.nbytes for layer in weights.layers if layer.stored and layer.stored.stay)


def told(weights: Weights, budget: int) -> str:
    """One line about the experts that are not in memory, or "" where all are."""
    stored = [layer.stored for layer in weights.layers if layer.stored is not None]
    if not stored:
        return ""
    count, nbytes = sum(map(len, stored)), stored_bytes(weights)
    return (
        f"{count:,} experts of {size(nbytes)} stay on disk and are read when a token is sent to them, which is slow; "
        f"{size(budget)} of memory keep those that are used most"
    )
