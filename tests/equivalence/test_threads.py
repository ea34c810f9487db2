"""The threads of accel.cpu: interrupts, forks, more threads than cores, a container's limits."""

from __future__ import annotations

import math
import os
import signal
import subprocess
import sys
import textwrap
import threading
from pathlib import Path

import numpy as np
import pytest

from accel import cpu
from accel.cpu.runtime import cores
from accel.cpu.runtime.code import compiled
from accel.cpu.runtime.waiting import SPINS, YIELDS, pause

resource = pytest.importorskip("resource")


def python(script: str, *, seconds: float = 120, **environment: str) -> str:
    """What a fresh interpreter prints; a test fails where it does not end, or ends badly."""
    run = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script)],
        env={**os.environ, **environment}, capture_output=True, text=True, timeout=seconds,
    )  # fmt: skip
    assert run.returncode == 0, run.stdout + run.stderr
    return run.stdout


# A kernel that ends when `wanted` workers are in it: only then has it counted so many.
MEET = """
    import os, random, signal, threading, time
    import numpy as np
    from accel import cpu
    from accel.cpu.runtime.kernels import kernel
    from accel.cpu.runtime.team import THREADS
    from accel.cpu.simd import fetch_add, peek

    @kernel
    def meet(task, worker, seen, wanted):
        fetch_add(seen, 1)
        looks = 0
        while peek(seen) < wanted and looks < 1 << 26:
            looks += 1

    def came():
        seen = np.zeros(1, np.int64)
        meet(seen.ctypes.data, THREADS)
        return int(seen[0])

    x = np.ones((300, 96), np.float32)
    cpu.add(x, x)
    came()
"""


def test_after_many_interrupts_all_threads_still_share_a_call() -> None:
    script = """
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a job in the background starts with it ignored

    def hail():
        rng = random.Random(0)
        while not done:
            time.sleep(rng.random() * 2e-3)
            if inside:
                counted = interrupts
                os.kill(os.getpid(), signal.SIGINT)
                while interrupts == counted:  # none comes while the last is being counted
                    time.sleep(1e-4)

    done, inside, interrupts, end = False, False, 0, time.monotonic() + 60
    threading.Thread(target=hail, daemon=True).start()
    while interrupts < 600 and time.monotonic() < end:
        try:
            inside = True
            while True:
                cpu.add(x, x)
        except KeyboardInterrupt:
            inside = False
            interrupts += 1
    done = True
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    print(interrupts, THREADS, max(came() for _ in range(3)))
    """
    if not hasattr(signal, "SIGINT") or os.name != "posix":
        pytest.skip("signals of another system")
    interrupts, threads, came = python(MEET + script, THRESHER_NUM_THREADS="3").split()
    assert int(interrupts) > 50
    assert came == threads == "3"


@pytest.mark.skipif(not hasattr(os, "fork"), reason="a system without fork")
def test_a_child_forked_while_another_thread_computes_has_a_team_of_its_own() -> None:
    script = """
    import faulthandler
    from accel.cpu.runtime import memory, team

    gate, held, keys = threading.Event(), threading.Event(), np.ones((2, 40, 8), np.float32)
    cpu.keydiff_scores(keys)

    def compute():
        with memory.scratch._lock:  # as another thread may at any time
            held.set()
            gate.wait()

    def share():
        seen = np.zeros(1, np.int64)
        meet(seen.ctypes.data, THREADS + 1)  # never comes: the team is in use until it gives up

    for target in (compute, share):
        threading.Thread(target=target, daemon=True).start()
    held.wait()
    time.sleep(0.01)
    for _ in range(3):
        if (child := os.fork()) == 0:
            faulthandler.dump_traceback_later(30, exit=True)
            cpu.keydiff_scores(keys)
            os._exit(0 if came() == THREADS else 3)
        status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        print(status)
    gate.set()
    """
    assert python(MEET + script, THRESHER_NUM_THREADS="3").split() == ["0", "0", "0"]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="a system without fork")
def test_a_child_forked_while_another_thread_compiles_can_compile() -> None:
    script = """
    import faulthandler
    from accel.cpu.runtime import code

    began = threading.Event()

    def compile_for_long():
        with code.lock:
            began.set()
            time.sleep(0.3)

    threading.Thread(target=compile_for_long).start()
    began.wait()
    if (child := os.fork()) == 0:
        faulthandler.dump_traceback_later(30, exit=True)
        code.Code(lambda a: None, 1).address
        os._exit(0)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
    """
    assert python(MEET + script).split() == ["0"]


