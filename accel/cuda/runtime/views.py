"""What stands for an array until a kernel reads it (accel/shared/lazy.py), and what this backend knows besides."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from accel.cuda.runtime.arrays import I64, Array, empty, to_host
from accel.cuda.runtime.errors import raise_noted
from accel.cuda.runtime.moves import counted, packed, put, take
from accel.shared.lazy import Chosen, Keys, Lazy


@dataclass(frozen=True)
class Places:
    """Where a pass that is recorded finds on the device what changes of a layer from pass to pass: the column and the
    position of the first new token, `new` (2,) int64, and the columns that the last of a chunk sees, `ranges`
    (KV, 1, 2) int32. `first` is the position when it was recorded. A layer that `grows` gives kernels all columns that
    there is room for; others hold equally many every time."""

    new: Array
    ranges: Array
    first: int
    grows: bool


@dataclass
class Growing(Keys):
    """Keys of all columns that there is room for, of which those before new[0] are held."""

    new: Any = None

    def first(self, count: int) -> Growing:
        """All of them: how many are held is not known yet."""
        return self


@dataclass(frozen=True)
class Columns:
    """Columns that a chunk reads: those `kept` (KV, B) of the past, then start … stop - 1, its own, in every head. In a
    pass that is recorded its own are `within` those kept already, since the next time they are others."""

    kept: Array
    start: int
    stop: int
    within: bool = False
    dtype = I64

    @cached_property
    def shape(self) -> tuple[int, int]:
        """(KV, R), all of them."""
        own = 0 if self.within else self.stop - self.start
        return self.kept.shape[0], self.kept.shape[1] + own

    @property
    def below(self) -> int | None:
        """One past the last, where all are known to rise."""
        known = self.kept.below
        return self.stop if known is not None and known <= (self.stop if self.within else self.start) else None

    def __len__(self) -> int:
        return self.kept.shape[0]

    def array(self) -> Array:
        """All of them, (KV, R)."""
        if self.within:
            return self.kept
        out, held = empty(self.shape, I64), self.kept.shape[1]
        put(self.kept, out[:, :held])
        own = counted(self.start, self.stop)
        put(own.seen(own.address, (len(self), len(own)), (0, 8)), out[:, held:])
        out.below = self.below
        return out


@dataclass
class Positions(Lazy):
    """Positions (KV, S) of a cache, of which the last `run` columns of every head are newest - run + 1 … newest.

    In a pass that is recorded, `places` says on the device what is seen.
    """

    newest: int
    run: int
    places: Places | None = None

    def at(self, column: int) -> int | None:
        """The position in a column, where it is known and the same in every head."""
        back = self.shape[1] - 1 - column
        return self.newest - back if 0 <= back < self.run else None


class Later:
    """Base of what is computed when it is asked for, as `held`."""

    held: Any


def plain(x: Any) -> Array:
    """The array that x is or stands for."""
    if isinstance(x, Chosen):
        held, columns = plain(x.held), plain(x.columns)
        out = take(held, columns)
        out.below = None if columns.below is None else held.below
        return out
    if isinstance(x, Columns):
        return x.array()
    return plain(x.held) if isinstance(x, (Lazy, Later)) else x


def to_numpy(x: Any) -> np.ndarray:
    """What x is or stands for on the host; the one place where the host waits. ValueError for what kernels noted
    until then (errors.py)."""
    found = plain(x)
    host = to_host(packed(found) if isinstance(found, Array) else found)
    raise_noted()
    return host
