"""Sums and maxima over the threads of a block, and the size of the blocks that the portable kernels are written for.

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
