"""The gate of a feed-forward network: act(g) · u, both float32, stored as the matrix that it feeds."""

from __future__ import annotations

import math

import numpy as np
from numba import cuda

from accel.cuda.ptx.numbers import narrow, wide
from accel.cuda.runtime.arrays import Array, empty
from accel.cuda.runtime.kernels import blocks, device, kernel
from accel.cuda.runtime.reduce import THREADS
from reference.contract import ACTIVATIONS


def gated(gate: Array, up: Array | None, act: str, dtype: np.dtype) -> Array:
    """act(gate) · up, or act(gate) alone: (T, F) -> (T, F)."""
    out = empty(gate.shape, dtype)
    if out.size:
        grid = gate.shape[0], blocks(gate.shape[1], THREADS)
        _gated[grid, THREADS](gate, gate if up is None else up, int(up is None), ACTIVATIONS.index(act), out)
    return out


@device
def activation(x, act):
    """silu (0): x / (1 + e^-x), by e^-|x| so that nothing overflows; gelu_tanh (1)."""
    y = x
    if act == 0:
        e = math.exp(-abs(x))
        y = x / (np.float32(1) + e)
        if x < 0:
            y *= e
    else:
        inner = np.float32(0.7978845608028654) * (x + np.float32(0.044715) * x * x * x)
        y = np.float32(0.5) * x * (np.float32(1) + math.tanh(inner))
    return y


@kernel
def _gated(gate, up, alone, act, out):
    t, i = cuda.blockIdx.x, cuda.blockIdx.y * cuda.blockDim.x + cuda.threadIdx.x
    if i < out.shape[1]:
        y = activation(wide(gate[t, i]), act)
        if alone == 0:
            y *= wide(up[t, i])
        out[t, i] = narrow(out, y)
