"""The feed-forward network, dense and of chosen neurons."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numba import cuda

from accel.cuda.ffn import gathered
from accel.cuda.ffn.activation import gated
from accel.cuda.linear.halves import feeds
from accel.cuda.linear.inverse_norms import write_rates
from accel.cuda.linear.maps import linear, linear_each
from accel.cuda.linear.sums import add
from accel.cuda.runtime.arrays import F32, Array, empty
from accel.cuda.runtime.errors import listed
from accel.cuda.runtime.kernels import blocks, kernel
from accel.cuda.runtime.moves import take
from accel.cuda.runtime.reduce import THREADS
from reference import contract


def gated_ffn(x: Array, w_gate: Array, w_up: Array, w_down: Array, *, act: str = "silu") -> Array:
    """W_down (act(W_gate x) * (W_up x)): x (T, E), w_gate and w_up (F, E), w_down (E, F) -> (T, E) float32."""
    contract.gated_ffn(x, w_gate, w_up, w_down, act)
    gate, up = linear_each(x, [(w_gate, None), (w_up, None)])
    return linear(gated(gate, up, act, feeds(w_down.dtype)), w_down)


def sparse_ffn(
    x: Array,
    w_gate: Array,
    w_up: Array,
    w_down: Array,
    neurons: Array,
    *,
    compensator: Any = None,
    act: str = "silu",
) -> Array:
    """W_down[:, M] (act(W_gate[M] x) * (W_up[M] x)) + C2 act(C1 x): x (T, E), M = neurons (K,) ascending -> (T, E).

    On tensor cores the weights are read where they stand; elsewhere the chosen rows are gathered first, W_down's too,
    which lie neuron by neuron.
    """
    sizes = contract.sparse_ffn(x, w_gate, w_up, w_down, neurons, compensator, act)
    neurons = listed("neurons", neurons, sizes["F"])
    if gathered.fits(w_gate, w_up, w_down, neurons, x):
        y = gathered.gathered_ffn(x, w_gate, w_up, w_down, neurons, act)
    else:
        gate, up, down = (_rows(w, neurons) for w in (w_gate, w_up, w_down.axes(1, 0)))
        y = gated_ffn(x, gate, up, down.axes(1, 0), act=act)
    if compensator is None:
        return y
    hidden = gated(linear(x, compensator.c1), None, act, feeds(compensator.c2.dtype))
    return add(y, linear(hidden, compensator.c2)).held


def griffin_statistic(x: Array, w_gate: Array, w_up: Array, *, act: str = "silu") -> Array:
    """GRIFFIN's statistic of a block: Z = act(W_gate x) * (W_up x), each token's row divided by its length, then the
    length over tokens: x (T, E) -> (F,) float32."""
    sizes = contract.griffin_statistic(x, w_gate, w_up, act)
    z, out = gated(linear(x, w_gate), linear(x, w_up), act, F32), empty((sizes["F"],), F32)
    rates = empty((1, sizes["T"]), F32)
    write_rates(z.split(0, 1), rates)
    if out.size:
        _lengths[blocks(sizes["F"], THREADS), THREADS](z, rates, out)
    return out


def neuron_magnitudes(w_gate: Array, w_up: Array, w_down: Array) -> Array:
    """‖gate row‖ · ‖up row‖ · ‖down column‖: (F, E), (F, E), (E, F) -> (F,) float32."""
    sizes = contract.neuron_magnitudes(w_gate, w_up, w_down)
    rates = empty((3, sizes["F"]), F32)
    for n, weight in enumerate((w_gate, w_up, w_down.axes(1, 0))):
        write_rates(weight.split(0, 1), rates[n : n + 1])
    out = empty((sizes["F"],), F32)
    if out.size:
        _magnitudes[blocks(sizes["F"], THREADS), THREADS](rates, out)
    return out


def _rows(weight: Array, neurons: Array) -> Array:
    """Rows of a matrix (F, E) -> (K, E)."""
    return take(weight.split(0, 1), neurons.split(0, 1))[0]


@kernel
def _lengths(z, rates, out):
    i = cuda.blockIdx.x * cuda.blockDim.x + cuda.threadIdx.x
    if i < out.shape[0]:
        squares = 0.0
        for t in range(z.shape[0]):
            x = np.float64(z[t, i]) * np.float64(rates[0, t])
            squares += x * x
        out[i] = np.float32(math.sqrt(squares))


@kernel
def _magnitudes(rates, out):
    i = cuda.blockIdx.x * cuda.blockDim.x + cuda.threadIdx.x
    if i < out.shape[0]:
        product = 1.0
        for n in range(3):
            if rates[n, i] == 0:
                product = 0.0
            else:
                product /= np.float64(rates[n, i])
        out[i] = np.float32(product)
