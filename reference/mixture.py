"""A mixture of experts: each token runs a few of many small FFNs, and perhaps one that all tokens share.

For a token x (E,), with a router R (X, E) and a bias b (X,) that steers the choice alone:

    scores    s = softmax(R x)  or  σ(R x)
    groups    the experts stand in groups of neighbours; a group weighs the sum of the two best s + b in it, and only
              the best groups are open to choice
    choice    M = the K open experts of the highest s + b
    shares    g_e = scale · s_e          or, normalised,  scale · s_e / Σ_{i ∈ M} s_i
    output    y = Σ_{e ∈ M} g_e FFN_e(x) + FFN_shared(x)

The tokens of a pass are grouped by expert, so that each expert's weights are read once for all of its tokens.

Sources: Shazeer et al. (arXiv 1701.06538); Mixtral (arXiv 2401.04088) for the normalised softmax; DeepSeek-V3 (arXiv
2412.19437) for sigmoid scores, groups, bias and the shared expert. Ties, also between groups: the lower index wins.
Scores are kept in float32 or better. A router that gives NaN spoils its own token only, which runs the first K experts.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from reference import contract
from reference.checks import ascending, require, widen
from reference.config import ModelConfig
from reference.experts import Experts
from reference.layers import gated_ffn, sigmoid
from reference.parts import Mixture
from reference.topk import keep_top
from reference.weights import LayerWeights

BEST = 2  # of a group's experts, those that it is weighed by
TINY = 1e-20  # so that scores that are all 0 have shares of 0


def route(logits: np.ndarray, bias: np.ndarray | None = None, *, mixture: Mixture) -> tuple[np.ndarray, np.ndarray]:
    """The experts of every token and their shares: logits (T, X), bias (X,) -> (T, K) int64 ascending, and (T, K).

    Raises ValueError for shapes that do not fit each other or the mixture.
    """
    contract.route(logits, bias, mixture)
    logits = widen(logits)
    scores = sigmoid(logits) if mixture.score == "sigmoid" else _softmax(logits)
    ranked = scores if bias is None else scores + bias.astype(scores.dtype, copy=False)
    ranked = np.where(np.isnan(ranked), -np.inf, ranked)
    if mixture.groups > 1:
        grouped = ranked.reshape(len(ranked), mixture.groups, -1)  # (T, groups, X / groups)
        weights = np.sort(grouped, axis=-1)[..., -BEST:].sum(axis=-1)  # (T, groups)
        is_open = np.zeros(weights.shape, bool)
        np.put_along_axis(is_open, keep_top(weights, mixture.groups_chosen), True, axis=1)
        ranked = np.where(is_open[..., None], grouped, -np.inf).reshape(ranked.shape)
    chosen = keep_top(ranked, mixture.chosen)
    shares = np.take_along_axis(scores, chosen, axis=1)
    if mixture.normalised:
        shares = shares / (shares.sum(axis=1, keepdims=True) + shares.dtype.type(TINY))
    return chosen, shares * shares.dtype.type(mixture.scale)


def mixture_ffn(
    x: np.ndarray, experts: Experts, chosen: np.ndarray, shares: np.ndarray, *, act: str = "silu"
) -> np.ndarray:
    """Σ_{e ∈ chosen} share_e FFN_e(x) for every token: x (T, E), X experts, chosen and shares (T, K) -> (T, E).

    chosen: integers that ascend in every row. ValueError for shapes that do not fit, and an expert that is not there.
    """
    contract.mixture_ffn(x, experts, chosen, shares, act)
    x = widen(x)
    y = np.zeros_like(x)
    for expert, rows, columns in tokens_by_expert(chosen, len(experts)):
        own = experts[expert]
        part = gated_ffn(x[rows], own.w_gate, own.w_up, own.w_down, act=act)
        y[rows] += shares[rows, columns, None].astype(x.dtype, copy=False) * part
    return y


def tokens_by_expert(chosen: np.ndarray, experts: int) -> list[tuple[int, np.ndarray, np.ndarray]]:
    """For each expert that a token chose, lowest first: its number, its tokens (T_e,) and their columns of `chosen`."""
    ascending("chosen", chosen)
    require(
        chosen.size == 0 or (chosen.min() >= 0 and chosen.max() < experts),
        f"chosen: got experts {chosen.min(initial=0)} to {chosen.max(initial=0)}, wanted 0 to {experts - 1}",
    )
    rows, columns = np.divmod(np.argsort(chosen, axis=None, kind="stable"), max(chosen.shape[1], 1))
    counts = np.bincount(chosen.reshape(-1), minlength=experts)
    ends = np.cumsum(counts)
    return [
        (int(e), rows[ends[e] - counts[e] : ends[e]], columns[ends[e] - counts[e] : ends[e]])
        for e in np.flatnonzero(counts)
    ]


def mixture_layer(backend: Any, config: ModelConfig, w: LayerWeights, x: Any) -> Any:
    """The output of a mixture layer, as the forward pass runs it on a backend: (T, E) -> (T, E)."""
    chosen, shares = backend.route(backend.linear(x, w.router), w.router_bias, mixture=config.mixture)
    routed = backend.mixture_ffn(x, w.experts, chosen, shares, act=config.activation)
    if w.w_gate is None:
        return routed
    return backend.add(routed, backend.gated_ffn(x, w.w_gate, w.w_up, w.w_down, act=config.activation))


def _softmax(logits: np.ndarray) -> np.ndarray:
    """e^x / Σ e^x along the last axis."""
    weights = np.exp(logits - logits.max(axis=-1, keepdims=True))
    return weights / weights.sum(axis=-1, keepdims=True)
