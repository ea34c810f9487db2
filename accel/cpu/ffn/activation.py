"""The activations, and what they make of a gate."""

from __future__ import annotations

import numpy as np

from accel.cpu.runtime.arrays import address
from accel.cpu.runtime.kernels import kernel
from accel.cpu.simd import LANES, LOG2E, exp2, fetch_add, fma, load, load_some, njit, smaller, splat, store, store_some


def activated(x: np.ndarray, silu: bool, times: np.ndarray | None = None) -> np.ndarray:
    """act(x), or act(x) * times, of every number, in place: float32, contiguous, of one shape."""
    if x.size:
        _activate(address(x), 0 if times is None else address(times), x.size, int(silu))
    return x


@njit(forceinline=True)
def gated(x, silu):
    """x · σ(x), or GELU's x · σ(2√(2/π) (x + 0.044715 x³)), which is the tanh form without its cancellation."""
    z = x
    if not silu:
        z = fma(x * x * x, splat(np.float32(0.044715)), x) * splat(np.float32(2 * np.sqrt(2 / np.pi)))
    power = smaller(z * splat(np.float32(-LOG2E)), splat(np.float32(128.0)))  # 2^128 is infinity, and the result 0
    return x / (splat(np.float32(1.0)) + exp2(power))


@kernel
def _activate(task, worker, x, times, count, silu):
    span = 64 * LANES
    while True:
        first = fetch_add(task, 1) * span
        if first >= count:
            return
        for i in range(first, min(first + span, count), LANES):
            if i + LANES <= count:
                value = gated(load(x + 4 * i), silu)
                store(x + 4 * i, value * load(times + 4 * i) if times else value)
            else:
                value = gated(load_some(x + 4 * i, count - i), silu)
                store_some(x + 4 * i, count - i, value * load_some(times + 4 * i, count - i) if times else value)
