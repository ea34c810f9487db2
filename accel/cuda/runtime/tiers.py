"""Which kernels a device can run. Behind a name of the contract stand up to three:

    wgmma       tensor cores of compute capability 9.0, by their own instructions
    mma         tensor cores of compute capability 8.0 and later
    portable    any device and type, and the simulator

THRESHER_CUDA_TIER names the highest that is taken, so that a newer device can try an older one's kernels.
"""

from __future__ import annotations

import os
from functools import cache

from accel.cuda.ptx.simulator import SIMULATED
from accel.cuda.runtime.arrays import BF16, F16
from accel.cuda.runtime.device import machine

TIERS = ("portable", "mma", "wgmma")
FORMS = {BF16: "bf16", F16: "f16"}  # what tensor cores multiply, as their instructions call it


@cache
def tier() -> str:
    """The highest tier of this process. ValueError where THRESHER_CUDA_TIER names none."""
    asked = os.environ.get("THRESHER_CUDA_TIER", TIERS[-1])
    if asked not in TIERS:
        raise ValueError(f"THRESHER_CUDA_TIER: got {asked!r}, wanted one of {', '.join(TIERS)}")
    if SIMULATED:
        return "portable"
    capability = machine().capability
    most = "wgmma" if capability[0] == 9 else "mma" if capability[0] >= 8 else "portable"
    return min(most, asked, key=TIERS.index)
