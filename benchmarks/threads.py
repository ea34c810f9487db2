"""Kernels at 1, 2, 4, 8, … and all threads, and at twice as many threads as there are cores.

Shapes as in `attention`, `ffn` and `selection`: dense attention of a chunk, a dense feed-forward network of a block,
and QUOKA for the four chunks of a pass. Each number of threads is a process of its own (threads_worker.py), since a
process starts its threads once; they take turns, one at a time, while the others sleep.
"""

from __future__ import annotations

import os
import subprocess
import sys
from contextlib import ExitStack
from pathlib import Path

from accel.cpu import THREADS
from benchmarks.attention import DTYPES, PAST
from benchmarks.common import Report, counts, main
from benchmarks.threads_worker import WORKS

ROUNDS = {"full": 5, "short": 5, "smallest": 1}
FEWEST, GOALS = 2, {16: (6.5, 7.5)}  # what all threads are compared with, and the goals for so many
VARIABLE = "THRESHER_NUM_THREADS"


class Worker:
    """A process of so many threads, which ends with the `with` that it stands in. RuntimeError if it ends before."""

    def __init__(self, threads: int, size: str) -> None:
        self._threads = threads
        self._process = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.threads_worker", size],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            bufsize=1,
            env={**os.environ, VARIABLE: str(threads)},
            cwd=Path(__file__).parents[1],
        )

    def __enter__(self) -> Worker:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.communicate()

    def say(self, line: str) -> None:
        """The name of a work to make ready, or "" for a turn of it."""
        assert self._process.stdin is not None
        self._process.stdin.write(line + "\n")

    def hear(self) -> float:
        """Seconds of what was asked."""
        assert self._process.stdout is not None
        if not (line := self._process.stdout.readline()):
            raise RuntimeError(f"the process of {self._threads} threads ended with {self._process.wait()}")
        return float(line)


def run(report: Report) -> None:
    size = report.size
    report.settings = {"past": PAST[size], "works": list(WORKS)}
    numbers = counts(THREADS)
    if VARIABLE not in os.environ:  # else there are more cores than threads
        numbers.append(2 * THREADS)
    with ExitStack() as running:
        workers = {threads: running.enter_context(Worker(threads, size)) for threads in numbers}
        for dtype in DTYPES:
            took = {work: race(workers, f"{work} {dtype}", ROUNDS[size]) for work in WORKS}
            for threads in numbers:
                seconds = {work: took[work][threads] for work in WORKS}
                report.point(f"kernels over threads, {dtype}", {"threads": threads}, seconds)
            for work in WORKS:
                _rows(report, f"{work}, {dtype}", took[work])


def race(workers: dict[int, Worker], work: str, rounds: int) -> dict[int, list[float]]:
    """Seconds of a work at each number of threads, round by round, after a round that does not count."""
    for worker in workers.values():
        worker.say(work)
    for worker in workers.values():  # until all are ready, and asleep
        worker.hear()
    seconds: dict[int, list[float]] = {threads: [] for threads in workers}
    for _ in range(1 + rounds):
        for threads, worker in workers.items():
            worker.say("")
            seconds[threads].append(worker.hear())
    return {threads: every[1:] for threads, every in seconds.items()}


def _rows(report: Report, measure: str, took: dict[int, list[float]]) -> None:
    """All threads against two, where there are more, and twice as many against all."""

    def ratio(a: int, b: int) -> list[float]:
        return [x / y for x, y in zip(took[a], took[b], strict=True)]

    if THREADS > FEWEST:
        reach, stretch = GOALS.get(THREADS, (None, None))
        of, against = f"{measure}, {THREADS} threads", f"{FEWEST} threads"
        report.row(of, ratio(FEWEST, THREADS), against=against, reach=reach, stretch=stretch)
    if (twice := 2 * THREADS) in took:
        of, against = f"{measure}, time of {twice} threads on {THREADS} cores", f"that of {THREADS} threads"
        report.row(of, ratio(twice, THREADS), against=against, reach=1.1, at_most=True)


if __name__ == "__main__":
    main("threads", run)
