"""A checkpoint with an adapter's changes, as one more `Source`: nothing above it knows the difference.

Where the base has one tensor for embedding and output, a change to one of them leaves the other alone, as in PEFT. The
two then stand here as two tensors.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import numpy as np

from loaders.family import EMBEDDING, Family
from loaders.lora import Adapter, Change
from loaders.source import Source
from reference import Int8


class Adapted:
    """A `Source` some of whose tensors are replaced by the adapter's or have its products added."""

    def __init__(self, base: Source, adapter: Adapter, family: Family) -> None:
        self.path, self.config = base.path, base.config
        self._base, self._adapter = base, adapter
        stored = frozenset(base.names())
        body, output = family.body(stored, str(base.path))
        ends = body + EMBEDDING, output
        known = stored.union(ends)
        self._changes: dict[str, Change] = {}
        for name, change in adapter.changes.items():
            self._changes[next((own for own in family.spellings(name, body, output) if own in known), name)] = change
        # The name here -> the name in the base.
        self._names = {name: name for name in stored}
        if not self._changes.keys().isdisjoint(ends):
            for one, other in (ends, ends[::-1]):
                self._names |= {one: one if one in stored else other}

    def names(self) -> list[str]:
        """The base's."""
        return list(self._names)

    def file_of(self, name: str) -> Path:
        """The adapter's file for a tensor that it replaces, or else the base's."""
        change = self._changes.get(name)
        return self._base.file_of(self._names[name]) if change is None or change.whole is None else self._adapter.path

    def text(self, name: str) -> str | None:
        """The base's."""
        return self._base.text(name)

    def texts_in(self, folder: str, suffix: str) -> list[str]:
        """The base's."""
        return self._base.texts_in(folder, suffix)

    def shape(self, name: str) -> tuple[int, ...]:
        """The base's."""
        return self._base.shape(self._names[name])

    def tensor(self, name: str) -> np.ndarray:
        """The base's tensor with its change. ValueError where the two have different shapes."""
        change, weight = self._changes.get(name), self._base.tensor(self._names.get(name, name))
        return weight if change is None else change.of(weight, f"{self._adapter.path}: module {name!r}")

    def eight_bits(self, name: str) -> Int8 | None:
        """The base's, unless it is changed."""
        return None if name in self._changes else self._base.eight_bits(self._names.get(name, name))

    def let_go(self) -> None:
        """The base's."""
        self._base.let_go()

    def check(self, read: Iterable[str]) -> None:
        """ValueError where the adapter changes a tensor that is not among those that the model reads."""
        strangers = sorted(self._changes.keys() - set(read))
        if strangers:
            raise ValueError(
                f"{self._adapter.path}: got a change to {strangers[0]!r}, which {self.path} does not have, "
                "wanted an adapter for this base"
            )
