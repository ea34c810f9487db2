"""Kernels compiled before they are called, in several processes.

Numba compiles one function at a time in a process, so that a first start would leave all cores but one idle. Other
processes take kernels from one list, the first, which are the longest, at once; what they compile comes here from the
disk, so that this one need not load Numba. Whatever they do not finish is compiled here: nothing depends on them.
"""

from __future__ import annotations

import gc
import os
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress

from accel.cpu.runtime.code import can_keep, compiled
from accel.cpu.runtime.kernels import Kernel
from accel.cpu.runtime.team import TEAM, THREADS

KERNELS = 3  # at least, for each process: it takes two seconds before its first (chosen)
LOOK = 0.1  # seconds between two looks at how far the others are (chosen)
_OTHER = "from accel.cpu.runtime.ahead import serve; serve()"

Function = Kernel | compiled
Progress = Callable[[str, int, int], None]  # (name, number from 0, of how many); at the end ("", n, n)


def compile_all(
    kernels: Sequence[Kernel | compiled], progress: Progress | None = None, processes: int = THREADS
) -> int:
    """Compile kernels, or load them from disk; returns how many. `progress` is told before each that is not on disk."""
    missing = [kernel for kernel in kernels if not kernel.is_kept()]
    others = min(processes, len(missing) // KERNELS) if missing and can_keep() else 0
    done = len(kernels) - len(missing)
    with _processes(others) as started:
        waiting, finished = deque(missing), deque[str]()

        def tell(name: str) -> None:
            if progress is not None:
                progress(name, done + len(finished), len(kernels))

        feeders = [threading.Thread(target=_feed, args=(other, waiting, finished), daemon=True) for other in started]
        for feeder in feeders:
            feeder.start()
        while any(feeder.is_alive() for feeder in feeders):
            tell(next((kernel.name for kernel in missing if kernel.name not in finished), ""))
            time.sleep(LOOK)
        while (kernel := _next(waiting)) is not None:
            tell(kernel.name)
            kernel.address  # noqa: B018
            finished.append(kernel.name)
    for kernel in kernels:
        kernel.address  # noqa: B018
    if progress is not None:
        progress("", len(kernels), len(kernels))
    return len(kernels)


def _next(waiting: deque[Function]) -> Function | None:
    try:
        return waiting.popleft()
    except IndexError:
        return None


@contextmanager
def _processes(count: int) -> Iterator[list[subprocess.Popen[str]]]:
    """So many other processes, as far as the system lets us; they end when this does."""
    started: list[subprocess.Popen[str]] = []
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    try:
        with suppress(OSError):
            for _ in range(count):
                started.append(
                    subprocess.Popen(
                        [sys.executable, "-c", _OTHER], env=environment, text=True,
                        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
                    )
                )  # fmt: skip
        yield started
    finally:
        for other in started:
            other.kill()  # it has nothing left to do, or this process was interrupted
            other.wait()
            for pipe in (other.stdin, other.stdout):
                if pipe is not None:
                    with suppress(OSError):
                        pipe.close()


def _feed(other: subprocess.Popen[str], waiting: deque[Function], finished: deque[str]) -> None:
    """Hand kernels to another process, one after another, until none is left or it gives no answer."""
    assert other.stdin is not None
    assert other.stdout is not None
    with suppress(OSError, ValueError):  # it died, or its pipes were closed
        if not other.stdout.readline():  # it is there
            return
        while (kernel := _next(waiting)) is not None:
            other.stdin.write(f"{kernel.name}\n")
            other.stdin.flush()
            if not other.stdout.readline():
                return
            finished.append(kernel.name)


def serve() -> None:
    """The life of another process: compile what is asked for on standard input, and say so."""
    every: list[Function] = [*TEAM, *Kernel.known]
    known = {kernel.name: kernel for kernel in every}
    gc.disable()  # most of a compiler's objects live as long as this process: looking for garbage took a tenth of it
    print(flush=True)
    for line in sys.stdin:
        known[line.strip()].address  # noqa: B018
        print(flush=True)
