"""Right at every length: a sink, and a tail so flat and long that a sum of single weights would stop growing.

The first key scores 1.0 and all others -0.3, so that the softmax is known in closed form:

    w_0 = e^1.3 / Z,   w_j = 1 / Z,   Z = e^1.3 + S - 1,   o = w_0 v_0 + Σ_{j>0} v_j / Z
"""

from __future__ import annotations

from types import ModuleType

import numpy as np
import pytest

from tests.equivalence.calling import call
from thresher.verify.checker import Checker

LENGTHS = [30_000, 131_072, 1_000_000]
DIM = 16


@pytest.mark.parametrize("mean", [1, 0])
@pytest.mark.parametrize("tokens", [1, 9, 40])
@pytest.mark.parametrize("keys", LENGTHS)
def test_a_sink_and_a_flat_tail(backend: ModuleType, keys: int, tokens: int, mean: int) -> None:
    """Few tokens (decoding) and a chunk, values that add up and values that cancel, without a window and with one that
    sees the sink for the first query alone."""
    low = float(np.float32(-0.3))
    q, k = np.zeros((1, tokens, DIM), np.float32), np.zeros((1, keys, DIM), np.float32)
    q[:, :, 0], k[:, :, 0], k[:, 0, 0] = 1, low, 1
    v = mean + np.random.default_rng(keys).standard_normal((1, keys, DIM), np.float32)
    places = np.arange(keys - 1, keys - 1 + tokens), np.arange(keys)[None]
    for window in (None, keys):
        sink = np.exp(1 - low) * (np.arange(tokens) == 0) if window else np.full(tokens, np.exp(1 - low))  # (T,)
        first = np.arange(tokens) if window else np.zeros(tokens, np.int64)  # key that each query sees first
        below = np.concatenate([np.zeros((1, DIM)), np.cumsum(v[0].astype(np.float64), axis=0)])  # (S + 1, DIM)
        rest = np.maximum(first, 1)
        total = sink + keys - rest
        wanted = (sink[:, None] * v[0, 0] + below[-1] - below[rest]) / total[:, None]  # (T, DIM)
        checker = Checker(backend)
        checker.tolerance = 1e-5
        checker.rows(call(backend, "attention", q, k, v, *places, scale=1.0, window=window), wanted[None])
        seen = np.arange(keys)[None, :] >= first[:, None] if tokens > 1 else np.ones((1, keys), bool)
        weights = np.where(np.arange(keys) == 0, sink[:, None], 1.0) * seen / total[:, None]  # (T, S)
        mass = call(backend, "attention_mass", q, k, *places, scale=1.0, window=window)
        checker.elements(mass, weights.sum(axis=0, keepdims=True))
