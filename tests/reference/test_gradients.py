"""The steps of a transformer with gradients: each does what its formula says, and slopes as finite differences do."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from reference import Compensator, Predictor, gradients
from reference import layers as plain

SEEDS = st.integers(0, 999)


def check(f: Callable[..., Any], arrays: dict[str, np.ndarray], wanted: np.ndarray, seed: int) -> None:
    """f(**arrays) is `wanted`, and what its `back` makes of a random d_y is the slope of Σ d_y f, array by array: in
    the order of `arrays`."""
    y, back = f(**arrays)
    np.testing.assert_allclose(y, wanted, rtol=1e-9, atol=1e-12)
    d_y = np.random.default_rng(seed + 1).standard_normal(y.shape)
    found = back(d_y)
    for (name, array), got in zip(arrays.items(), found if isinstance(found, tuple) else (found,), strict=False):
        assert got.shape == array.shape
        for at in {tuple(np.random.default_rng(n).integers(array.shape)) for n in range(8)}:
            moved = [array.copy(), array.copy()]
            moved[0][at] += 1e-5
            moved[1][at] -= 1e-5
            above, below = (float((d_y * f(**{**arrays, name: one})[0]).sum()) for one in moved)
            assert got[at] == pytest.approx((above - below) / 2e-5, rel=1e-4, abs=1e-6), (name, at)


@settings(max_examples=20)
@given(SEEDS, st.integers(1, 4), st.integers(1, 6))
def test_rms_norm(seed: int, tokens: int, width: int) -> None:
    rng = np.random.default_rng(seed)
    x, weight = rng.standard_normal((tokens, width)), rng.standard_normal(width)
    wanted = x / np.sqrt((x * x).mean(axis=1, keepdims=True) + 1e-2) * weight
    check(lambda x: gradients.rms_norm(x, weight, 1e-2), {"x": x}, wanted, seed)


@settings(max_examples=20)
@given(SEEDS, st.integers(1, 3), st.integers(1, 4))
def test_rotate(seed: int, tokens: int, half: int) -> None:
    rng = np.random.default_rng(seed)
    x, angles = rng.standard_normal((2, tokens, 2 * half)), rng.standard_normal((tokens, half))
    cosine, sine = 1.3 * np.cos(angles), 1.3 * np.sin(angles)  # a family may stretch what it turns
    turned = (x[..., :half] + 1j * x[..., half:]) * (cosine + 1j * sine)
    wanted = np.concatenate([turned.real, turned.imag], axis=-1)
    check(lambda x: gradients.rotate(x, cosine, sine), {"x": x}, wanted, seed)


@settings(max_examples=20)
@given(SEEDS, st.integers(1, 2), st.integers(1, 3), st.integers(1, 6), st.integers(1, 6))
def test_attention(seed: int, kv: int, group: int, tokens: int, window: int) -> None:
    rng = np.random.default_rng(seed)
    arrays = {name: rng.standard_normal((2, n, tokens, 3)) for name, n in {"q": kv * group, "k": kv, "v": kv}.items()}
    wanted = np.empty_like(arrays["q"])
    for p, h, t in np.ndindex(wanted.shape[:3]):
        seen = slice(max(0, t - window + 1), t + 1)
        e = np.exp(0.7 * arrays["k"][p, h // group, seen] @ arrays["q"][p, h, t])
        wanted[p, h, t] = e / e.sum() @ arrays["v"][p, h // group, seen]
    ahead = np.arange(tokens) - np.arange(tokens)[:, None]
    hidden = (ahead > 0) | (ahead <= -window)
    check(lambda q, k, v: gradients.attention(q, k, v, hidden, 0.7), arrays, wanted, seed)


@settings(max_examples=20)
@given(SEEDS, st.sampled_from(["silu", "gelu_tanh"]), st.integers(1, 3), st.integers(1, 3))
def test_masked_ffn_and_compensator(seed: int, act: str, blocks: int, tokens: int) -> None:
    rng = np.random.default_rng(seed)
    gate, up, down = (rng.standard_normal(shape) for shape in ((5, 4), (5, 4), (4, 5)))
    x, mask = rng.standard_normal((blocks, tokens, 4)), rng.random((blocks, 5))
    terms = [plain.activate(x @ gate[f], act) * (x @ up[f]) for f in range(5)]
    wanted = sum(terms[f][..., None] * mask[:, f, None, None] * down[:, f] for f in range(5))
    check(lambda x, mask: gradients.masked_ffn(x, gate, up, down, mask, act), {"x": x, "mask": mask}, wanted, seed)

    def added(x: np.ndarray, c1: np.ndarray, c2: np.ndarray) -> tuple[np.ndarray, Any]:
        y, back = gradients.compensate(x, Compensator(c1, c2), act)
        return y, lambda d_y: (back(d_y)[0], *vars(back(d_y)[1]).values())

    c1, c2 = gate[:3], down[:, :3]
    check(added, {"x": x, "c1": c1, "c2": c2}, plain.activate(x @ c1.T, act) @ c2.T, seed)


@settings(max_examples=20)
@given(SEEDS, st.integers(1, 3), st.integers(1, 4))
def test_score(seed: int, blocks: int, tokens: int) -> None:
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((blocks, tokens, 4))
    arrays = {"q_pred": rng.standard_normal(4), "w1": rng.standard_normal((4, 3)), "w2": rng.standard_normal((3, 6))}

    def scored(**arrays: np.ndarray) -> tuple[np.ndarray, Any]:
        y, back = gradients.score(x, Predictor(**arrays))
        return y, lambda d_y: tuple(vars(back(d_y)).values())

    rows = []
    for block in x:
        shares = np.exp(block @ arrays["q_pred"] / 2)
        rows.append(np.maximum(shares / shares.sum() @ block @ arrays["w1"], 0) @ arrays["w2"])
    check(scored, arrays, np.array(rows), seed)


@settings(max_examples=20)
@given(SEEDS, st.integers(1, 4), st.integers(2, 6))
def test_divergence(seed: int, tokens: int, vocab: int) -> None:
    rng = np.random.default_rng(seed)
    logits, others = 3 * rng.standard_normal((2, tokens, vocab))
    p, q = (np.exp(x) / np.exp(x).sum(axis=1, keepdims=True) for x in (others, logits))

    def divergence(logits: np.ndarray) -> tuple[np.ndarray, Any]:
        loss, slope = gradients.divergence(logits, np.log(p))
        return np.array(loss), lambda d_y: d_y * slope

    check(divergence, {"logits": logits}, (p * np.log(p / q)).sum(axis=1).mean(), seed)


def test_a_choice_keeps_the_best_of_every_row() -> None:
    mask, cut = gradients.choose(np.array([[3.0, 1, 2, -4], [0, 0, 9, -1]]), 2)
    np.testing.assert_array_equal(mask, [[1, 0, 1, 0], [1, 0, 1, 0]])  # of two that tie, the lower
    np.testing.assert_array_equal(cut, [[2], [0]])


@given(seed=st.integers(0, 999), size=st.floats(1e-6, 1e6))
def test_the_slope_of_a_mask_follows_the_size_of_the_scores(seed: int, size: float) -> None:
    """m = σ((s − cut) / u) by differences, u being fixed; and it is the same function of the choice at any size."""
    scores = np.random.default_rng(seed).standard_normal((2, 7))
    cut = gradients.choose(scores, 3)[1]
    unit = 0.3 * np.abs(scores - cut).mean(axis=1, keepdims=True)
    up, down = (1 / (1 + np.exp(-(scores + step - cut) / unit)) for step in (1e-6, -1e-6))
    slope = gradients.mask_slope(scores, cut)
    np.testing.assert_allclose(slope, (up - down) / 2e-6, rtol=1e-4, atol=1e-8)
    np.testing.assert_allclose(gradients.mask_slope(size * scores, size * cut), slope / size, rtol=1e-9)
    np.testing.assert_array_equal(gradients.mask_slope(np.full((1, 3), size), np.full((1, 1), size)), 0.25)


def test_far_out_nothing_overflows() -> None:
    with np.errstate(over="raise", invalid="raise"):
        assert gradients.sigmoid(np.array([-5000.0, 0, 5000])).tolist() == [0, 0.5, 1]
        np.testing.assert_allclose(gradients.log_softmax(np.array([[5000.0, 4000.0]])), [[0, -1000]])
