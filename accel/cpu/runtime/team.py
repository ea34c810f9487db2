"""How the cores share the work of one call.

The caller is worker 0 and starts at once. Helper threads join when they can: each waits in compiled code without the
interpreter's lock, looking for work for a millisecond after its last task (a chunk calls hundreds of
kernels, with some Python between them) before it goes to sleep. A call whose helper is asleep, busy with another
thread's call, or lost in a fork simply does everything itself: nothing depends on a helper, so any number of Python
threads may call at once.
"""

from __future__ import annotations

import os
import threading
from time import perf_counter

import numpy as np
from numba import carray, njit

from accel.cpu.simd import call, peek, swap_if, words_at
from reference.checks import require

PATIENCE = 1e-3  # seconds that a helper looks at an empty board before it goes to sleep
LOOKS = 1000  # that are timed to find how many that is


def thread_count() -> int:
    """Cores that this process may use, or THRESHER_NUM_THREADS."""
    wanted = os.environ.get("THRESHER_NUM_THREADS")
    if wanted is None:
        return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    require(
        wanted.isdigit() and int(wanted) >= 1,
        f"THRESHER_NUM_THREADS: got {wanted!r}, wanted a whole number of at least 1",
    )
    return int(wanted)


THREADS = thread_count()

# A helper's board: [state, kernel, task, asleep]. States: nothing offered, offered, taken, done.
_EMPTY, _OFFERED, _TAKEN, _DONE = 0, 1, 2, 3
_BOARD = 8  # words: a cache line for each helper


@njit("void(int64, int64, int64)", nogil=True, cache=True)
def _serve(board, worker, patience):
    """A helper's life between two naps: take what is offered on its board, run it, say so."""
    looks = 0
    while looks < patience:
        looks += 1
        if peek(board) == _OFFERED and swap_if(board, _OFFERED, _TAKEN):
            call(peek(board + 8), peek(board + 16), worker)
            swap_if(board, _TAKEN, _DONE)
            looks = 0


@njit("void(int64, int64, int64)", nogil=True, cache=True)
def _alone(function, task, worker):
    call(function, task, worker)


@njit("int64(int64, int64, int64, int64)", nogil=True, cache=True)
def _offer(boards, helpers, function, task):
    """Write a task on the boards; returns how many of their helpers may be asleep."""
    asleep = 0
    for helper in range(helpers):
        words = carray(words_at(boards + helper * 8 * _BOARD), _BOARD)
        words[1], words[2] = function, task
        swap_if(boards + helper * 8 * _BOARD, _EMPTY, _OFFERED)
        asleep += words[3]
    return asleep


@njit("void(int64, int64)", nogil=True, cache=True)
def _withdraw(boards, helpers):
    """Take back what no helper took, and wait for those that are on their last item."""
    for helper in range(helpers):
        board = boards + helper * 8 * _BOARD
        if not swap_if(board, _OFFERED, _EMPTY):
            while peek(board) == _TAKEN:
                pass
            swap_if(board, _DONE, _EMPTY)


class _Team:
    """The helper threads. They start with the first call that wants them, and again in a forked child."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.boards = np.zeros((0, _BOARD), np.int64)
        self.bells: list[threading.Semaphore] = []

    def start(self, helpers: int) -> None:
        self.boards = np.zeros((helpers, _BOARD), np.int64)
        self.address = self.boards.__array_interface__["data"][0]
        self.bells = [threading.Semaphore(0) for _ in range(helpers)]
        # How long a look takes differs tenfold between machines. Nothing is offered yet, so that looking is all it
        # does.
        _serve(self.address, 1, LOOKS)
        started = perf_counter()
        _serve(self.address, 1, LOOKS)
        patience = int(LOOKS * PATIENCE / (perf_counter() - started))
        for n in range(helpers):
            threading.Thread(target=self.help, args=(self.boards, self.bells[n], n, patience), daemon=True).start()

    @staticmethod
    def help(boards: np.ndarray, bell: threading.Semaphore, n: int, patience: int) -> None:
        board = boards.__array_interface__["data"][0] + n * 8 * _BOARD
        while True:
            _serve(board, n + 1, patience)
            boards[n, 3] = 1  # asleep; an offer made before this line was written is seen by one more look
            _serve(board, n + 1, 1)
            bell.acquire()
            boards[n, 3] = 0

    def run(self, function: int, task: int, workers: int) -> None:
        if workers < 2 or not self.lock.acquire(blocking=False):
            _alone(function, task, 0)
            return
        try:
            if not self.bells:
                self.start(THREADS - 1)
            if _offer(self.address, workers - 1, function, task):
                for n in np.flatnonzero(self.boards[: workers - 1, 3]):
                    self.bells[n].release()
            _alone(function, task, 0)
        finally:  # also on an interrupt: no helper may be left with a task that is gone
            _withdraw(self.address, workers - 1)
            self.lock.release()


_team = _Team()


def run(function: int, task: int, workers: int) -> None:
    """Call the kernel at an address on so many threads, this one among them."""
    _team.run(function, task, workers)


def _after_fork() -> None:
    """A forked child has no helper threads and must not wait for the parent's lock."""
    global _team
    _team = _Team()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
