"""A backend refuses what the reference refuses, in the same words."""

from __future__ import annotations

from types import ModuleType
from typing import Any

import numpy as np
import pytest

import reference
from tests.equivalence.calling import call

rng = np.random.default_rng(0)
Q, K, V = (rng.standard_normal(shape).astype(np.float32) for shape in ((4, 3, 8), (2, 6, 8), (2, 6, 8)))
QP, KP = np.arange(3, 6), np.broadcast_to(np.arange(6), (2, 6))
H = rng.random((4, 6)).astype(np.float32)
X, GATE, DOWN = (rng.standard_normal(shape).astype(np.float32) for shape in ((3, 8), (10, 8), (8, 10)))
EXPERTS = [reference.Expert(GATE, GATE, DOWN)] * 2
NAN = np.where(np.arange(12).reshape(2, 6) == 4, np.nan, 1).astype(np.float32)

CALLS: dict[str, tuple[str, tuple[Any, ...], dict[str, Any]]] = {
    "keys of another head_dim": ("attention", (Q, K[..., :7], V, QP, KP), {}),
    "values of another length": ("attention", (Q, K, V[:, :5], QP, KP), {}),
    "heads that do not divide": ("attention", (Q[:3], K, V, QP, KP), {}),
    "integers for queries": ("attention", (Q.astype(int), K, V, QP, KP), {}),
    "positions out of order": ("attention", (Q, K, V, QP, KP[:, ::-1]), {}),
    "a query twice": ("attention", (Q, K, V, np.array([3, 3, 4]), KP), {}),
    "positions that are floats": ("attention", (Q, K, V, QP.astype(np.float32), KP), {}),
    "a window of nothing": ("attention", (Q, K, V, QP, KP), {"window": 0}),
    "a scale that is no number": ("attention", (Q, K, V, QP, KP), {"scale": float("nan")}),
    "a cap of nothing": ("attention", (Q, K, V, QP, KP), {"cap": 0.0}),
    "a cap without end": ("snapkv_scores", (Q, K, QP, KP), {"cap": float("inf")}),
    "mass of too few positions": ("attention_mass", (Q, K, QP[:2], KP), {}),
    "no query to score with": ("tova_scores", (Q[:, :0], K, QP[:0], KP), {}),
    "an even kernel": ("snapkv_scores", (Q, K, QP, KP), {"kernel": 4}),
    "a window that is a float": ("snapkv_scores", (Q, K, QP, KP), {"window": 2.0}),
    "no queries chosen": ("key_scores", (Q, K, 0), {}),
    "no queries at all": ("select_queries", (Q[:, :0], 2), {}),
    "a budget of nothing": ("select_keys", (Q, K, 0, 2), {}),
    "more past than keys": ("quoka_attention", (Q, K, V, QP, KP, 7), {"budget": 2, "n_queries": 2}),
    "a budget of True": ("quoka_attention", (Q, K, V, QP, KP, 3), {"budget": True, "n_queries": 2}),
    "an unknown anchor": ("keydiff_scores", (K,), {"anchor": "median"}),
    "keys in a matrix": ("keydiff_scores", (K[0],), {}),
    "a negative score": ("caote_scores", (-H, V), {}),
    "a score that is no number": ("caote_scores", (np.full_like(H, np.nan), V), {}),
    "an unknown join": ("caote_scores", (H, V), {"group": "median"}),
    "scores that cannot be ranked": ("keep_top", (NAN, 3), {}),
    "a budget of half a token": ("keep_top", (NAN, 0.5), {}),
    "more protected than fit": ("keep_top", (H[:2], 2), {"sinks": 1, "recent": 2, "positions": KP}),
    "sinks without positions": ("keep_top", (H[:2], 2), {"sinks": 1}),
    "no neurons kept": ("select_neurons", (H[0], 0), {}),
    "an unknown activation": ("gated_ffn", (X, GATE, GATE, DOWN), {"act": "relu"}),
    "W_down the wrong way": ("gated_ffn", (X, GATE, GATE, GATE), {}),
    "a neuron that is not there": ("sparse_ffn", (X, GATE, GATE, DOWN, np.array([3, 10])), {}),
    "columns of no tokens at all": ("select_keys_each", ([Q[:, :0]], K, [3], [2], 2), {}),
    "a chunk without a past": ("select_keys_each", ([Q, Q], K, [3], [2, 2], 2), {}),
    "a chunk's past beyond the keys": ("select_keys_each", ([Q, Q], K, [3, 9], [2, 2], 2), {}),
    "a chunk's budget of nothing": ("select_keys_each", ([Q, Q], K, [3, 3], [2, 0], 2), {}),
    "more protected than fit in a chunk's": ("select_keys_each", ([Q, Q], K, [2, 3], [2, 2], 2), {"recent": 3}),
    "a chunk's sinks without positions": ("select_keys_each", ([Q], K, [3], [2], 2), {"sinks": 1}),
    "positions of some of the past": (
        "select_keys_each",
        ([Q], K, [3], [2], 2),
        {"sinks": 1, "positions": KP[:, :2]},
    ),
    "a neuron twice": ("sparse_ffn", (X, GATE, GATE, DOWN, np.array([3, 3])), {}),
    "neurons as a mask": ("sparse_ffn", (X, GATE, GATE, DOWN, np.ones(10, bool)), {}),
    "a bias too short": ("linear", (X, GATE, X[0]), {}),
    "a norm of another width": ("rms_norm", (X, GATE[:, 0]), {"eps": 1e-5}),
    "angles of another head_dim": ("rotate", (Q, Q[0], Q[0]), {}),
    "an id beyond the table": ("embed", (np.array([1, 10]), GATE), {}),
    "logits of another mixture": ("route", (H,), {"mixture": reference.Mixture((True,), 5, 2, 8)}),
    "an expert that is not there": ("mixture_ffn", (X, EXPERTS, np.array([[0, 1], [1, 2], [0, 1]]), X[:, :2]), {}),
    "an expert twice": ("mixture_ffn", (X, EXPERTS, np.array([[0, 1], [1, 1], [0, 1]]), X[:, :2]), {}),
    "more experts than shares": ("mixture_ffn", (X, EXPERTS, np.array([[0, 1], [0, 1], [0, 1]]), X[:, :1]), {}),
    "an expert of another width": (
        "mixture_ffn",
        (X, [*EXPERTS, reference.Expert(GATE, GATE[:9], DOWN)], np.array([[0], [0], [0]]), X[:, :1]),
        {},
    ),
    "an id below 0": ("embed", (np.array([-1]), GATE), {}),
    "ids that are floats": ("embed", (np.array([1.0]), GATE), {}),
    "a density of nothing": ("layer_densities", (H[0], 0.0), {}),
}


@pytest.mark.parametrize("name", CALLS)
def test_the_same_words(backend: ModuleType, name: str) -> None:
    function, arguments, options = CALLS[name]
    with pytest.raises(ValueError, match=r".+: got .+, wanted .+") as meant:
        getattr(reference, function)(*arguments, **options)
    with pytest.raises(ValueError, match=r".+: got .+, wanted .+") as said:
        call(backend, function, *arguments, **options)
    assert str(said.value) == str(meant.value)


def test_a_cache_refuses_what_would_break_it(backend: ModuleType) -> None:
    layer = backend.restore_cache([{"k": K.copy(), "v": V.copy(), "positions": KP.copy()}]).layers[0]
    with pytest.raises(ValueError, match="first: got position 5, wanted one after the newest held, 5"):
        layer.append(K[:, :1], V[:, :1], 5)
    with pytest.raises(ValueError, match=r"k: got shape \(2, 1, 7\)|v: got shape \(2, 1, 8\)"):
        layer.append(K[:, :1, :7], V[:, :1], 6)
    assert layer.size == 6
    np.testing.assert_array_equal(layer.k, K)
