"""Arrays that say where their numbers stand instead of holding them, or what is known of them besides.

A cache hands them out, and the functions that can make use of them do: attention copies rows into its blocks anyway, so
that gathering them before would be a second copy. `held` is an array of the backend; anything else that is given one of
these sees an array of that shape. They are not to be changed; but a pass makes thousands of them, and freezing a
dataclass makes that three times as long.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np


@dataclass
class Lazy:
    """Base: as much of an array as the contract's checks look at. NumPy sees the array itself."""

    held: Any

    @property
    def shape(self) -> tuple[int, ...]:
        """As of the array that it stands for."""
        return self.held.shape

    @property
    def dtype(self) -> np.dtype:
        """How the numbers are stored."""
        return self.held.dtype

    def __len__(self) -> int:
        return self.shape[0]

    def __array__(self, dtype: np.dtype | None = None, copy: bool | None = None) -> np.ndarray:
        return np.asarray(self.held, dtype)


@dataclass
class Chosen(Lazy):
    """Some columns of a cached array, read where they stand: `held` (KV, S, …) at `columns` (KV, R) is (KV, R, …)."""

    columns: Any

    @cached_property
    def shape(self) -> tuple[int, ...]:
        """(KV, R, …)."""
        return (*self.columns.shape, *self.held.shape[2:])

    def __array__(self, dtype: np.dtype | None = None, copy: bool | None = None) -> np.ndarray:
        columns = self.columns if len(self.held.shape) == 2 else self.columns[:, :, None]
        return np.take_along_axis(self.held, columns, axis=1).astype(dtype or self.dtype, copy=False)


@dataclass
class Keys(Lazy):
    """Keys (KV, S, D) and what a cache knows of them: their inverse lengths (KV, S), and for all of a cache's keys the
    sum of their directions (KV, D)."""

    rates: Any
    sums: Any = None

    def first(self, count: int) -> Keys:
        """The first `count` of them."""
        if count == self.shape[1]:
            return self
        return Keys(self.held[:, :count], self.rates[:, :count])


@dataclass
class Consecutive(Lazy):
    """Positions (KV, S) that follow one another from `first` on, the same for every head: then what a query sees is a
    matter of two subtractions, for all layers of a pass at once."""

    first: int
