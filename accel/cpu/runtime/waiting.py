"""How a thread in compiled code waits for another: it looks a few times, then lets others have the core."""

from __future__ import annotations

import sys

from numba import njit, types

from accel.cpu.simd.emit import I32, WORD, call_llvm, machine_function

SPINS = 64  # looks one after the other: a few microseconds
YIELDS = 2000  # looks with the core offered to others before each: about a millisecond where nobody wants it
NAP = 50  # microseconds

_HAS_POSIX = sys.platform != "win32"  # elsewhere waiting is looking


@machine_function(types.void)
def _let_others_run(b):
    """Offer this core to threads that wait for one; returns at once where there are none."""
    if _HAS_POSIX:
        call_llvm(b, "sched_yield", I32)


@machine_function(types.void, WORD)
def _sleep(b, microseconds):
    """Let the core go for so long."""
    if _HAS_POSIX:
        call_llvm(b, "usleep", I32, b.trunc(microseconds, I32))


@njit
def pause(looks):
    """What to do after looking so many times in vain.

    The one that is waited for may need this very core, and a container's time runs out for all its threads together:
    looking on would hold up what is waited for.
    """
    if looks >= SPINS + YIELDS:
        _sleep(NAP)
    elif looks >= SPINS:
        _let_others_run()
