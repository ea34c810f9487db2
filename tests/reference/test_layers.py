"""The single-token layers against their formulas, and what they say of bad arguments."""

from __future__ import annotations

import math

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from reference import Rope, embed, gated_ffn, linear, merge_heads, rms_norm, rotate, split_heads
from reference.layers import activate

RNG = np.random.default_rng(3)


def test_rms_norm() -> None:
    x, weight = RNG.standard_normal((3, 5)), RNG.standard_normal(5)
    for t in range(3):
        size = math.sqrt(sum(value**2 for value in x[t]) / 5 + 1e-3)
        np.testing.assert_allclose(rms_norm(x, weight, eps=1e-3)[t], x[t] / size * weight, rtol=1e-14)
    assert (rms_norm(np.zeros((1, 5)), weight, eps=1e-6) == 0).all()


def test_activations() -> None:
    x = np.array([-800.0, -3.0, -0.0, 0.5, 4.0, 800.0])
    silu = [0.0 if v == -800 else v / (1 + math.exp(-v)) for v in x]
    np.testing.assert_allclose(activate(x, "silu"), silu, rtol=1e-14, atol=1e-300)
    gelu = [v / 2 * (1 + math.tanh(math.sqrt(2 / math.pi) * (v + 0.044715 * v**3))) for v in x]
    np.testing.assert_allclose(activate(x, "gelu_tanh"), gelu, rtol=1e-14, atol=1e-15 * np.abs(x).max())
    u = math.sqrt(2 / math.pi) * (-5 + 0.044715 * -125)  # where 1 + tanh u would have lost 7 of 16 digits
    np.testing.assert_allclose(activate(np.array([-5.0]), "gelu_tanh"), -5 / (1 + math.exp(-2 * u)), rtol=1e-14)
    with pytest.raises(ValueError, match="act: got 'relu', wanted one of silu, gelu_tanh"):
        activate(x, "relu")


@pytest.mark.parametrize("act", ["silu", "gelu_tanh"])
def test_gated_ffn_neuron_by_neuron(act: str) -> None:
    x, gate, up = (RNG.standard_normal(shape) for shape in [(3, 4), (6, 4), (6, 4)])
    down = RNG.standard_normal((4, 6))
    want = sum(np.outer(activate(x @ gate[f], act) * (x @ up[f]), down[:, f]) for f in range(6))
    np.testing.assert_allclose(gated_ffn(x, gate, up, down, act=act), want, rtol=1e-12)


@given(st.integers(0, 2**32 - 1), st.integers(0, 5000), st.integers(-3000, 3000), st.sampled_from([2, 8, 24]))
def test_rotation_keeps_lengths_and_sees_only_distance(seed: int, at: int, shift: int, head_dim: int) -> None:
    rng = np.random.default_rng(seed)
    q, k = rng.standard_normal((2, 1, 1, head_dim))
    rope = Rope(10_000.0)

    def turned(x: np.ndarray, position: int) -> np.ndarray:
        return rotate(x, *rope.table(head_dim, np.array([position]), 1))[0, 0]

    np.testing.assert_allclose(np.linalg.norm(turned(q, at)), np.linalg.norm(q), rtol=1e-12)
    far = max(0, at + shift)
    np.testing.assert_allclose(
        turned(q, far) @ turned(k, at), turned(q, far + 11) @ turned(k, at + 11), rtol=1e-9, atol=1e-9
    )


def test_rotation_pairs_the_halves() -> None:
    """One pair at a quarter turn: (x, y) becomes (-y, x), where y stands half a head after x."""
    x = np.array([[[1.0, 5.0, 2.0, 6.0]]])
    cosine, sine = np.array([[0.0, 1.0]]), np.array([[1.0, 0.0]])
    np.testing.assert_allclose(rotate(x, cosine, sine), [[[-2.0, 5.0, 1.0, 6.0]]])


def test_rope_scalings() -> None:
    plain = Rope(10_000.0).frequencies(8, 0)
    np.testing.assert_allclose(plain, [10_000 ** (-2 * i / 8) for i in range(4)])
    np.testing.assert_allclose(Rope(10_000.0, "linear", factor=4.0).frequencies(8, 0), plain / 4)
    llama3 = Rope(10_000.0, "llama3", factor=8.0, original_positions=1000, low_freq_factor=1.0, high_freq_factor=4.0)
    for frequency, scaled in zip(plain, llama3.frequencies(8, 0), strict=True):
        wavelength = 2 * math.pi / frequency
        smooth = (1000 / wavelength - 1) / (4 - 1)
        want = frequency if wavelength < 1000 / 4 else frequency / 8 if wavelength > 1000 / 1 else None
        want = (1 - smooth) * frequency / 8 + smooth * frequency if want is None else want
        assert scaled == pytest.approx(want, rel=1e-12)
    dynamic = Rope(10_000.0, "dynamic", factor=2.0, original_positions=100)
    np.testing.assert_allclose(dynamic.frequencies(8, 100), plain)
    base = 10_000 * (2 * 300 / 100 - 1) ** (8 / 6)
    np.testing.assert_allclose(dynamic.frequencies(8, 300), [base ** (-2 * i / 8) for i in range(4)])


def test_widening_of_16_bit_weights() -> None:
    x = RNG.standard_normal((2, 8)).astype(np.float32)
    for dtype in (np.float16, ml_dtypes.bfloat16):
        w = RNG.standard_normal((3, 8)).astype(dtype)
        got = linear(x, w)
        assert got.dtype == np.float32
        np.testing.assert_allclose(got, x @ w.astype(np.float32).T, rtol=1e-6)


def test_linear_bias_and_embedding() -> None:
    x, w, b = RNG.standard_normal((2, 4)), RNG.standard_normal((3, 4)), RNG.standard_normal(3)
    np.testing.assert_allclose(linear(x, w, b), [[sum(x[t] * w[o]) + b[o] for o in range(3)] for t in range(2)])
    table = RNG.standard_normal((5, 4))
    np.testing.assert_allclose(embed(np.array([4, 0]), table, scale=3.0), 3 * table[[4, 0]])
    with pytest.raises(ValueError, match=r"token_ids: got id 5, wanted 0 to 4"):
        embed(np.array([5]), table)
    with pytest.raises(ValueError, match="token_ids: got id"):
        embed(np.array([-1]), table)


def test_heads_split_and_merge() -> None:
    x = np.arange(24).reshape(2, 12)
    heads = split_heads(x, 3)
    assert heads.shape == (3, 2, 4)
    np.testing.assert_array_equal(heads[1, 0], x[0, 4:8])
    np.testing.assert_array_equal(merge_heads(heads), x)


def test_shapes_are_checked() -> None:
    with pytest.raises(ValueError, match=r"weight: got shape \(3, 5\), wanted \(out, in=4\)"):
        linear(np.ones((2, 4)), np.ones((3, 5)))
    with pytest.raises(ValueError, match=r"w_down: got shape \(3, 4\), wanted \(E=4, F=3\)"):
        gated_ffn(np.ones((2, 4)), np.ones((3, 4)), np.ones((3, 4)), np.ones((3, 4)))
    with pytest.raises(ValueError, match=r"x: got shape \(2, 4\), wanted a last axis of 5"):
        rms_norm(np.ones((2, 4)), np.ones(5), eps=1e-5)
