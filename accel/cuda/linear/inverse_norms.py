"""Inverse lengths: 1/‖x‖, and 0 for a zero vector. Squares are summed in float64, where none overflows or vanishes."""

from __future__ import annotations

import math

import numpy as np
from numba import cuda

from accel.cuda.ptx.numbers import wide
from accel.cuda.runtime.arrays import F32, Array, empty
from accel.cuda.runtime.kernels import blocks, device, kernel
from accel.cuda.runtime.reduce import THREADS
from accel.shared.lazy import Keys


def with_rates(k: Array | Keys) -> Keys:
    """Keys (KV, S, D) with what must be known of them."""
    if isinstance(k, Keys):
        return k
    rates = empty(k.shape[:2], F32)
    write_rates(k, rates)
    return Keys(k, rates)


def write_rates(k: Array, rates: Array) -> None:
    """1/‖k‖ of keys (KV, S, D) to rates (KV, S)."""
    if rates.size:
        _rates[(blocks(k.shape[1], THREADS), k.shape[0]), THREADS](k, rates)


@device
def rate_of(squares):
    """1/√squares, 0 for 0."""
    rate = 0.0
    if squares != 0:
        rate = 1 / math.sqrt(squares)
    return rate


@kernel
def _rates(k, rates):
    j, head = cuda.blockIdx.x * cuda.blockDim.x + cuda.threadIdx.x, cuda.blockIdx.y
    if j < k.shape[1]:
        squares = 0.0
        for d in range(k.shape[2]):
            x = np.float64(wide(k[head, j, d]))
            squares += x * x
        rates[head, j] = rate_of(squares)
