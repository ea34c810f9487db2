"""How much memory this process holds, the most that it has held since a given moment, and how much it may still take.

Linux alone lets a process forget its peak, so elsewhere it is not told: a peak that loading has set would be taken for
the prompt's.
"""

from __future__ import annotations

import ctypes
import gc
import sys
from pathlib import Path

from accel.shared.groups import groups

STATUS, FORGET = Path("/proc/self/status"), Path("/proc/self/clear_refs")


def resident() -> int | None:
    """Bytes in physical memory now, or None where the system does not say."""
    return _status("VmRSS")


def available(root: Path = Path("/")) -> int | None:
    """Bytes that this process can still take without pushing others out: what the machine has, or its control groups
    leave of what they grant; None where the system does not say."""
    free = _field(root / "proc/meminfo", "MemAvailable")
    if free is None:
        return None
    granted = [left for group in groups("memory", root) if (left := _left(group)) is not None]
    return max(0, min([1024 * free, *granted]))


def _left(group: Path) -> int | None:
    """Bytes that a group grants beyond what it holds, by the files of version 2 or 1. What it holds of files it could
    forget, so that does not count."""
    names = ("memory.max", "memory.current", "inactive_file")
    if not (group / names[0]).exists():
        names = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
    try:
        most, held = (int((group / name).read_text()) for name in names[:2])
    except (OSError, ValueError):  # "max" is no number
        return None
    return most - held + (_field(group / "memory.stat", names[2]) or 0)


def _field(file: Path, name: str) -> int | None:
    """The number after a name at the start of a line."""
    try:
        lines = file.read_text(encoding="ascii").split("\n")
    except OSError:
        return None
    words = (line.replace(":", " ").split() for line in lines)
    return next((int(line[1]) for line in words if len(line) > 1 and line[0] == name), None)


def give_back() -> None:
    """Give back to the system what was freed, where the C library keeps it for later."""
    gc.collect()
    if sys.platform == "linux" and (trim := getattr(ctypes.CDLL(None), "malloc_trim", None)):  # glibc
        trim(0)


def forget_peak() -> bool:
    """Let the peak start again from what is in use now; False where the system cannot.

    What was freed is first given back to the system, so that it is not counted as if it were in use.
    """
    if not FORGET.exists():
        return False
    give_back()
    try:
        FORGET.write_text("5", encoding="ascii")
    except OSError:
        return False
    return True


def peak() -> int | None:
    """The most bytes in physical memory since `forget_peak`, or None where the system does not say."""
    return _status("VmHWM")


def _status(name: str) -> int | None:
    found = _field(STATUS, name)
    return None if found is None else 1024 * found
