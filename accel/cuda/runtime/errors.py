"""The error word: what only numbers can tell is noted on the device, and told where the host waits anyway.

A kernel that meets a NaN among scores cannot raise. It writes what is wrong into eight whole numbers of the host's
memory, which the device can reach, and goes on. `to_numpy`, which waits for the device in any case, then looks at them
and raises the ValueError of the definition, word for word. So an error costs no wait and no copy where there is none.

    word    kind, name, how the place is told, row, place, two numbers of the array, how many there are

Each thread of the host has a word of its own, and so has a recorded pass (graph.py), whose launches may be made by any
thread. The first thing wrong stands: what is noted is not written over.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import cuda

from accel.cuda.ptx.simulator import SIMULATED
from accel.cuda.runtime.arrays import I64, Array, empty
from accel.cuda.runtime.device import here, machine
from accel.cuda.runtime.kernels import blocks, device, kernel
from accel.cuda.runtime.reduce import THREADS, block_max

NAN_SCORE, NEGATIVE_SCORE, FALLING, OUTSIDE, NO_TOKEN = range(1, 6)  # kinds
SAID = {
    NAN_SCORE: "scores: got NaN, wanted numbers that can be ranked",
    NEGATIVE_SCORE: "h: got a negative score or NaN, wanted scores of at least 0",
    FALLING: "{name}: got {before} followed by {after} at index {where}, wanted strictly ascending positions",
    OUTSIDE: "{name}: got {before} to {after}, wanted 0 to {last}",
    NO_TOKEN: "{name}: got id {before}, wanted 0 to {last}",
}
NAMES = ("q_positions", "k_positions", "neurons", "columns", "token_ids")
SIZE, PARTS, LEAST = 8, 32, 1024  # of a word; blocks that share a row at most, and numbers of one at least
_unused: list[Any] = []  # words that nobody writes to any more


class Word:
    """One error word, in memory of the host that the device writes to."""

    def __init__(self) -> None:
        self._held = _unused.pop() if _unused else _memory()
        self.numbers = self._held.view(np.int64)
        self.numbers[:] = 0
        self.array = Array(self._held, self._held.__array_interface__["data"][0], (SIZE,), (8,), I64)

    def __del__(self, unused: list[Any] = _unused) -> None:  # the module's names may be gone by then
        unused.append(self._held)

    def told(self) -> str:
        """What is noted, or nothing; it is forgotten then."""
        kind, name, axes, row, place, before, after, count = self.numbers.tolist()
        if not kind:
            return ""
        self.numbers[:] = 0
        where = (place,) if axes == 1 else (row, place)
        return SAID[kind].format(name=NAMES[name], before=before, after=after, where=where, last=count - 1)


def word() -> Array:
    """Where kernels that are launched now note what is wrong, (8,) int64."""
    if here.word is None:
        here.word = Word()
    watch(here.word)
    return here.word.array


def watch(one: Word) -> None:
    """Look at this word too when this thread waits for the device."""
    if one not in here.words:
        here.words.append(one)


def raise_noted() -> None:
    """ValueError for what was noted by launches of this thread; called when the device has made them."""
    words, here.words = here.words, []
    for said in [one.told() for one in words]:
        if said:
            raise ValueError(said)


def rising(name: str, x: Array) -> None:
    """Note unless numbers (S,) or (R, S) rise strictly along the last axis."""
    if x.shape[-1] > 1 and x.below is None:
        _look(name, x, x.ndim, -1)


def listed(name: str, x: Array, count: int) -> Array:
    """Note unless every row of x (K,) or (R, K) rises strictly and lies in 0 … count - 1, as what this backend chose is
    known to. Returns indices that can be read at, whatever x was."""
    if x.below is not None and x.below <= count:
        return x
    _look(name, x, 1, count)
    return _within(x, count)


def tokens(ids: Array, count: int) -> Array:
    """Note an id of (T,) that is not in 0 … count - 1. Returns ids that can be read at, whatever they were."""
    if ids.size:
        _tokens[1, THREADS](ids, NAMES.index("token_ids"), count, word())
    return _within(ids, count)


@device
def note(word, kind):
    """Note what has no place."""
    if word[0] == 0:
        word[0] = kind


def _look(name: str, x: Array, axes: int, count: int) -> None:
    rows = x.split(0, 1) if x.ndim == 1 else x
    if rows.size:
        parts = min(blocks(rows.shape[1], LEAST), PARTS)
        found = empty((len(rows), parts), I64)
        _fall[(parts, len(rows)), THREADS](rows, found)
        _tell[1, 1](rows, found, NAMES.index(name), axes, count, word())


def _within(x: Array, count: int) -> Array:
    rows, out = x.split(0, 1) if x.ndim == 1 else x, empty(x.shape, I64)
    if x.size:
        _clamp[(blocks(x.shape[-1], THREADS), len(rows)), THREADS](rows, count, out.split(0, 1) if x.ndim == 1 else out)
    return out


def _memory() -> np.ndarray:
    """The bytes of a word, which host and device can reach under one address."""
    if SIMULATED:
        return np.zeros(8 * SIZE, np.uint8)
    import ctypes

    from cuda.bindings import driver

    machine()
    shared = driver.CU_MEMHOSTALLOC_PORTABLE | driver.CU_MEMHOSTALLOC_DEVICEMAP
    status, address = driver.cuMemHostAlloc(8 * SIZE, shared)
    if int(status) != 0:
        raise RuntimeError(f"cuda: {status.name}: no memory that host and device share")
    return np.frombuffer(memoryview((ctypes.c_uint8 * (8 * SIZE)).from_address(int(address))), np.uint8)


@kernel
def _fall(x, found):
    """The first place of each part of a row that no larger number follows, or the row's length."""
    memory = cuda.shared.array(THREADS, np.int64)
    part, row = cuda.blockIdx.x, cuda.blockIdx.y
    size = x.shape[1]
    each = (size + found.shape[1] - 1) // found.shape[1]
    i = part * each + cuda.threadIdx.x
    stop = min((part + 1) * each, size - 1)
    first = size
    while i < stop:
        if x[row, i] >= x[row, i + 1] and i < first:
            first = i
        i += THREADS
    first = -block_max(-first, memory)
    if cuda.threadIdx.x == 0:
        found[row, part] = first


