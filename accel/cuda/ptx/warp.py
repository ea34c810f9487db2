"""Sums over the threads of a warp, which pass numbers to each other without memory.

    x_l += x_(l xor 16), x_l += x_(l xor 8), … , x_l += x_(l xor 1)      in every lane l the same sum, in one order

    y_l = x_0 + … + x_l                                                  what stands up to each lane

In the simulator, which knows no warps, a thread is a warp by itself.
"""

from __future__ import annotations

from typing import Any

from numba import cuda

from accel.cuda.ptx.simulator import SIMULATED

if SIMULATED:

    def warp_sum(x: Any) -> Any:
        """The sum of every lane's x, in every lane."""
        return x

    def warp_sum_to(x: Any) -> Any:
        """The sum of the x of all lanes up to this one."""
        return x

else:

    @cuda.jit(device=True, inline="always")
    def warp_sum(x):
        """The sum of every lane's x, in every lane."""
        for n in range(5):
            x += cuda.shfl_xor_sync(0xFFFFFFFF, x, 16 >> n)
        return x

    @cuda.jit(device=True, inline="always")
    def warp_sum_to(x):
        """The sum of the x of all lanes up to this one."""
        lane = cuda.laneid
        for n in range(5):
            other = cuda.shfl_up_sync(0xFFFFFFFF, x, 1 << n)
            if lane >= 1 << n:
                x += other
        return x
