"""A mixture of experts, on every tier: each expert's FFN on the rows of the tokens that chose it.

    y = Σ_{e ∈ chosen} share_e FFN_e(x)

Which experts a token runs decides what is launched, so the host waits for the router's logits: the choice itself, a few
numbers per token, is then the reference's own. A pass with a mixture is not recorded (recorded.py).
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import cuda

from accel.cuda.ffn.call import gated_ffn
from accel.cuda.ptx.numbers import wide
from accel.cuda.runtime.arrays import F32, Array, to_backend
from accel.cuda.runtime.kernels import blocks, kernel
from accel.cuda.runtime.moves import take, zeros
from accel.cuda.runtime.reduce import THREADS
from accel.cuda.runtime.views import plain, to_numpy
from reference import contract
from reference import mixture as meaning
from reference.experts import Experts
from reference.parts import Mixture


def route(logits: Array, bias: Array | None = None, *, mixture: Mixture) -> tuple[Array, Array]:
    """The experts of every token and their shares: logits (T, X), bias (X,) -> (T, K) int64 ascending, and (T, K)."""
    contract.route(logits, bias, mixture)
    chosen, shares = meaning.route(to_numpy(logits), None if bias is None else to_numpy(bias), mixture=mixture)
    return to_backend(chosen), to_backend(shares)


def mixture_ffn(x: Any, experts: Experts, chosen: Array, shares: Array, *, act: str = "silu") -> Array:
    """Σ_{e ∈ chosen} share_e FFN_e(x): x (T, E), X experts, chosen and shares (T, K) -> (T, E) float32."""
    contract.mixture_ffn(x, experts, chosen, shares, act)
    x, shares, y = plain(x), plain(shares), zeros(x.shape, F32)
    for expert, rows, columns in meaning.tokens_by_expert(to_numpy(chosen), len(experts)):
        own, places = experts[expert], to_backend(np.stack([rows, columns]))
        part = gated_ffn(take(x.split(0, 1), places[:1])[0], own.w_gate, own.w_up, own.w_down, act=act)
        if y.size:
            _add_shares[(len(rows), blocks(y.shape[1], THREADS)), THREADS](plain(part), places, shares, y)
    return y


@kernel
def _add_shares(part, places, shares, y):
    """y[row] += share · part, for every row of an expert."""
    n, i = cuda.blockIdx.x, cuda.blockIdx.y * cuda.blockDim.x + cuda.threadIdx.x
    if i < y.shape[1]:
        row = places[0, n]
        y[row, i] += wide(shares[row, places[1, n]]) * wide(part[n, i])
