"""FastForward's part of the contract: the FFN, dense or on chosen neurons (ffn.py), and their choice (predictor.py)."""

from __future__ import annotations

import numpy as np

from accel.cpu.ffn import feed_forward
from accel.cpu.topk import keep_top
from reference.checks import listed, match, one_of, whole
from reference.layers import ACTIVATIONS
from reference.predictor import Compensator


def gated_ffn(
    x: np.ndarray, w_gate: np.ndarray, w_up: np.ndarray, w_down: np.ndarray, *, act: str = "silu"
) -> np.ndarray:
    """W_down (act(W_gate x) * (W_up x)): x (T, E), w_gate and w_up (F, E), w_down (E, F) -> (T, E) float32."""
    match(x=(x, "T E"), w_gate=(w_gate, "F E"), w_up=(w_up, "F E"), w_down=(w_down, "E F"))
    one_of("act", act, ACTIVATIONS)
    return feed_forward(x, w_gate, w_up, w_down, None, act == "silu")


def sparse_ffn(
    x: np.ndarray,
    w_gate: np.ndarray,
    w_up: np.ndarray,
    w_down: np.ndarray,
    neurons: np.ndarray,
    *,
    compensator: Compensator | None = None,
    act: str = "silu",
) -> np.ndarray:
    """W_down[:, M] (act(W_gate[M] x) * (W_up[M] x)) + C2 act(C1 x): x (T, E), M = neurons (K,) ascending -> (T, E)."""
    sizes = match(x=(x, "T E"), w_gate=(w_gate, "F E"), w_up=(w_up, "F E"), w_down=(w_down, "E F"))
    one_of("act", act, ACTIVATIONS)
    listed("neurons", neurons, sizes["F"])
    if compensator is not None:
        match(x=(x, "T E"), c1=(compensator.c1, "hidden E"), c2=(compensator.c2, "E hidden"))
    chosen = np.ascontiguousarray(neurons, np.int64)
    return feed_forward(x, w_gate, w_up, w_down, chosen, act == "silu", compensator)


def select_neurons(scores: np.ndarray, keep: int) -> np.ndarray:
    """The `keep` highest-scoring neurons, ties to the lower: scores (F,) -> (min(keep, F),) int64, ascending."""
    match(scores=(scores, "F"))
    return keep_top(scores[None], whole("keep", keep))[0]
