"""A checkpoint with an adapter's changes added, as one more `Source`: nothing above it knows the difference."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import numpy as np

from loaders.lora import Adapter
from loaders.source import Source


class Adapted:
    """A `Source` whose tensors have an adapter's products added."""

    def __init__(self, base: Source, adapter: Adapter) -> None:
        self.path, self.config = base.path, base.config
        self._base, self._adapter = base, adapter

    def names(self) -> list[str]:
        """The base's."""
        return self._base.names()

    def file_of(self, name: str) -> Path:
        """The base's."""
        return self._base.file_of(name)

    def text(self, name: str) -> str | None:
        """The base's."""
        return self._base.text(name)

    def tensor(self, name: str) -> np.ndarray:
        """The base's tensor or its sum with the adapter's product. ValueError where the two have different shapes."""
        weight, product = self._base.tensor(name), self._adapter.products.get(name)
        return weight if product is None else product.added_to(weight, f"{self._adapter.path}: module {name!r}")

    def check(self, read: Iterable[str]) -> None:
        """ValueError where the adapter changes a tensor that is not among those that the model reads."""
        strangers = sorted(self._adapter.products.keys() - set(read))
        if strangers:
            raise ValueError(
                f"{self._adapter.path}: got a change to {strangers[0]!r}, which {self.path} does not have "
                "or shares with another module, wanted an adapter for this base"
            )
