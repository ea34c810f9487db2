"""The steps of a transformer with their gradients, for tuning parts of a model by what the whole model says.

Every function returns its result and a function that takes ∂L/∂result to ∂L/∂argument, by the chain rule: a name like
d_x stands for ∂L/∂x. So a pass forward leaves a pass backward behind it, and nothing else need be remembered.

    norm        y = x r w,  r = 1 / √(mean x² + ε)         d_x = r (g − x r² mean(g x)),  g = d_y w
    attention   p = softmax(scale q kᵀ),  o = p v          d_logits = p (d_p − Σ p d_p),  d_p = d_o vᵀ
    gated FFN   y = W_down (m · act(g) · u)                d_m = Σ_t (W_downᵀ d_y) act(g) u,  m the neurons' mask
    divergence  L = mean_t Σ_v p (log p − log q)           d_logits = (q − p) / T

P prompts of T tokens go through together where an axis P stands first.

Arrays are NumPy's, or of a module that has its names, as torch does: `module_of` finds it. Sources as in `layers`,
`attention`, `predictor`; Bengio et al. (arXiv 1308.3432) for the gradient that passes a hard choice straight through.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable
from typing import Any

import numpy as np

from reference.predictor import Compensator, Predictor

Back = Callable[[Any], Any]

TEMPERATURE = 0.3  # of the mask's slope, in units of the mean distance to the cut; chosen


def module_of(x: Any) -> Any:
    """The module of an array: NumPy, or the one that its class belongs to."""
    return np if isinstance(x, np.ndarray) else sys.modules[type(x).__module__.partition(".")[0]]


def sigmoid(x: Any) -> Any:
    """1 / (1 + e^-x), as (1 + tanh(x / 2)) / 2, which no x overflows. Another module than NumPy has it as one call."""
    xp = module_of(x)
    return (np.tanh(x * 0.5) + 1) * 0.5 if xp is np else xp.sigmoid(x)


def activate(x: Any, act: str) -> tuple[Any, Any]:
    """`layers.activate` and its slope. Both activations are x · σ(u(x)), so that is σ(u) (1 + x u' (1 − σ(u)))."""
    if act == "silu":
        gate, slope = sigmoid(x), 1.0
    else:
        scale = (8 / np.pi) ** 0.5
        gate = sigmoid(scale * (x + 0.044715 * x * x * x))
        slope = scale * (1 + 3 * 0.044715 * x * x)
    return x * gate, gate * (1 + x * slope * (1 - gate))


def rms_norm(x: Any, weight: Any, eps: float) -> tuple[Any, Back]:
    """`layers.rms_norm` over the last axis: x (..., E), weight (E,)."""
    width = x.shape[-1]
    r = ((x * x).sum(-1)[..., None] / width + eps) ** -0.5

    def back(d_y: Any) -> Any:
        g = d_y * weight
        return r * (g - x * (r * r * ((g * x).sum(-1)[..., None] / width)))

    return x * r * weight, back


def rotate(x: Any, cosine: Any, sine: Any) -> tuple[Any, Back]:
    """`layers.rotate`: x (..., T, D), cosine and sine (T, D/2). Turning back is turning by the angle's negative."""

    def turn(x: Any, sine: Any) -> Any:
        half = x.shape[-1] // 2
        first, second = x[..., :half], x[..., half:]
        return module_of(x).concatenate([first * cosine - second * sine, second * cosine + first * sine], -1)

    return turn(x, sine), lambda d_y: turn(d_y, -sine)


def attention(q: Any, k: Any, v: Any, hidden: Any, scale: float) -> tuple[Any, Back]:
    """Causal attention: q (P, H, T, D), k and v (P, KV, T, D), hidden (T, T) bool: keys that a query does not see."""
    shape, groups = q.shape, (*k.shape[:2], -1, k.shape[-1])
    q = q.reshape(groups)  # the query heads of one KV head under each other: (P, KV, G · T, D)
    logits = ((q * scale) @ k.swapaxes(2, 3)).reshape(*k.shape[:2], -1, *hidden.shape)
    p = softmax(module_of(q).where(hidden, -np.inf, logits)).reshape(*q.shape[:3], -1)

    def back(d_o: Any) -> tuple[Any, Any, Any]:
        d_o = d_o.reshape(groups)
        d_logits = d_o @ v.swapaxes(2, 3)
        d_logits = p * (d_logits - (p * d_logits).sum(-1)[..., None]) * scale
        return (d_logits @ k).reshape(shape), d_logits.swapaxes(2, 3) @ q, p.swapaxes(2, 3) @ d_o

    return (p @ v).reshape(shape), back


def softmax(x: Any) -> Any:
    """Over the last axis. Another module than NumPy has it as one call."""
    xp = module_of(x)
    if xp is not np:
        return xp.softmax(x, -1)
    e = np.exp(x - x.max(-1)[..., None])
    return e / e.sum(-1)[..., None]


def masked_ffn(x: Any, w_gate: Any, w_up: Any, w_down: Any, mask: Any, act: str) -> tuple[Any, Back]:
    """The gated FFN of N blocks, each neuron's term times its mask: x (N, T, E), mask (N, F), weights as in
    `layers.gated_ffn`. A mask of zeros and ones runs what `sparse_ffn` runs; `back` gives d_x and d_mask."""
    active, slope = activate(x @ w_gate.T, act)
    up = x @ w_up.T
    z = active * up  # (N, T, F)

    def back(d_y: Any) -> tuple[Any, Any]:
        d_z = d_y @ w_down
        d_mask = (d_z * z).sum(1)
        d_z = d_z * mask[:, None]
        return (d_z * up * slope) @ w_gate + (d_z * active) @ w_up, d_mask

    return (z * mask[:, None]) @ w_down.T, back


def compensate(x: Any, compensator: Compensator, act: str) -> tuple[Any, Callable[[Any], tuple[Any, Compensator]]]:
    """C2 act(C1 x): x (..., E). `back` gives d_x and a gradient for each of the compensator's arrays."""
    c1, c2 = compensator.c1, compensator.c2
    hidden, slope = activate(x @ c1.T, act)

    def back(d_y: Any) -> tuple[Any, Compensator]:
        d_before = (d_y @ c2) * slope
        rows, d_rows = x.reshape(-1, x.shape[-1]), d_y.reshape(-1, d_y.shape[-1])
        flat, d_flat = hidden.reshape(-1, len(c1)), d_before.reshape(-1, len(c1))
        return d_before @ c1, Compensator(d_flat.T @ rows, d_rows.T @ flat)

    return hidden @ c2.T, back


def score(x: Any, predictor: Predictor) -> tuple[Any, Callable[[Any], Predictor]]:
    """`predictor_scores` of N blocks: x (N, T, E) -> (N, F). `back` gives a gradient for each of the predictor's
    arrays; x is taken as given."""
    root = x.shape[-1] ** 0.5
    shares = softmax(x @ predictor.q_pred / root)  # (N, T)
    pooled = (shares[:, None] @ x)[:, 0]  # (N, E)
    before = pooled @ predictor.w1  # (N, r)
    rectified = before * (before > 0)

    def back(d_scores: Any) -> Predictor:
        d_before = (d_scores @ predictor.w2.T) * (before > 0)
        d_pooled = d_before @ predictor.w1.T
        d_shares = (x @ d_pooled[:, :, None])[:, :, 0]
        d_logits = shares * (d_shares - (shares * d_shares).sum(-1)[:, None]) / root
        d_q_pred = d_logits.reshape(-1) @ x.reshape(-1, x.shape[-1])
        return Predictor(d_q_pred, pooled.T @ d_before, rectified.T @ d_scores)

    return rectified @ predictor.w2, back


def choose(scores: Any, keep: int) -> tuple[Any, Any]:
    """The `keep` best of each row, ties to the lower neuron, (N, F) of 0 and 1 in the dtype of scores (N, F), and the
    cut, the least score kept, (N, 1)."""
    xp = module_of(scores)
    rank = xp.argsort(xp.argsort(-scores, stable=True))
    cut = xp.where(rank == keep - 1, scores, 0).sum(-1)[:, None]
    return xp.zeros_like(scores) + (rank < keep), cut


def mask_slope(scores: Any, cut: Any) -> Any:
    """How a neuron's mask follows its score: scores (N, F), cut (N, 1) -> (N, F).

    m = σ((s − cut) / u), so the slope is σ' / u, with u = `TEMPERATURE` times the block's mean |s − cut|. Twice the
    scores make the same choice, and the slope follows them: with a fixed u, scores that grow would leave no neuron near
    the cut. u is taken as given. Where all scores are the same it is 1.
    """
    unit = TEMPERATURE * abs(scores - cut).mean(-1)[:, None]
    unit = unit + (unit == 0)
    near = sigmoid((scores - cut) / unit)
    return near * (1 - near) / unit


def log_softmax(x: Any) -> Any:
    """Over the last axis. Another module than NumPy has it as one call."""
    xp = module_of(x)
    if xp is not np:
        return xp.log_softmax(x, -1)
    x = x - x.max(-1)[..., None]
    return x - np.log(np.exp(x).sum(-1))[..., None]


def divergence(logits: Any, log_p: Any) -> tuple[Any, Any]:
    """Mean over tokens of KL(p ‖ q), q = softmax(logits), and its gradient: (..., T, V) each."""
    log_q, exp = log_softmax(logits), module_of(logits).exp
    p, tokens = exp(log_p), math.prod(logits.shape[:-1])
    return (p * (log_p - log_q)).sum() / tokens, (exp(log_q) - p) / tokens
