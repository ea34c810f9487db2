"""How the cores share the work of one call.

The caller is worker 0 and starts at once. Helper threads join when they can: each waits in compiled code without the
interpreter's lock, looking for work after its last task (a chunk calls hundreds of kernels, with some Python between
them): for about a millisecond without a pause, then between short naps, before it goes to sleep. To fall asleep and to
wake it needs that lock: many helpers who did so at every token would wait for each other, and the caller for all of
them. A call whose helper is asleep, busy with another thread's call, or lost in a fork simply does everything itself:
nothing depends on a helper, so any number of Python threads may call at once.

From the taking of the team to its release a call is one compiled step. Python hands an interrupt (Ctrl-C) over between
two of its own steps only, so none can leave the team taken, or a helper with a task that is gone.
"""

from __future__ import annotations

import os
import threading
from contextlib import suppress
from typing import Any

import numpy as np

from accel.cpu.runtime.code import compiled
from accel.cpu.runtime.cores import thread_count
from accel.cpu.runtime.waiting import NAPS, SPINS, YIELDS, pause
from accel.cpu.simd import call, carray, njit, peek, swap_if, words_at

THREADS = thread_count()
TOGETHER = max(4, min(THREADS, 16))  # chunks of a prompt that share a pass: with more cores more, or items are too few

# A helper's board: [state, kernel, task]. States: nothing offered, offered, taken, done.
_EMPTY, _OFFERED, _TAKEN, _DONE = 0, 1, 2, 3
_LINE = 64  # bytes: a cache line for the gate, and one for each board
_FREE, _IN_USE = 0, 1  # states of the gate


@compiled
def _serve(board, worker):
    """A helper's life between two naps: take what is offered on its board, run it, say so."""
    looks = 0
    while looks < SPINS + YIELDS + NAPS:
        if peek(board) == _OFFERED and swap_if(board, _OFFERED, _TAKEN):
            call(peek(board + 8), peek(board + 16), worker)
            swap_if(board, _TAKEN, _DONE)
            looks = 0
        pause(looks)
        looks += 1


@njit
def _together(gate, helpers, function, task):
    """Run a kernel together with so many helpers, whose boards follow the gate; alone where the team is in use."""
    if helpers < 1 or not swap_if(gate, _FREE, _IN_USE):
        call(function, task, 0)
        return
    boards = gate + _LINE
    for helper in range(helpers):
        words = carray(words_at(boards + helper * _LINE), 3)
        words[1], words[2] = function, task
        swap_if(boards + helper * _LINE, _EMPTY, _OFFERED)
    call(function, task, 0)
    for helper in range(helpers):  # take back what was not taken, and wait for those that are on their last item
        board, looks = boards + helper * _LINE, 0
        if not swap_if(board, _OFFERED, _EMPTY):
            while peek(board) == _TAKEN:
                pause(looks)
                looks += 1
            swap_if(board, _DONE, _EMPTY)
    swap_if(gate, _IN_USE, _FREE)


@compiled
def _share(gate, helpers, function, task):
    """Run a kernel."""
    _together(gate, helpers, function, task)


@compiled
def _share_each(gate, helpers, calls, count):
    """Run kernels one after another: calls (count, 3) are the address of each, of its task, and for how many threads it
    is; one whose address is 0 is left out."""
    listed = carray(words_at(calls), (count, 3))
    for n in range(count):
        function, task, workers = listed[n, 0], listed[n, 1], listed[n, 2]
        if function:
            carray(words_at(task), 1)[0] = 0
            _together(gate, min(helpers, workers - 1), function, task)


class _Team:
    """The helper threads. They start with the first call that wants them, and again in a forked child."""

    def __init__(self, helpers: int) -> None:
        self._words = np.zeros((helpers + 2) * _LINE, np.int8)  # the gate and the boards, from a cache line on
        start = self._words.__array_interface__["data"][0]
        self._gate = start + -start % _LINE
        self._bells: list[Any] = []  # of the helpers that run: a lock that is taken until someone rings
        self._asleep = [False] * helpers
        self._starting = threading.Lock()

    def run(self, function: int, task: int, workers: int) -> None:
        _share(self._gate, self._ready(workers - 1), function, task)

    def run_each(self, calls: int, count: int) -> None:
        _share_each(self._gate, self._ready(len(self._asleep)), calls, count)

    def _ready(self, helpers: int) -> int:
        """Let so many helpers be there and awake, as far as there are as many; returns how many."""
        helpers = min(helpers, len(self._asleep))
        if helpers > 0:
            if len(self._bells) < helpers:
                helpers = self._start(helpers)
            if True in self._asleep:
                self._wake(helpers)
        return helpers

    def _start(self, helpers: int) -> int:
        """Start so many helpers, as far as the system lets us; returns how many there are."""
        _serve.address  # noqa: B018  (loaded before a helper would)
        with self._starting, suppress(RuntimeError):  # no more threads, or none at the end of the interpreter
            while (n := len(self._bells)) < helpers:
                bell = threading.Lock()
                bell.acquire()
                threading.Thread(target=self._help, args=(n, bell), daemon=True).start()
                self._bells.append(bell)
        return min(helpers, len(self._bells))

    def _wake(self, helpers: int) -> None:
        """Ring for the first helpers that sleep. One that falls asleep right after is missing in one call."""
        for asleep, bell in zip(self._asleep, self._bells[:helpers], strict=False):
            if asleep:
                with suppress(RuntimeError):  # somebody rang already
                    bell.release()

    def _help(self, n: int, bell: Any) -> None:
        board = self._gate + (n + 1) * _LINE
        while True:
            _serve(board, n + 1)
            self._asleep[n] = True
            bell.acquire()
            self._asleep[n] = False


_team = _Team(THREADS - 1)


TEAM = _serve, _share, _share_each  # what the team itself runs


def run(function: int, task: int, workers: int) -> None:
    """Call the kernel at an address on so many threads, this one among them."""
    _team.run(function, task, workers)


def run_each(calls: int, count: int) -> None:
    """Run kernels one after another on all threads: `count` rows (address, address of its task, threads) at `calls`."""
    _team.run_each(calls, count)


def _after_fork() -> None:
    """A forked child has no helper threads, and perhaps a team that the parent had taken."""
    global _team
    _team = _Team(THREADS - 1)


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