@pytest.mark.skipif(not hasattr(resource, "RUSAGE_THREAD"), reason="a system that does not count by thread")
def test_who_waits_for_long_lets_go_of_the_core() -> None:
    """Counted by the system: how often this thread went to sleep of itself. Looking on and on it never would."""

    @compiled
    def wait(looks, times):  # type: ignore[no-untyped-def]
        for _ in range(times):
            pause(looks)

    wait(0, 1)
    before = resource.getrusage(resource.RUSAGE_THREAD).ru_nvcsw
    wait(SPINS + YIELDS, 50)
    assert resource.getrusage(resource.RUSAGE_THREAD).ru_nvcsw - before >= 50


def test_any_number_of_python_threads_may_call_at_once() -> None:
    x = np.arange(12000, dtype=np.float32).reshape(300, 40)
    failures: list[object] = []

    def compute() -> None:
        for _ in range(50):
            if not np.array_equal(cpu.add(x, x), 2 * x):
                failures.append("differs")

    threads = [threading.Thread(target=compute) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []


def write(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


TWO = {"proc/self/cgroup": "0::/a/b\n"}
ONE = {"proc/self/cgroup": "9:name=systemd:/\n4:memory:/m\n3:cpu,cpuacct:/docker/12\n0::/\n"}


def granted(folder: str, quota: str, period: str = "100000") -> dict[str, str]:
    """A group's two files of version 1."""
    return {f"sys/fs/cgroup/{folder}/cpu.cfs_quota_us": quota, f"sys/fs/cgroup/{folder}/cpu.cfs_period_us": period}


FILES = {
    "version 2, a group of its own": (TWO | {"sys/fs/cgroup/a/b/cpu.max": "150000 100000\n"}, 1.5),
    "version 2, no limit": (TWO | {"sys/fs/cgroup/a/b/cpu.max": "max 100000\n"}, math.inf),
    "version 2, the group above": (
        TWO | {"sys/fs/cgroup/a/b/cpu.max": "400000 100000\n", "sys/fs/cgroup/a/cpu.max": "50000 100000\n"},
        0.5,
    ),
    "version 2, the host's path inside a container": (TWO | {"sys/fs/cgroup/cpu.max": "200000 100000\n"}, 2.0),
    "version 2, a path out of the container": (
        {"proc/self/cgroup": "0::/../../other\n", "sys/fs/cgroup/cpu.max": "300000 100000\n"},
        3.0,
    ),
    "version 2 beside version 1": (
        {"proc/self/cgroup": "0::/a\n", "sys/fs/cgroup/unified/a/cpu.max": "100000 50000\n"},
        2.0,
    ),
    "version 1": (ONE | granted("cpu,cpuacct/docker/12", "250000\n"), 2.5),
    "version 1, the host's path inside a container": (ONE | granted("cpu", "100000\n"), 1.0),
    "version 1, no limit": (ONE | granted("cpu", "-1\n"), math.inf),
    "damaged": (TWO | {"sys/fs/cgroup/a/b/cpu.max": "many\n", "sys/fs/cgroup/a/cpu.max": "1 0\n"}, math.inf),
    "another system": ({}, math.inf),
}


@pytest.mark.parametrize("name", FILES)
def test_a_containers_limit_is_found(name: str, tmp_path: Path) -> None:
    files, wanted = FILES[name]
    assert cores.cpu_quota(write(tmp_path, files)) == wanted


@pytest.mark.parametrize(("quota", "wanted"), [(0.2, 1), (1.0, 1), (1.5, 2), (64.0, 4), (math.inf, 4)])
def test_there_are_no_more_threads_than_the_limit_feeds(
    quota: float, wanted: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("THRESHER_NUM_THREADS", raising=False)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(4)), raising=False)
    monkeypatch.setattr(cores, "cpu_quota", lambda: quota)
    assert cpu.thread_count() == wanted
    monkeypatch.setenv("THRESHER_NUM_THREADS", "9")
    assert cpu.thread_count() == 9
