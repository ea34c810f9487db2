"""Linear maps. Sums are float32 and leave as float32; operands of 16 bits go to the tensor cores.

With a device the products are cuBLASLt's, through nvmath-python: plain products are what a library does best, and this
one is 5 MB over what is installed anyway. Without it, and in the simulator, a portable kernel computes them.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate
from typing import Any

import numpy as np
from numba import cuda

from accel.cuda.linear import cublas
from accel.cuda.linear.halves import doubled, halved
from accel.cuda.ptx.numbers import wide
from accel.cuda.ptx.simulator import SIMULATED
from accel.cuda.runtime.arrays import F16, F32, Array, empty, under_each_other
from accel.cuda.runtime.kernels import blocks, kernel
from accel.cuda.runtime.moves import cast, packed
from accel.cuda.runtime.reduce import THREADS
from accel.cuda.runtime.views import plain
from reference import contract


def linear(x: Array, weight: Array, bias: Array | None = None) -> Array:
    """x Wᵀ + b: x (T, in), weight (out, in), bias (out,) -> (T, out) float32."""
    sizes = contract.linear(x, weight, bias)
    return multiply(x, weight, bias, empty((sizes["T"], sizes["out"]), F32))


def linear_each(x: Array, maps: Sequence[tuple[Any, Any]]) -> list[Array]:
    """Several linear maps (W, b) of one input: x (T, in) -> (T, out) float32 each. Maps that lie under each other are
    one product, of which each is some columns."""
    outs = [contract.linear(x, weight, bias)["out"] for weight, bias in maps]
    weights, biases = zip(*maps, strict=True)
    weight = under_each_other(weights)
    bias = None if any(b is None for b in biases) else under_each_other(biases)
    if weight is None or (bias is None and any(b is not None for b in biases)):
        return [multiply(x, w, b, empty((len(x), n), F32)) for (w, b), n in zip(maps, outs, strict=True)]
    every = multiply(x, weight, bias, empty((len(x), sum(outs)), F32))
    return [every[:, end - n : end] for n, end in zip(outs, accumulate(outs), strict=True)]


def multiply(x: Array, weight: Array, bias: Array | None, out: Array) -> Array:
    """out = x Wᵀ + b into a float32 array (T, out) that is there already."""
    if not out.size:
        return out
    x = plain(x)  # a residual comes without a norm between, where norms stand after a block alone
    if x.shape[1] and not SIMULATED and cublas.available():
        if x.strides[1] != x.dtype.itemsize:
            x = packed(x)
        if weight.dtype.itemsize not in weight.strides:
            weight = packed(weight)
        if weight.dtype == F16 and x.dtype == F32:
            x, factors = halved(x)
            cublas.product(x, weight, None, out)
            doubled(out, factors, bias)
        else:
            cublas.product(cast(x, weight.dtype), weight, None if bias is None else cast(bias, F32), out)
    else:
        grid = out.shape[0], blocks(out.shape[1], THREADS)
        _multiply[grid, THREADS](x, weight, bias if bias is not None else empty((0,), F32), out)
    return out


@kernel
def _multiply(x, weight, bias, out):
    t, n = cuda.blockIdx.x, cuda.blockIdx.y * cuda.blockDim.x + cuda.threadIdx.x
    if n < out.shape[1]:
        total = np.float32(0)
        for i in range(x.shape[1]):
            total += wide(x[t, i]) * wide(weight[n, i])
        if bias.shape[0] > 0:
            total += wide(bias[n])
        out[t, n] = total
