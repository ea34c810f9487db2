"""Sums over any number of keys, as exact as over a few.

A float32 that has grown large rounds off what is added to it, and always the same way where the addends are alike: a
million keys, one at a time, lose the third digit. So keys are added up by blocks, blocks by SETTLE of them, and those
sums without loss: what an addition of two floats rounds off is itself a float (Knuth's TwoSum), and is kept beside.
"""

from __future__ import annotations

import numpy as np

from accel.cpu.simd import LANES, load, njit, splat, store, with_rest

SETTLE = 64  # blocks of keys, after which sums are moved to the totals


@njit(forceinline=True)
def add_exactly(x, total, lost):
    """Add a vector to that at `total`, and what the addition rounds off to that at `lost`."""
    old = load(total)
    new = old + x
    added = new - old
    store(lost, load(lost) + ((old - (new - added)) + (x - added)))
    store(total, new)


@njit
def settle(sums, count):
    """Move `count` sums, a multiple of LANES, to the totals that stand after them, beside what those have lost."""
    for at in range(sums, sums + 4 * count, 4 * LANES):
        add_exactly(load(at), at + 4 * count, at + 8 * count)
        store(at, splat(np.float32(0.0)))


@njit
def collect(sums, count):
    """What all of `settle` and the sums since make together, in the place of the sums."""
    settle(sums, count)
    for at in range(sums, sums + 4 * count, 4 * LANES):
        store(at, with_rest(load(at + 4 * count), load(at + 8 * count)))
