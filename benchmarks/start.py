"""How long a user waits before anything happens: import, --help, and kernels that are compiled already.

Every figure is a process of its own, from its start to its end; the bare interpreter stands beside them.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from time import perf_counter

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
        with tempfile.TemporaryDirectory() as empty:
            started = perf_counter()
            _python("-c", WARM_UP, NUMBA_CACHE_DIR=empty)
            report.row("first start: all kernels compiled", [perf_counter() - started], unit="s")


def _python(*arguments: str, **environment: str) -> str:
    """What a fresh interpreter prints."""
    command = [sys.executable, *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=True, env={**os.environ, **environment}).stdout


if __name__ == "__main__":
    main("start", run)
