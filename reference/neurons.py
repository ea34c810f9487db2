"""Which feed-forward neurons mattered: the statistics behind FastForward's labels, schedule and baselines.

    GRIFFIN     Z = act(W_gate X) * (W_up X), each token's row / its L2 norm;  s_f = L2 norm of column f over the tokens
    magnitude   s_f = ‖W_gate[f]‖ · ‖W_up[f]‖ · ‖W_down[:, f]‖
    mixing      the share of a layer's attention that goes to keys beyond the first block

Sources: GRIFFIN (arXiv 2404.01365) for the first, FastForward (arXiv 2602.00397) for the last and for the weights of
the training targets. Ties: the lower neuron wins. Dtype: the input's, at least float32. Differs from the papers by
chosen values: the product of norms, which bounds what a neuron can write for an input of a given length.
"""

from __future__ import annotations

import numpy as np

from reference import contract
from reference.checks import match, require, widen
from reference.int8 import Matrix, plain
from reference.layers import activate, linear


def mixing(mass: np.ndarray, first: int = 128) -> float:
    """Importance of a layer on one prompt: the share of attention that goes to keys after the first `first` tokens.

    mass (H, S) is `attention_mass` with all S tokens as queries; averaged over heads and queries, diagonal included.
    """
    sizes = match(mass=(mass, "H S"))
    return float(mass[:, first:].sum() / (sizes["H"] * sizes["S"]))


def griffin_statistic(x: np.ndarray, w_gate: Matrix, w_up: Matrix, *, act: str = "silu") -> np.ndarray:
    """How much each neuron takes part in a block: x (T, E), w_gate and w_up (F, E) -> (F,).

    Z = act(W_gate X) * (W_up X), each token's row divided by its L2 norm (a zero row stays zero), then the L2 norm over
    tokens. It costs the two products that a sparse FFN would save.
    """
    contract.griffin_statistic(x, w_gate, w_up, act)
    return statistic_of(linear(x, w_gate), linear(x, w_up), act)


def statistic_of(gate: np.ndarray, up: np.ndarray, act: str) -> np.ndarray:
    """GRIFFIN's statistic from gate = W_gate X and up = W_up X, (T, F) each -> (F,)."""
    return statistic_of_products(activate(gate, act) * up)


def statistic_of_products(z: np.ndarray) -> np.ndarray:
    """GRIFFIN's statistic from Z = act(gate) * up, (T, F) -> (F,). Its square adds up over tokens."""
    norms = np.linalg.norm(z, axis=1, keepdims=True)
    return np.linalg.norm(z / np.where(norms > 0, norms, 1), axis=0)


def neuron_magnitudes(w_gate: Matrix, w_up: Matrix, w_down: Matrix) -> np.ndarray:
    """‖gate row‖ · ‖up row‖ · ‖down column‖: (F, E), (F, E), (E, F) -> (F,)."""
    contract.neuron_magnitudes(w_gate, w_up, w_down)
    gate, up, down = (widen(plain(w)) for w in (w_gate, w_up, w_down))
    return (_lengths(gate, 1) * _lengths(up, 1) * _lengths(down, 0)).astype(gate.dtype)


def _lengths(w: np.ndarray, axis: int) -> np.ndarray:
    """L2 norms along an axis. Squares are summed in float64: a thousand of one size round off alike in float32."""
    return np.sqrt(np.square(w).sum(axis=axis, dtype=np.float64))


def predictor_targets(statistic: np.ndarray, *, positives: float = 0.5) -> tuple[np.ndarray, np.ndarray]:
    """Labels and loss weights that a predictor is trained on: statistic (F,) -> bool (F,) and float64 (F,).

    The top `positives` share is positive; its fifths, strongest first, weigh 32, 16, 8, 4, 2, and negatives 1.
    """
    match(statistic=(statistic, "F"))
    check_density(positives)
    count = kept_neurons(positives, len(statistic))
    strongest = np.argsort(-statistic, kind="stable")[:count]
    labels, weights = np.zeros(len(statistic), bool), np.ones(len(statistic))
    labels[strongest] = True
    weights[strongest] = 32.0 / 2 ** (np.arange(count) * 5 // count)
    return labels, weights


def kept_neurons(density: float, ffn_width: int) -> int:
    """K = round(density · F), at least 1."""
    return max(1, round(density * ffn_width))


def check_density(density: float) -> None:
    """Raise ValueError unless `density` is a share of neurons in (0, 1]."""
    number = isinstance(density, (int, float, np.floating)) and not isinstance(density, bool)
    require(number and 0 < density <= 1, f"density: got {density!r}, wanted a number in (0, 1]")
