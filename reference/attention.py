"""Grouped-query attention, causal by position.

    a_tj = softmax over visible j of s_tj,   o_t = Σ_j a_tj v_j
    s_tj = scale · q_t · k_j,   or cap · tanh(scale · q_t · k_j / cap) with a soft cap, as Gemma 2 has one
    key j is visible to query t  ⇔  p_t - window < p_j ≤ p_t

Which token sits in which column never matters, only the positions that travel with the keys: one rule for chunks,
gathers and evictions. Query head h reads KV head h // G. A query that sees no key at all reads nothing: its output and
its attention are zero. Scores and softmax are kept in float32, or in float64 where the input is.

Sources: Vaswani et al. (arXiv 1706.03762); Ainslie et al., GQA (arXiv 2305.13245).
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from reference import contract
from reference.checks import ascending, widen


def attention(
    q: np.ndarray,
    k: np.ndarray,
    v: np.ndarray,
    q_positions: np.ndarray | int,
    k_positions: np.ndarray,
    *,
    scale: float | None = None,
    window: int | None = None,
    cap: float | None = None,
) -> np.ndarray:
    """Attention output: q (H, T, D), k and v (KV, S, D), q_positions (T,), k_positions (KV, S) -> (H, T, D).

    An int for `q_positions` is the first of T that follow one another. `scale` defaults to 1/√D, and without a `cap`
    scores are not bounded. Positions rise strictly along T and S. Raises ValueError naming what does not fit.
    """
    contract.attention(q, k, v, q_positions, k_positions, scale, window, cap)
    weights = attention_weights(q, k, q_positions, k_positions, scale=scale, window=window, cap=cap)  # (H, T, S)
    heads, tokens, _ = weights.shape
    grouped = weights.reshape(len(k), heads // len(k) * tokens, weights.shape[2])  # (KV, G·T, S)
    return (grouped @ widen(v).astype(weights.dtype, copy=False)).reshape(q.shape)  # (H, T, D)


def attention_mass(
    q: np.ndarray,
    k: np.ndarray,
    q_positions: np.ndarray | int,
    k_positions: np.ndarray,
    *,
    scale: float | None = None,
    window: int | None = None,
    cap: float | None = None,
) -> np.ndarray:
    """Attention that each key receives: Σ_t a_tj, from shapes as in `attention` -> (H, S)."""
    return attention_weights(q, k, q_positions, k_positions, scale=scale, window=window, cap=cap).sum(axis=1)


def attention_weights(
    q: np.ndarray,
    k: np.ndarray,
    q_positions: np.ndarray | int,
    k_positions: np.ndarray,
    *,
    scale: float | None = None,
    window: int | None = None,
    cap: float | None = None,
) -> np.ndarray:
    """The softmax itself, (H, T, S). Shapes as in `attention`."""
    sizes = contract.attention_mass(q, k, q_positions, k_positions, scale, window, cap)
    scale = 1 / math.sqrt(sizes["D"]) if scale is None else scale
    heads, tokens, _ = q.shape
    q_positions, k_positions = as_positions(q_positions, tokens), k_positions.astype(np.int64, copy=False)
    ascending("q_positions", q_positions)
    ascending("k_positions", k_positions)
    q, k = widen(q), widen(k)
    grouped = q.reshape(len(k), heads // len(k) * tokens, sizes["D"])  # (KV, G·T, D)
    scores = (grouped @ k.swapaxes(1, 2)).reshape(len(k), heads // len(k), tokens, sizes["S"])  # (KV, G, T, S)
    scores *= scores.dtype.type(scale)
    if cap is not None:
        scores = np.tanh(scores / scores.dtype.type(cap)) * scores.dtype.type(cap)
    hidden = ~visible(q_positions, k_positions, window)[:, None]  # (KV, 1, T, S)
    np.copyto(scores, -np.inf, where=hidden)
    peak = scores.max(axis=-1, keepdims=True, initial=np.finfo(scores.dtype).min)  # finite even if all is hidden
    scores -= peak
    np.exp(scores, out=scores)
    total = scores.sum(axis=-1, keepdims=True)
    scores /= np.where(total > 0, total, 1)
    return scores.reshape(heads, tokens, sizes["S"])


def as_positions(q_positions: np.ndarray | int, tokens: int) -> np.ndarray:
    """Positions (T,) as int64, in which differences do not wrap; an int is the first of T that follow one another."""
    if isinstance(q_positions, int):
        return np.arange(q_positions, q_positions + tokens)
    return q_positions.astype(np.int64, copy=False)


def attention_each(
    reads: Sequence[tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray | int, np.ndarray]],
    *,
    scale: float | None = None,
    window: int | None = None,
    cap: float | None = None,
) -> list[np.ndarray]:
    """Several calls of `attention`, as a backend may do them in one: (q, k, v, q_positions, k_positions) each, with
    their own T and S -> (T, H·D) each, the heads of a token side by side."""
    return [merge_heads(attention(*read, scale=scale, window=window, cap=cap)) for read in reads]


def attention_and_mass_each(
    reads: Sequence[tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray | int, np.ndarray]],
    *,
    scale: float | None = None,
    window: int | None = None,
    cap: float | None = None,
) -> list[tuple[np.ndarray, np.ndarray]]:
    """`attention_each`, and what each key receives of it as in `attention_mass`: (T, H·D) and (H, S) of each read. A
    backend may compute both from one softmax."""
    rows = attention_each(reads, scale=scale, window=window, cap=cap)
    every = [(q, k, q_positions, k_positions) for q, k, _, q_positions, k_positions in reads]
    mass = [attention_mass(*seen, scale=scale, window=window, cap=cap) for seen in every]
    return list(zip(rows, mass, strict=True))


def split_heads(x: np.ndarray, heads: int) -> np.ndarray:
    """(T, H·D) -> (H, T, D)."""
    return x.reshape(len(x), heads, x.shape[1] // heads).transpose(1, 0, 2)


def merge_heads(x: np.ndarray) -> np.ndarray:
    """(H, T, D) -> (T, H·D)."""
    return x.transpose(1, 0, 2).reshape(x.shape[1], len(x) * x.shape[2])


def visible(q_positions: np.ndarray, k_positions: np.ndarray, window: int | None = None) -> np.ndarray:
    """(KV, T, S) bool: which keys each query may see, by position."""
    distance = q_positions[None, :, None] - k_positions[:, None, :]  # (KV, T, S)
    return (distance >= 0) & (distance < window) if window is not None else distance >= 0
