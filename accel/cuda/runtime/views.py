"""What stands for an array until a kernel reads it (accel/shared/lazy.py), and what this backend knows besides."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from accel.cuda.runtime.arrays import I64, Array, empty, to_host
from accel.cuda.runtime.moves import counted, packed, put, take
from accel.shared.lazy import Chosen, Lazy


@dataclass(frozen=True)
class Columns:
    """Columns that a chunk reads: those `kept` (KV, B) of the past, then start … stop - 1, its own, in every head."""

    kept: Array
    start: int
    stop: int
    dtype = I64

    @cached_property
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
        put(own.seen(own.address, (len(self), len(own)), (0, 8)), out[:, held:])
        return out


@dataclass(frozen=True)
class Positions(Lazy):
    """Positions (KV, S) of a cache, of which the last `run` columns of every head are newest - run + 1 … newest.

    In a pass that is recorded they are those of all columns that there is room for, and `ranges` (KV, T, 2) int32 says
    on the device which of them each query sees.
    """

    newest: int
    run: int
    ranges: Array | None = None

    def at(self, column: int) -> int | None:
        """The position in a column, where it is known and the same in every head."""
        back = self.shape[1] - 1 - column
        return self.newest - back if 0 <= back < self.run else None


def plain(x: Any) -> Array:
    """The array that x is or stands for."""
    if isinstance(x, Chosen):
        return take(plain(x.held), plain(x.columns))
    if isinstance(x, Columns):
        return x.array()
    return plain(x.held) if isinstance(x, Lazy) else x


def to_numpy(x: Any) -> np.ndarray:
    """What x is or stands for on the host; the one place where the host waits."""
    found = plain(x)
    return to_host(packed(found) if isinstance(found, Array) else found)
