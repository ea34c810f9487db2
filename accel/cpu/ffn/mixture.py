"""A mixture of experts: the tokens of a pass are grouped by expert, and each expert's FFN runs on its own.

    y = Σ_{e ∈ chosen} share_e FFN_e(x)

An expert's rows of x are gathered, go through the kernels of `gated_ffn`, and are added to y in the order of the
experts: a token's sum has the same order whatever tokens stand beside it.
"""

from __future__ import annotations

import numpy as np

from accel.cpu.ffn.call import gated_ffn
from reference import contract
from reference.experts import Experts
from reference.mixture import tokens_by_expert


def mixture_ffn(
    x: np.ndarray, experts: Experts, chosen: np.ndarray, shares: np.ndarray, *, act: str = "silu"
) -> np.ndarray:
    """Σ_{e ∈ chosen} share_e FFN_e(x): x (T, E), X experts, chosen and shares (T, K) -> (T, E) float32."""
    contract.mixture_ffn(x, experts, chosen, shares, act)
    y, shares = np.zeros(x.shape, np.float32), shares.astype(np.float32, copy=False)
    for expert, rows, columns in tokens_by_expert(chosen, len(experts)):
        own = experts[expert]
        y[rows] += shares[rows, columns, None] * gated_ffn(x[rows], own.w_gate, own.w_up, own.w_down, act=act)
    return y
