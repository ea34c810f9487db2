"""How long a user waits before anything happens: import, --help, and kernels that are compiled already.

Every figure is a process of its own, from its start to its end; the bare interpreter stands beside them.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Callable

from benchmarks.common import Race, Report, main

ROUNDS = {"full": 7, "short": 5, "smallest": 2}
LOAD = "from time import perf_counter; import accel; cpu = accel.backend('cpu'); s = perf_counter(); "
WARM_UP = f"{LOAD}cpu.warmup(); print(perf_counter() - s)"


def run(report: Report) -> None:
    rounds = ROUNDS[report.size]
    _python("-c", WARM_UP)  # kernels are on disk from here on
    ways: dict[str, Callable[[], object]] = {
        "bare interpreter": lambda: _python("-c", "pass"),
        "import thresher": lambda: _python("-c", "import thresher"),
        "thresher --help": lambda: _python("-m", "thresher", "--help"),
        "import accel.cpu": lambda: _python("-c", "import accel.cpu"),
    }
    race = Race(ways, rounds, settle=0)
    report.point("a process from start to end", {"python": sys.version_info.minor}, race.seconds)
    for name in ("import thresher", "thresher --help"):
        report.row(name, race.seconds[name], unit="s", reach=0.5, stretch=0.2, at_most=True)
    loading = [float(_python("-c", WARM_UP)) for _ in range(rounds)]
    measure = "second start: all kernels from disk"
    report.row(measure, loading, unit="s", reach=2, stretch=0.5, at_most=True)
    if report.size == "full":
        dense = "from reference import Policy; cpu.warmup(policy=Policy())"
        seconds, busy = _first_start(dense)
        report.row("first start: what any model needs", [seconds], unit="s", reach=15, stretch=8, at_most=True)
        report.row("the same, all cores together", [busy], unit="CPU s")
        report.row("first start: all kernels compiled", [_first_start("cpu.warmup()")[0]], unit="s")


def _first_start(command: str) -> tuple[float, float]:
    """Seconds of a process that finds nothing on disk, and of the processor in it and those that it starts."""
    before = os.times()
    with tempfile.TemporaryDirectory() as empty:
        _python("-c", f"from accel import cpu; {command}", NUMBA_CACHE_DIR=empty)
    after = os.times()
    busy = after.children_user + after.children_system - before.children_user - before.children_system
    return after.elapsed - before.elapsed, busy


def _python(*arguments: str, **environment: str) -> str:
    """What a fresh interpreter prints."""
    command = [sys.executable, *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=True, env={**os.environ, **environment}).stdout


if __name__ == "__main__":
    main("start", run)
