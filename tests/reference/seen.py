"""What an evictor is shown, made by hand: a layer's cache, a chunk's queries, and the keys that the chunk read."""

from __future__ import annotations

import numpy as np

import reference
from reference import LayerCache
from reference.eviction import Seen
from tests.strategies import Case


def seen_of(
    case: Case,
    *,
    columns: np.ndarray | None = None,
    decoding: bool = False,
    scale: float = 0.3,
    cap: float | None = None,
) -> Seen:
    """Everything in `case` is cached; `columns` (KV, R) are those read, None for all."""
    cache = LayerCache(case.k, case.v, case.k_positions)
    k, positions = case.k, case.k_positions
    if columns is not None:
        k, _, positions = cache.gather(columns)
    first = int(case.q_positions[0]) if case.q_positions.size else 0
    mass = attention_by_hand(case.q, k, case.q_positions, positions, scale, cap).sum(axis=1)
    return Seen(case.q, first, k, positions, columns, cache, scale, cap, decoding, reference, mass)


def attention_by_hand(
    q: np.ndarray,
    k: np.ndarray,
    q_positions: np.ndarray,
    k_positions: np.ndarray,
    scale: float,
    cap: float | None = None,
) -> np.ndarray:
    """Attention weights (H, T, S) by loops over heads, queries and the keys that each may see."""
    weights = np.zeros((len(q), q.shape[1], k.shape[1]))
    for h in range(len(q)):
        kv = h // (len(q) // len(k))
        for t, position in enumerate(q_positions):
            visible = [j for j in range(k.shape[1]) if k_positions[kv, j] <= position]
            logits = np.array([scale * (q[h, t] @ k[kv, j]) for j in visible])
            if cap is not None:
                logits = cap * np.tanh(logits / cap)
            if visible:
                e = np.exp(logits - logits.max())
                weights[h, t, visible] = e / e.sum()
    return weights
