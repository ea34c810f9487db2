"""How many cores this process may keep busy."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from pathlib import Path

from reference.checks import require


def thread_count() -> int:
    """THRESHER_NUM_THREADS, or as many threads as there are cores that this process may use.

    A container may be allowed less time than its cores could give: more threads would use it up early, and then all
    of them stand still together until the next period.
    """
    wanted = os.environ.get("THRESHER_NUM_THREADS")
    if wanted is None:
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        return max(1, min(cores, math.ceil(min(cores, cpu_quota()))))
    require(
        wanted.isdigit() and int(wanted) >= 1,
        f"THRESHER_NUM_THREADS: got {wanted!r}, wanted a whole number of at least 1",
    )
    return int(wanted)


def cpu_quota(root: Path = Path("/")) -> float:
    """Cores' worth of time that Linux grants the control groups of this process; infinity where nothing limits it."""
    return min((quota for group in _groups(root) if (quota := _quota(group)) > 0), default=math.inf)


def _groups(root: Path) -> Iterator[Path]:
    """The directories that may limit this process: its own groups and all that they lie in.

    Inside a container a group's path is often that of the host, which is not to be seen there. What limits the
    container then stands at the top.
    """
    try:
        lines = (root / "proc/self/cgroup").read_text().splitlines()
    except OSError:  # not Linux
        return
    top = root / "sys/fs/cgroup"
    for line in lines:
        number, controllers, path = line.split(":", 2)
        if number == "0":  # version 2, alone or beside version 1
            tops = [top, top / "unified"]
        elif "cpu" in controllers.split(","):
            tops = [top / controllers, top / "cpu"]
        else:
            continue
        inner = Path(*(part for part in Path(path).parts if part not in ("/", "..")))
        yield from (above / part for above in tops for part in (inner, *inner.parents))


def _quota(group: Path) -> float:
    """Cores that one group grants, by the files of version 2 or 1; 0 where it does not say."""
    try:
        if (group / "cpu.max").exists():
            allowed, period = (group / "cpu.max").read_text().split()
        else:
            allowed, period = ((group / f"cpu.cfs_{name}_us").read_text() for name in ("quota", "period"))
        return float(allowed) / float(period) if allowed != "max" else 0.0
    except (OSError, ValueError, ZeroDivisionError):
        return 0.0
