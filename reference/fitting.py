"""What FastForward's training minimises, with the gradients written out.

    predictor     a = Σ_t p_t x_t,  p = softmax(X q / √E);   s = ReLU(a W1) W2
                  L = Σ_f w_f (log(1 + e^{s_f}) − y_f s_f) / Σ_f w_f          weighted cross-entropy on σ(s)
    layers        min Σ_l d_l x_l²  with  Σ_l x_l = (1 − b) L                  x_l: the share of layer l left out
    compensator   ŷ = C2 act(C1 x);   L = mean (ŷ − y)²                       y: what the neurons left out would write

Labels y_f and weights w_f of the first are `predictor_targets`. Every gradient is the chain rule, read from the loss
back to the weights; a name like d_s stands for ∂L/∂s. Nothing here knows how a minimum is sought, but for one step of
Adam at the end.

Source: FastForward (arXiv 2602.00397) for the losses; Kingma & Ba (arXiv 1412.6980) for Adam. Dtype: the input's.
Chosen: the loss of the predictor is divided by the sum of its weights, so that an untrained one stands at log 2.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from reference.checks import match, require, whole
from reference.fastforward import layer_densities
from reference.layers import activate, sigmoid
from reference.predictor import Compensator, Predictor

MOST_LEFT_OUT = 0.95  # of a layer's neurons, however little they seem to matter


def densities_by_damage(damage: np.ndarray | Sequence[float], density: float) -> np.ndarray:
    """Each layer's share of its neurons, (L,) with the mean `density`, by what thinning it costs: damage (L,) ≥ 0.

    Leaving out x_l of layer l is taken to cost damage_l · x_l². The least sum over the layers under Σ x_l = (1 − b) L
    and x_l ≤ m has x_l = min(m, λ / damage_l), which is `layer_densities` of 1 / damage; b_l = 1 − x_l. m is
    MOST_LEFT_OUT, or 1 − b where that is more.
    """
    damage = np.asarray(damage, np.float64)
    require(
        bool(np.isfinite(damage).all() and (damage >= 0).all()),
        "damage: got a negative, infinite or NaN entry, wanted numbers of at least 0",
    )
    most = max(MOST_LEFT_OUT, 1 - density)
    if density == 1:
        return np.ones(len(damage))
    least = damage.max() * 1e-6 if damage.any() else 1.0  # a layer that costs nothing
    return 1 - most * layer_densities(1 / np.maximum(damage, least), (1 - density) / most)


def share_out(densities: np.ndarray, worth: np.ndarray, rate: float) -> np.ndarray:
    """Neurons moved to the layers where one more is worth more: densities b and worth −∂L/∂K, (L,) each -> (L,).

    All neurons of a model cost the same, so the densities are best when one more is worth the same in every layer that
    can take or give one. b_l moves by rate · (worth_l − mean) / mean |worth|, at most 3 rates; then all move by the one
    amount that restores the mean, within [1 − MOST_LEFT_OUT, 1].
    """
    match(densities=(densities, "L"), worth=(worth, "L"))
    size = np.abs(worth).mean() or 1.0
    moved = densities + rate * np.clip((worth - worth.mean()) / size, -3, 3)
    low, high = -1.0 - 3 * rate, 1.0 + 3 * rate
    for _ in range(60):  # halving: the mean rises with the shift
        shift = (low + high) / 2
        found = np.clip(moved + shift, 1 - MOST_LEFT_OUT, 1)
        low, high = (shift, high) if found.mean() < densities.mean() else (low, shift)
    return found


def pool_blocks(x: np.ndarray, q_pred: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Blocks pooled by attention to q_pred: x (N, T, E), q_pred (E,) -> shares p (N, T) and a (N, E)."""
    logits = x @ q_pred / np.sqrt(x.shape[-1]).astype(x.dtype)  # (N, T)
    shares = np.exp(logits - logits.max(axis=1, keepdims=True))
    shares /= shares.sum(axis=1, keepdims=True)
    return shares, (shares[:, None] @ x)[:, 0]


def score_blocks(x: np.ndarray, predictor: Predictor) -> np.ndarray:
    """`predictor_scores` of many blocks at once: x (N, T, E) -> (N, F)."""
    _, pooled = pool_blocks(x, predictor.q_pred)
    return np.maximum(pooled @ predictor.w1, 0) @ predictor.w2


def cross_entropy(scores: np.ndarray, labels: np.ndarray, weights: np.ndarray) -> tuple[float, np.ndarray]:
    """Σ w (log(1 + e^s) − y s) / Σ w, and its gradient for the scores: (N, F) each."""
    total = weights.sum()
    # log(1 + e^s) = max(s, 0) + log(1 + e^-|s|), which does not overflow.
    losses = np.maximum(scores, 0) + np.log1p(np.exp(-np.abs(scores))) - labels * scores
    return float((weights * losses).sum() / total), weights * (sigmoid(scores) - labels) / total


