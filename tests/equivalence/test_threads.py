"""The threads of accel.cpu: interrupts, forks, more threads than cores, a container's limits."""

from __future__ import annotations

import math
import os
import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import pytest

from accel import cpu
from accel.cpu.runtime import cores


def python(script: str, *, seconds: float = 120, **environment: str) -> str:
    """What a fresh interpreter prints; a test fails where it does not end, or ends badly."""
    run = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script)],
        env={**os.environ, **environment}, capture_output=True, text=True, timeout=seconds,
    )  # fmt: skip
    assert run.returncode == 0, run.stdout + run.stderr
    return run.stdout


INTERRUPTED = """
    import ctypes, os, random, signal, threading, time
    import numpy as np
    from accel import cpu

    me, x = threading.get_native_id(), np.ones((300, 96), np.float32)
    cpu.add(x, x)
    workers = set()  # that share a long call
    rng, done = random.Random(0), False

    def hail():
        while not done:
            time.sleep(rng.random() * 2e-3)
            os.kill(os.getpid(), signal.SIGINT)

    threading.Thread(target=hail, daemon=True).start()
    interrupts, end = 0, time.monotonic() + 8
    while interrupts < 1000 and time.monotonic() < end:
        try:
            while True:
                cpu.add(x, x)
        except KeyboardInterrupt:
            interrupts += 1
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    done = True
    from accel.cpu.runtime.kernels import kernel
    from accel.cpu.runtime.team import THREADS
    from numba import carray
    from accel.cpu.simd import fetch_add, peek, words_at

    @kernel
    def meet(task, worker, seen, wanted):  # ends when so many workers have come
        fetch_add(seen, 1)
        looks = 0
        while peek(seen) < wanted and looks < 1 << 28:
            looks += 1

    for _ in range(3):  # a helper may have been asleep
        seen = np.zeros(1, np.int64)
        meet(seen.ctypes.data, THREADS)
    print(interrupts, THREADS, seen[0])
"""


@pytest.mark.parametrize("name", ["posix"])
def test_after_a_thousand_interrupts_all_threads_still_share_a_call(name: str) -> None:
    if os.name != name:
        pytest.skip("signals of another system")
    interrupts, threads, came = python(INTERRUPTED, THRESHER_NUM_THREADS="3").split()
    assert int(interrupts) > 100
    assert came == threads == "3"
