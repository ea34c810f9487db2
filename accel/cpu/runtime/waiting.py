"""How a thread in compiled code waits for another: it looks a few times, then lets others have the core."""

from __future__ import annotations

from accel.cpu.simd import let_others_run, njit, sleep

SPINS = 64  # looks one after the other: a few microseconds
YIELDS = 2000  # looks with the core offered to others before each: about a millisecond where nobody wants it
NAPS = 500  # looks with a nap before each: about 50 milliseconds, in which a next token or layer most likely comes
NAP = 50  # microseconds


@njit
def pause(looks):
    """What to do after looking so many times in vain.

    The one that is waited for may need this very core, and a container's time runs out for all its threads together:
    looking on would hold up what is waited for.
    """
    if looks >= SPINS + YIELDS:
        sleep(NAP)
    elif looks >= SPINS:
        let_others_run()