def predictor_loss(
    x: np.ndarray, predictor: Predictor, labels: np.ndarray, weights: np.ndarray
) -> tuple[float, Predictor]:
    """The predictor's loss on N blocks and its gradient, an array for each of the predictor's.

    x (N, T, E); labels (N, F), 0 or 1; weights (N, F) > 0.
    """
    match(x=(x, "N T E"), labels=(labels, "N F"), weights=(weights, "N F"))
    shares, pooled = pool_blocks(x, predictor.q_pred)  # (N, T), (N, E)
    hidden = pooled @ predictor.w1  # (N, r)
    rectified = np.maximum(hidden, 0)
    loss, d_scores = cross_entropy(rectified @ predictor.w2, labels, weights)  # (N, F)

    d_w2 = rectified.T @ d_scores
    d_hidden = (d_scores @ predictor.w2.T) * (hidden > 0)
    d_w1 = pooled.T @ d_hidden
    d_pooled = d_hidden @ predictor.w1.T  # (N, E)
    d_shares = (x @ d_pooled[:, :, None])[:, :, 0]  # (N, T)
    d_logits = shares * (d_shares - (shares * d_shares).sum(axis=1, keepdims=True))  # through the softmax
    d_q_pred = np.einsum("nt,nte->e", d_logits, x) / np.sqrt(x.shape[-1]).astype(x.dtype)
    return loss, Predictor(d_q_pred, d_w1, d_w2)


def compensator_loss(
    x: np.ndarray, compensator: Compensator, target: np.ndarray, *, act: str = "silu"
) -> tuple[float, Compensator]:
    """mean (C2 act(C1 x) − target)² and its gradient: x and target (T, E)."""
    match(x=(x, "T E"), target=(target, "T E"))
    before = x @ compensator.c1.T  # (T, hidden)
    hidden = activate(before, act)
    error = hidden @ compensator.c2.T - target  # (T, E)

    d_output = error * (2 / error.size)
    d_c2 = d_output.T @ hidden
    d_before = (d_output @ compensator.c2) * activation_slope(before, act)
    return float(np.square(error).mean()), Compensator(d_before.T @ x, d_c2)


def activation_slope(x: np.ndarray, act: str) -> np.ndarray:
    """The derivative of `activate`. Both activations are x · σ(u(x)), so it is σ(u) (1 + x u' (1 − σ(u)))."""
    if act == "silu":
        u, slope = x, np.ones((), x.dtype)
    else:
        scale = np.sqrt(8 / np.pi).astype(x.dtype)
        u, slope = scale * (x + 0.044715 * x * x * x), scale * (1 + 3 * 0.044715 * x * x)
    gate = sigmoid(u)
    return gate * (1 + x * slope * (1 - gate))


@dataclass
class Adam:
    """Adam over a list of arrays, which `step` changes in place. Its β and ε are the paper's. Arrays are NumPy's or
    those of another module; the rate is one for all or one for each.

    by_array: v is one number for each array, the mean of g² over it. So a number moves in proportion to its gradient,
    where Adam moves one whose gradient is noise about as far as any other.
    """

    arrays: Sequence[Any]
    beta1: float = 0.9
    beta2: float = 0.999
    eps: float = 1e-8
    by_array: bool = False

    def __post_init__(self) -> None:
        self.first = [array * 0 for array in self.arrays]  # m
        self.second = [(array.reshape(-1)[:1] if self.by_array else array) * 0 for array in self.arrays]  # v
        self.steps = 0

    def step(self, gradients: Sequence[Any], rates: float | Sequence[float]) -> None:
        """m += (1 − β₁)(g − m), v += (1 − β₂)(g² − v), then θ −= rate · m̂ / (√v̂ + ε), with m̂ and v̂ unbiased."""
        rates = rates if isinstance(rates, Sequence) else [rates] * len(self.arrays)
        require(min(rates, default=0) >= 0, f"rates: got {min(rates, default=0)}, wanted at least 0")
        self.steps += 1
        each = zip(self.arrays, gradients, self.first, self.second, rates, strict=True)
        for array, gradient, first, second, rate in each:
            first += (1 - self.beta1) * (gradient - first)
            power = gradient * gradient
            second += (1 - self.beta2) * ((power.mean() if self.by_array else power) - second)
            mean, square = first / (1 - self.beta1**self.steps), second / (1 - self.beta2**self.steps)
            array -= rate * mean / (square**0.5 + self.eps)


def average_in(averages: Sequence[Any], arrays: Sequence[Any], steps: int, *, recent: int = 8) -> None:
    """Take the arrays after a step into their running averages, which change in place.

    a += (η + 1) / (t + η) (θ − a), t steps being done and η = `recent`: the weight of step i is in proportion to
    i (i + 1) … (i + η − 1), so that about the last t / (η + 1) steps count, and the start never does. Polynomial-decay
    averaging (Shamir and Zhang, arXiv 1212.1824). η is chosen.
    """
    whole("steps", steps)
    share = (recent + 1) / (steps + recent)
    for average, array in zip(averages, arrays, strict=True):
        average += share * (array - average)
