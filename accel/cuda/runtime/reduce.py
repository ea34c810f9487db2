"""Sums and maxima over the threads of a block, votes of a warp, and the sizes that portable kernels are written for.

A tree over shared memory: the order of additions is the same at every call, so that equal inputs give equal bits.
"""

from __future__ import annotations

from numba import cuda

from accel.cuda.ptx.simulator import SIMULATED
from accel.cuda.runtime.kernels import device

THREADS = 2 if SIMULATED else 128  # of a portable block, a power of two; the simulator runs each as a thread of the OS
HALF = THREADS // 2


@device
def block_sum(x, memory):
    """The sum of every thread's x, in every thread; `memory` is a shared array of THREADS numbers."""
    t = cuda.threadIdx.x
    memory[t] = x
    cuda.syncthreads()
    step = HALF
    while step > 0:
        if t < step:
            memory[t] += memory[t + step]
        cuda.syncthreads()
        step >>= 1
    total = memory[0]
    cuda.syncthreads()
    return total


@device
def block_max(x, memory):
    """The largest of every thread's x, in every thread; NaN only where all are."""
    t = cuda.threadIdx.x
    memory[t] = x
    cuda.syncthreads()
    step = HALF
    while step > 0:
        if t < step and not memory[t] >= memory[t + step]:
            memory[t] = memory[t + step]
        cuda.syncthreads()
        step >>= 1
    largest = memory[0]
    cuda.syncthreads()
    return largest


# Threads of a warp go in step and can vote: which of them a condition holds for, one bit each, in all of them. The
# simulator knows no warps, so that a thread is one by itself there.
WARP = 1 if SIMULATED else 32
if SIMULATED:

    def votes(holds):
        """For which threads of the warp it holds."""
        return int(holds)

else:

    @device
    def votes(holds):
        """For which threads of the warp it holds."""
        return cuda.ballot_sync(0xFFFFFFFF, holds)
