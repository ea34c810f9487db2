"""What hypothesis draws for the reference tests: shapes, ragged positions, and awkward cases among the inputs."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from hypothesis import strategies as st


@dataclass(frozen=True)
class Case:
    """Inputs of attention in float64: q (H, T, D), k and v (KV, S, D), q_positions (T,), k_positions (KV, S)."""

    q: np.ndarray
    k: np.ndarray
    v: np.ndarray
    q_positions: np.ndarray
    k_positions: np.ndarray

    @property
    def group(self) -> int:
        return len(self.q) // len(self.k)


@st.composite
def attention_cases(draw: st.DrawFn, *, max_tokens: int = 6, max_keys: int = 12) -> Case:
    kv_heads, group = draw(st.integers(1, 3)), draw(st.sampled_from([1, 2, 3, 4]))
    head_dim = draw(st.sampled_from([1, 2, 5, 8]))
    tokens, keys = draw(st.integers(1, max_tokens)), draw(st.integers(1, max_keys))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    size = draw(st.sampled_from([1e-3, 1.0, 30.0]))
    q = rng.standard_normal((kv_heads * group, tokens, head_dim)) * size
    k = rng.standard_normal((kv_heads, keys, head_dim))
    v = rng.standard_normal((kv_heads, keys, head_dim))
    if draw(st.booleans()):
        k[:, rng.integers(keys)] = 0
    if draw(st.booleans()):
        k[:, rng.integers(keys)] = k[:, rng.integers(keys)]
    span = keys + draw(st.integers(0, 8))
    k_positions = np.stack([np.sort(rng.choice(span, keys, replace=False)) for _ in range(kv_heads)])
    first = draw(st.integers(0, span))
    return Case(q, k, v, np.arange(first, first + tokens), k_positions)


@st.composite
def chunk_cases(draw: st.DrawFn, *, max_tokens: int = 8, max_past: int = 16) -> tuple[Case, int]:
    """A chunk after a past whose columns hold other positions in every KV head; the number of past columns, from 0."""
    case = draw(attention_cases(max_tokens=max_tokens, max_keys=max_past))
    tokens, size = case.q.shape[1], case.k.shape[1]
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    past = int(draw(st.sampled_from([size, rng.integers(0, size + 1), 0])))
    k, v = (
        np.concatenate([x[:, :past], rng.standard_normal((len(x), tokens, x.shape[2]))], axis=1)
        for x in (case.k, case.v)
    )
    positions = 100 + np.arange(tokens)
    k_positions = np.concatenate([case.k_positions[:, :past], np.broadcast_to(positions, (len(k), tokens))], axis=1)
    return Case(case.q, k, v, positions, k_positions), past
