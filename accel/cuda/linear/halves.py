"""float16 has little range: a row goes into a product times a power of two, and its results come out divided by it.

    x_t = 2^e_t · h_t with the largest number of h_t from 1 to 2,    W x_t + b = 2^e_t · (W h_t) + b

Nothing is lost but what float16 has no bits for. What a norm or attention made is float16 already and needs none of it;
a gate times an up projection may leave its range, and has subnormals near zero.
"""

from __future__ import annotations

import math

import numpy as np
from numba import cuda

from accel.cuda.ptx.numbers import narrow, wide
from accel.cuda.runtime.arrays import F16, F32, Array, empty
from accel.cuda.runtime.kernels import kernel
from accel.cuda.runtime.reduce import THREADS, block_max


def feeds(dtype: np.dtype) -> np.dtype:
    """How numbers of any size are stored that feed a product with weights of this type."""
    return F32 if dtype == F16 else dtype


def halved(x: Array) -> tuple[Array, Array]:
    """x (T, in) float32 -> its rows in float16 (T, in), and by what the results of each are multiplied (T,)."""
    out, factors = empty(x.shape, F16), empty((len(x),), F32)
    _halve[len(x), THREADS](x, out, factors)
    return out, factors


def doubled(y: Array, factors: Array, bias: Array | None) -> None:
    """y (T, out) times its factors (T,), plus a bias (out,) where there is one, in place."""
    _double[len(y), THREADS](y, factors, factors if bias is None else bias, int(bias is not None))


@kernel
def _halve(x, out, factors):
    memory = cuda.shared.array(THREADS, np.float32)
    t, thread = cuda.blockIdx.x, cuda.threadIdx.x
    largest = np.float32(0)
    i = thread
    while i < x.shape[1]:
        size = abs(x[t, i])
        if size > largest:
            largest = size
        i += THREADS
    largest = block_max(largest, memory)
    exponent = 0
    if largest > 0 and largest <= np.float32(3.4028235e38):
        exponent = math.frexp(largest)[1] - 1
    factor = np.float32(math.ldexp(1.0, exponent))
    i = thread
    while i < x.shape[1]:
        out[t, i] = narrow(out, x[t, i] / factor)
        i += THREADS
    if thread == 0:
        factors[t] = factor


@kernel
def _double(y, factors, bias, added):
    t, n = cuda.blockIdx.x, cuda.threadIdx.x
    while n < y.shape[1]:
        x = y[t, n] * factors[t]
        if added != 0:
            x += wide(bias[n])
        y[t, n] = x
        n += THREADS
