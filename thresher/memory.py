"""How much memory this process holds, and the most that it has held since a given moment.

Linux alone lets a process forget its peak, so elsewhere it is not told: a peak that loading has set would be taken for
the prompt's.
"""

from __future__ import annotations

import ctypes
import gc
import sys
from pathlib import Path

STATUS, FORGET = Path("/proc/self/status"), Path("/proc/self/clear_refs")


def resident() -> int | None:
    """Bytes in physical memory now, or None where the system does not say."""
    return _status("VmRSS")


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
    try:
        lines = STATUS.read_text(encoding="ascii").split("\n")
    except OSError:
        return None
    found = next((line for line in lines if line.startswith(f"{name}:")), None)
    return 1024 * int(found.split()[1]) if found else None
