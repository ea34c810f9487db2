"""How many cores this process may keep busy."""

from __future__ import annotations

import math
import os
from pathlib import Path

from accel.shared.groups import groups
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
    return min((quota for group in groups("cpu", root) if (quota := _quota(group)) > 0), default=math.inf)


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