@kernel
def _tell(x, found, name, axes, count, word):
    """Note the first row that falls, or whose ends are not in 0 … count - 1."""
    last = x.shape[1] - 1
    for row in range(x.shape[0]):
        place = last + 1
        for part in range(found.shape[1]):
            place = min(place, found[row, part])
        kind, before, after = 0, x[row, 0], x[row, last]
        if place <= last:
            kind, before, after = FALLING, x[row, place], x[row, place + 1]
        elif count >= 0 and (before < 0 or after >= count):
            kind = OUTSIDE
        if kind != 0 and word[0] == 0:
            word[1], word[2], word[3], word[4] = name, axes, row, place
            word[5], word[6], word[7], word[0] = before, after, count, kind


@kernel
def _clamp(x, count, out):
    i, row = cuda.blockIdx.x * cuda.blockDim.x + cuda.threadIdx.x, cuda.blockIdx.y
    if i < x.shape[1]:
        out[row, i] = max(min(x[row, i], count - 1), 0)


@kernel
def _tokens(ids, name, count, word):
    """Note the first id that is none."""
    memory = cuda.shared.array(THREADS, np.int64)
    i = cuda.threadIdx.x
    first = ids.shape[0]
    while i < ids.shape[0]:
        if (ids[i] < 0 or ids[i] >= count) and i < first:
            first = i
        i += THREADS
    first = -block_max(-first, memory)
    if cuda.threadIdx.x == 0 and first < ids.shape[0] and word[0] == 0:
        word[1], word[5], word[7], word[0] = name, ids[first], count, NO_TOKEN
