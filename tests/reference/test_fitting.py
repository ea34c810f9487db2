"""FastForward's losses against their formulas, written out by loops, and the gradients against finite differences."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from reference import Compensator, Predictor, predictor_targets
from reference.fitting import (
    Adam,
    activation_slope,
    average_in,
    compensator_loss,
    densities_by_damage,
    predictor_loss,
    share_out,
)

RNG = np.random.default_rng
SIZES = {"n": st.integers(1, 3), "t": st.integers(1, 5), "e": st.integers(1, 5), "seed": st.integers(0, 999)}


def predictor_by_hand(x: np.ndarray, p: Predictor, labels: np.ndarray, weights: np.ndarray) -> float:
    """The loss from the formula, one number after the other."""
    total = 0.0
    for block, y, w in zip(x, labels, weights, strict=True):
        logits = [float(row @ p.q_pred) / math.sqrt(len(row)) for row in block]
        shares = [math.exp(logit) for logit in logits]
        pooled = sum(share / sum(shares) * row for share, row in zip(shares, block, strict=True))
        hidden = [max(0.0, float(pooled @ column)) for column in p.w1.T]
        for f in range(p.w2.shape[1]):
            score = sum(h * float(p.w2[i, f]) for i, h in enumerate(hidden))
            total -= w[f] * math.log(1 / (1 + math.exp(-score if y[f] else score)))  # 1 − σ(s) = σ(−s), which is exact
    return total / weights.sum()


def least_before_relu(x: np.ndarray, p: Predictor) -> float:
    shares = np.exp(x @ p.q_pred / math.sqrt(x.shape[2]))
    pooled = (shares[:, :, None] * x).sum(axis=1) / shares.sum(axis=1)[:, None]
    return float(np.abs(pooled @ p.w1).min())


def act_by_hand(x: float, act: str) -> float:
    if act == "silu":
        return x / (1 + math.exp(-x))
    return x / 2 * (1 + math.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))


def differences(loss, array: np.ndarray, step: float = 1e-6) -> np.ndarray:
    """∂loss/∂array by central differences."""
    slopes = np.empty_like(array)
    for at in np.ndindex(array.shape):
        kept = array[at]
        array[at] = kept + step
        above = loss()
        array[at] = kept - step
        slopes[at] = (above - loss()) / (2 * step)
        array[at] = kept
    return slopes


@given(r=st.integers(1, 3), f=st.integers(2, 12), **SIZES)
def test_predictor_loss_and_gradient(n: int, t: int, e: int, r: int, f: int, seed: int) -> None:
    rng = RNG(seed)
    x = rng.standard_normal((n, t, e))
    p = Predictor(rng.standard_normal(e), rng.standard_normal((e, r)), rng.standard_normal((r, f)))
    drawn = [predictor_targets(rng.random(f)) for _ in range(n)]
    labels, weights = np.array([y for y, _ in drawn], float), np.array([w for _, w in drawn])
    loss, gradient = predictor_loss(x, p, labels, weights)
    assert math.isclose(loss, predictor_by_hand(x, p, labels, weights), rel_tol=1e-9)
    assume(least_before_relu(x, p) > 1e-4)  # or the kink of the ReLU may lie inside the difference
    for name in ("q_pred", "w1", "w2"):
        expected = differences(lambda: predictor_by_hand(x, p, labels, weights), getattr(p, name))
        np.testing.assert_allclose(getattr(gradient, name), expected, rtol=1e-4, atol=1e-7, err_msg=name)


@given(hidden=st.integers(1, 3), act=st.sampled_from(["silu", "gelu_tanh"]), **SIZES)
def test_compensator_loss_and_gradient(n: int, t: int, e: int, hidden: int, act: str, seed: int) -> None:
    rng = RNG(seed)
    x, target = rng.standard_normal((n * t, e)), rng.standard_normal((n * t, e))
    c = Compensator(rng.standard_normal((hidden, e)), rng.standard_normal((e, hidden)))

    def by_hand() -> float:
        errors = [
            sum(c.c2[i, j] * act_by_hand(float(c.c1[j] @ row), act) for j in range(hidden)) - wanted[i]
            for row, wanted in zip(x, target, strict=True)
            for i in range(e)
        ]
        return sum(error * error for error in errors) / len(errors)

    loss, gradient = compensator_loss(x, c, target, act=act)
    assert math.isclose(loss, by_hand(), rel_tol=1e-9)
    for name in ("c1", "c2"):
        expected = differences(by_hand, getattr(c, name))
        np.testing.assert_allclose(getattr(gradient, name), expected, rtol=1e-4, atol=1e-7, err_msg=name)


@pytest.mark.parametrize("act", ["silu", "gelu_tanh"])
def test_slope_of_an_activation(act: str) -> None:
    x = np.linspace(-6, 6, 41)
    expected = [(act_by_hand(v + 1e-6, act) - act_by_hand(v - 1e-6, act)) / 2e-6 for v in x]
    np.testing.assert_allclose(activation_slope(x, act), expected, atol=1e-8)


def test_scores_far_out_do_not_overflow() -> None:
    p = Predictor(np.zeros(1), np.array([[1.0, 0.0]]), np.array([[1.0, -1.0], [0.0, 0.0]]))
    x = np.full((1, 1, 1), 5000.0)
    loss, gradient = predictor_loss(x, p, np.array([[0.0, 1.0]]), np.array([[1.0, 3.0]]))
    assert math.isclose(loss, 5000.0)
    assert all(np.isfinite(array).all() for array in vars(gradient).values())


def test_adam_by_hand() -> None:
    """Two steps on one number, from the paper's algorithm."""
    theta = np.array([1.0])
    adam = Adam([theta])
    m = v = 0.0
    expected = 1.0
    for n, g in enumerate((0.5, -2.0), 1):
        adam.step([np.array([g])], 0.1)
        m, v = 0.9 * m + 0.1 * g, 0.999 * v + 0.001 * g * g
        expected -= 0.1 * (m / (1 - 0.9**n)) / (math.sqrt(v / (1 - 0.999**n)) + 1e-8)
        assert math.isclose(theta[0], expected, rel_tol=1e-12)


