"""What stands for an array until a kernel reads it: columns chosen from a cache, keys and positions that are known.

Anything but the functions made for them sees an array: `plain` makes it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from accel.cuda.runtime.arrays import I64, Array, empty
from accel.cuda.runtime.moves import counted, put, take


@dataclass(frozen=True)
class Columns:
    """Columns that a chunk reads: those `kept` (KV, B) of the past, then start … stop - 1, its own, in every head."""

    kept: Array
    start: int
    stop: int
    dtype = I64

    @property
    def shape(self) -> tuple[int, int]:
        """(KV, B + stop - start)."""
        return self.kept.shape[0], self.kept.shape[1] + self.stop - self.start

    def __len__(self) -> int:
        return self.kept.shape[0]

    def array(self) -> Array:
        """All of them, (KV, R)."""
        out, held = empty(self.shape, I64), self.kept.shape[1]
        put(self.kept, out[:, :held])
        own = counted(self.start, self.stop)
        put(Array(own.memory, own.address, (len(self), len(own)), (0, 8), I64), out[:, held:])
        return out


@dataclass(frozen=True)
class Positions:
    """Positions (KV, S) of a cache, of which the last `run` columns of every head are newest - run + 1 … newest."""

    held: Array
    newest: int
    run: int
    dtype = I64

    @property
    def shape(self) -> tuple[int, ...]:
        """(KV, S)."""
        return self.held.shape

    def at(self, column: int) -> int | None:
        """The position in a column, where it is known and the same in every head."""
        back = self.shape[1] - 1 - column
        return self.newest - back if 0 <= back < self.run else None

    def array(self) -> Array:
        """The positions themselves."""
        return self.held


@dataclass(frozen=True)
class Chosen:
    """Columns of a cached array (KV, S, …), read where they stand: (KV, R, …)."""

    held: Any  # Array or Positions
    columns: Any  # Columns or Array (KV, R)

    @property
    def shape(self) -> tuple[int, ...]:
        """(KV, R, …)."""
        return (*self.columns.shape, *self.held.shape[2:])

    @property
    def dtype(self) -> np.dtype:
        """How the numbers are stored."""
        return self.held.dtype

    def __len__(self) -> int:
        return self.shape[0]

    def array(self) -> Array:
        """The columns gathered."""
        return take(plain(self.held), plain(self.columns))


@dataclass(frozen=True)
class Keys:
    """Keys (KV, S, D) and the inverse of each one's length (KV, S), 0 for a zero key."""

    held: Array
    rates: Array

    @property
    def shape(self) -> tuple[int, ...]:
        """(KV, S, D)."""
        return self.held.shape

    @property
    def dtype(self) -> np.dtype:
        """How the keys are stored."""
        return self.held.dtype

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, index: Any) -> Keys:
        return Keys(self.held[index], self.rates[index])

    def array(self) -> Array:
        """The keys themselves."""
        return self.held


def plain(x: Any) -> Array:
    """The array that x is or stands for."""
    return x if isinstance(x, Array) else x.array()
