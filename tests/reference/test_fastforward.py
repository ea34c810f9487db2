"""FastForward's functions against its formulas."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from reference import (
    Compensator,
    Predictor,
    attention_mass,
    gated_ffn,
    griffin_statistic,
    layer_densities,
    mixing,
    neuron_magnitudes,
    predictor_scores,
    predictor_targets,
    select_neurons,
    sparse_ffn,
)
from tests.reference.neurons import silu, trained

RNG = np.random.default_rng


@given(st.integers(0, 2**32 - 1), st.integers(1, 6), st.sampled_from([1.0, 50.0]))
def test_the_predictor_pools_then_predicts(seed: int, tokens: int, size: float) -> None:
    rng = RNG(seed)
    x, q_pred = rng.standard_normal((tokens, 5)) * size, rng.standard_normal(5)
    w1, w2 = rng.standard_normal((5, 3)), rng.standard_normal((3, 7))
    logits = [float(q_pred @ token) / math.sqrt(5) for token in x]
    shares = [math.exp(logit - max(logits)) for logit in logits]
    pooled = sum(share / sum(shares) * token for share, token in zip(shares, x, strict=True))
    hidden = [max(0.0, float(pooled @ w1[:, r])) for r in range(3)]
    wanted = [sum(hidden[r] * w2[r, f] for r in range(3)) for f in range(7)]
    np.testing.assert_allclose(predictor_scores(x, Predictor(q_pred, w1, w2)), wanted, rtol=1e-9, atol=1e-9)


def test_neurons_tie_to_the_lower_and_come_ascending() -> None:
    np.testing.assert_array_equal(select_neurons(np.array([1.0, 3, 1, 3, 2, 1]), 4), [0, 1, 3, 4])
    np.testing.assert_array_equal(select_neurons(np.zeros(6), 2), [0, 1])
    np.testing.assert_array_equal(select_neurons(np.zeros(3), 9), [0, 1, 2])


@given(st.integers(0, 2**32 - 1), st.integers(1, 4), st.integers(1, 9), st.booleans())
def test_the_sparse_ffn_is_the_dense_one_without_the_other_neurons(
    seed: int, tokens: int, keep: int, compensated: bool
) -> None:
    rng = RNG(seed)
    x, w_gate, w_up = rng.standard_normal((tokens, 5)), *rng.standard_normal((2, 9, 5))
    w_down = rng.standard_normal((5, 9))
    neurons = np.sort(rng.choice(9, keep, replace=False))
    c1, c2 = rng.standard_normal((3, 5)), rng.standard_normal((5, 3))
    got = sparse_ffn(x, w_gate, w_up, w_down, neurons, compensator=Compensator(c1, c2) if compensated else None)
    z = silu(x @ w_gate.T) * (x @ w_up.T)
    z[:, np.setdiff1d(np.arange(9), neurons)] = 0
    wanted = z @ w_down.T + (silu(x @ c1.T) @ c2.T if compensated else 0)
    np.testing.assert_allclose(got, wanted, rtol=1e-9, atol=1e-9)


def test_all_neurons_are_the_dense_ffn_and_the_activation_is_the_models() -> None:
    rng = RNG(0)
    x, (w_gate, w_up), w_down = rng.standard_normal((3, 5)), rng.standard_normal((2, 9, 5)), rng.standard_normal((5, 9))
    for act in ("silu", "gelu_tanh"):
        np.testing.assert_allclose(
            sparse_ffn(x, w_gate, w_up, w_down, np.arange(9), act=act), gated_ffn(x, w_gate, w_up, w_down, act=act)
        )
    c = Compensator(rng.standard_normal((3, 5)), rng.standard_normal((5, 3)))
    none = np.zeros(0, np.int64)
    gelu = sparse_ffn(x, w_gate, w_up, w_down, none, compensator=c, act="gelu_tanh")
    inner = x @ c.c1.T
    tanh = np.tanh(np.sqrt(2 / np.pi) * (inner + 0.044715 * inner**3))
    np.testing.assert_allclose(gelu, 0.5 * inner * (1 + tanh) @ c.c2.T)


@given(
    st.lists(st.floats(0, 1e6, allow_nan=False), min_size=1, max_size=12),
    st.floats(0.01, 1.0),
)
def test_layer_densities_sum_to_what_there_is(importance: list[float], density: float) -> None:
    densities = layer_densities(importance, density)
    assert densities.sum() == pytest.approx(density * len(importance), rel=1e-9)
    assert ((densities >= 0) & (densities <= 1)).all()
    order = np.argsort(importance)
    assert (np.diff(densities[order]) >= -1e-9).all()  # a layer that mixes more never gets less
    free = [i for i, b in enumerate(densities) if b < 1 - 1e-9]
    shares = [(importance[i], densities[i]) for i in free]
    for s, b in shares:
        for t, c in shares:
            if sum(importance) > 1e-3:
                assert s * c == pytest.approx(t * b, rel=1e-6, abs=1e-6 * max(importance))


def test_layers_are_visited_by_falling_importance() -> None:
    np.testing.assert_allclose(layer_densities([1, 1, 1, 6], 0.5), [1 / 3, 1 / 3, 1 / 3, 1])  # the paper's: sum 1.67
    np.testing.assert_allclose(layer_densities([6, 1, 1, 1], 0.5), [1, 1 / 3, 1 / 3, 1 / 3])
    np.testing.assert_allclose(layer_densities([2, 2, 2], 0.3), [0.3, 0.3, 0.3])
    np.testing.assert_allclose(layer_densities([0, 0], 0.3), [0.3, 0.3])
    np.testing.assert_allclose(layer_densities([0, 5, 0], 0.5), [0.25, 1, 0.25])
    np.testing.assert_allclose(layer_densities([1, 2, 3], 1.0), [1, 1, 1])


def test_mixing_is_the_attention_beyond_the_first_block() -> None:
    rng = RNG(0)
    q, k = rng.standard_normal((4, 9, 6)), rng.standard_normal((2, 9, 6))
    positions = np.arange(9)
    mass = attention_mass(q, k, positions, np.tile(positions, (2, 1)))
    shares = []
    for h in range(4):
        for t in range(9):
            e = np.exp(k[h // 2, : t + 1] @ q[h, t] / np.sqrt(6))
            shares.append(e[4:].sum() / e.sum())  # the diagonal included
    assert mixing(mass, first=4) == pytest.approx(np.mean(shares))


@given(st.integers(0, 2**32 - 1), st.integers(1, 5))
def test_griffins_statistic(seed: int, tokens: int) -> None:
    gate, up = RNG(seed).standard_normal((2, tokens, 6))
    z = silu(gate) * up
    wanted = [math.sqrt(sum((z[t, f] / np.linalg.norm(z[t])) ** 2 for t in range(tokens))) for f in range(6)]
    x = np.eye(tokens)  # so that W X is W itself
    np.testing.assert_allclose(griffin_statistic(x, gate.T, up.T), wanted)


def test_a_token_that_activates_nothing_does_not_count() -> None:
    x, gate, up = np.eye(2), np.array([[1.0, 0.0], [2.0, 0.0]]), np.array([[1.0, 3.0], [1.0, 3.0]])
    np.testing.assert_allclose(griffin_statistic(x, gate, up), griffin_statistic(x[:1], gate, up))


def test_training_targets_weigh_the_strongest_most() -> None:
    labels, weights = predictor_targets(np.arange(20.0)[::-1])
    np.testing.assert_array_equal(labels, [True] * 10 + [False] * 10)
    np.testing.assert_array_equal(weights, [32, 32, 16, 16, 8, 8, 4, 4, 2, 2] + [1] * 10)
    labels, weights = predictor_targets(np.array([0.0, 5, 5, 1]), positives=0.5)
    np.testing.assert_array_equal(labels, [False, True, True, False])
    np.testing.assert_array_equal(weights, [1, 32, 8, 1])  # of two, one is in the first fifth and one in the third


def test_magnitudes_are_the_product_of_the_three_norms() -> None:
    (gate, up), down = RNG(0).standard_normal((2, 6, 4)), RNG(1).standard_normal((4, 6))
    wanted = [np.linalg.norm(gate[f]) * np.linalg.norm(up[f]) * np.linalg.norm(down[:, f]) for f in range(6)]
    np.testing.assert_allclose(neuron_magnitudes(gate, up, down), wanted)


def test_bad_arrays() -> None:
    x, w = np.zeros((3, 5)), np.zeros((9, 5))
    with pytest.raises(ValueError, match=r"neurons: got 8 followed by 8 at index \(1,\)"):
        sparse_ffn(x, w, w, w.T, np.array([2, 8, 8]))
    with pytest.raises(ValueError, match=r"neurons: got .* wanted 0 to 8"):
        sparse_ffn(x, w, w, w.T, np.array([2, 9]))
    with pytest.raises(ValueError, match=r"neurons: got .* wanted 0 to 8"):
        sparse_ffn(x, w, w, w.T, np.array([-1, 3]))
    with pytest.raises(ValueError, match=r"neurons: got shape .* of float64"):
        sparse_ffn(x, w, w, w.T, np.array([1.0]))
    with pytest.raises(ValueError, match=r"w_down: got shape \(9, 5\), wanted \(E=5, F=9\)"):
        sparse_ffn(x, w, w, w, np.array([1]))
    with pytest.raises(ValueError, match=r"c1: got shape \(3, 4\), wanted \(hidden, E=5\)"):
        sparse_ffn(x, w, w, w.T, np.array([1]), compensator=Compensator(np.zeros((3, 4)), np.zeros((5, 3))))
    with pytest.raises(ValueError, match="keep: got 0"):
        select_neurons(np.zeros(4), 0)
    with pytest.raises(ValueError, match="scores: got NaN"):
        select_neurons(np.array([0.0, np.nan]), 1)
    with pytest.raises(ValueError, match=r"x: got shape .* wanted at least one token"):
        predictor_scores(x[:0], trained(1, 5, 9).layers[0].predictor)
    with pytest.raises(ValueError, match="importance: got a negative"):
        layer_densities([1.0, -1.0], 0.5)
    with pytest.raises(ValueError, match="density: got 0"):
        layer_densities([1.0, 1.0], 0)