def test_adam_by_array() -> None:
    """One second moment for an array: a number moves in proportion to its gradient, whatever the gradient's size."""
    small, large = np.zeros(3), np.zeros((1, 2))
    adam = Adam([small, large], eps=0.0, by_array=True)
    for _ in range(5):
        adam.step([np.array([1e-9, -2e-9, 0.0]), np.array([[30.0, 40.0]])], 0.1)
    np.testing.assert_allclose(small, np.array([-1, 2, 0]) * 0.5 / math.sqrt(5 / 3))
    np.testing.assert_allclose(large, np.array([[-3, -4]]) * 0.5 / math.sqrt(25 / 2))


@given(layers=st.integers(1, 9), rate=st.floats(0, 0.5), seed=st.integers(0, 999))
def test_neurons_go_where_one_more_is_worth_more(layers: int, rate: float, seed: int) -> None:
    rng = RNG(seed)
    densities, worth = rng.uniform(0.05, 1, layers), rng.standard_normal(layers) * 1e-6
    found = share_out(densities, worth, rate)
    assert math.isclose(found.mean(), densities.mean(), rel_tol=1e-9)
    assert found.min() >= 0.05 - 1e-12
    assert found.max() <= 1
    moved = (found - densities)[np.argsort(worth, kind="stable")]
    inside = ((found > 0.05 + 1e-9) & (found < 1 - 1e-9))[np.argsort(worth, kind="stable")]
    assert (np.diff(moved[inside]) >= -1e-9).all()  # by worth, wherever there is room
    np.testing.assert_allclose(share_out(densities, worth * 0 + 3.0, rate), densities, atol=1e-9)
    np.testing.assert_allclose(share_out(densities, worth * 0, rate), densities, atol=1e-9)


def test_neurons_move_by_hand() -> None:
    """Worth 1, 2 and 3 lie −1/2, 0 and 1/2 from their mean 2, as shares of it; a full layer takes no more."""
    np.testing.assert_allclose(share_out(np.array([0.5, 0.5, 0.5]), np.array([1.0, 2, 3]), 0.1), [0.45, 0.5, 0.55])
    np.testing.assert_allclose(share_out(np.array([0.4, 0.5, 1.0]), np.array([1.0, 2, 3]), 0.1), [0.375, 0.525, 1])


@given(steps=st.integers(1, 30), recent=st.integers(0, 9), seed=st.integers(0, 999))
def test_an_average_weighs_the_latest_steps_most(steps: int, recent: int, seed: int) -> None:
    """By the weights in closed form; without `recent`, it is the plain mean."""
    iterates = RNG(seed).standard_normal((steps, 3))
    average = np.full(3, 1e3)  # the start does not count
    for done, now in enumerate(iterates, 1):
        average_in([average], [now], done, recent=recent)
    weights = [math.prod(range(i, i + recent)) for i in range(1, steps + 1)]
    expected = sum(w / sum(weights) * now for w, now in zip(weights, iterates, strict=True))
    np.testing.assert_allclose(average, expected, rtol=1e-9, atol=1e-9)


DAMAGES = st.lists(st.sampled_from([0.0, 1e-9]) | st.floats(1e-3, 10), min_size=1, max_size=8)


@given(DAMAGES, st.floats(0.02, 1.0))
def test_no_other_sharing_of_a_density_does_less_damage(damage: list[float], density: float) -> None:
    """Taking a little from any layer and giving it to any other, within the bounds, does not lower Σ d x²."""
    densities = densities_by_damage(damage, density)
    assert densities.shape == (len(damage),)
    assert math.isclose(densities.mean(), density, rel_tol=1e-9)
    assert (densities <= 1).all()
    most = max(0.95, 1 - density)
    left_out = 1 - densities
    assert (left_out <= most + 1e-12).all()
    cost = np.maximum(damage, max(damage) * 1e-6)  # a layer without damage counts as one of very little
    step = 1e-4
    for more, less in itertools.permutations(range(len(damage)), 2):
        if left_out[more] + step <= most and left_out[less] >= step:
            moved = left_out.copy()
            moved[more] += step
            moved[less] -= step
            assert (cost * moved**2).sum() >= (cost * left_out**2).sum() - 1e-12


def test_damage_by_hand() -> None:
    """Left out in proportion to 1 / damage: 4 : 2 : 1 of 1.4."""
    assert np.allclose(densities_by_damage([1, 2, 4], 1 - 1.4 / 3), [0.2, 0.6, 0.8])
    assert np.allclose(densities_by_damage([0.1, 2, 4], 0.5), [0.05, 1 - 0.55 * 2 / 3, 1 - 0.55 / 3])


@pytest.mark.parametrize("damage", [[1, -1], [1, math.nan], [math.inf]])
def test_damage_is_a_number_of_at_least_0(damage: list[float]) -> None:
    with pytest.raises(ValueError, match="damage: got a negative, infinite or NaN entry"):
        densities_by_damage(damage, 0.5)
