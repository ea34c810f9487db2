"""Attention against the formula written out with Python loops."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from reference import attention, attention_each, attention_mass
from tests.strategies import Case, attention_cases

SCALES = st.sampled_from([None, 0.3])
WINDOWS = st.sampled_from([None, 1, 3, 100])


CAPS = st.sampled_from([None, 0.2, 5.0])


def by_hand(case: Case, scale: float | None, window: int | None, cap: float | None) -> tuple[np.ndarray, np.ndarray]:
    """Output (H, T, D) and received attention (H, S), one number at a time."""
    heads, tokens, dim = case.q.shape
    out, mass = np.zeros((heads, tokens, dim)), np.zeros((heads, case.k.shape[1]))
    scale = 1 / math.sqrt(dim) if scale is None else scale
    for h in range(heads):
        kv = h // case.group
        for t in range(tokens):
            p = case.q_positions[t]
            seen = [j for j, at in enumerate(case.k_positions[kv]) if at <= p and (window is None or at > p - window)]
            if not seen:
                continue
            scores = [scale * float(np.dot(case.q[h, t], case.k[kv, j])) for j in seen]
            if cap is not None:
                scores = [cap * math.tanh(s / cap) for s in scores]
            peak = max(scores)
            weights = [math.exp(s - peak) for s in scores]
            for j, w in zip(seen, weights, strict=True):
                mass[h, j] += w / math.fsum(weights)
                out[h, t] += w / math.fsum(weights) * case.v[kv, j]
    return out, mass


@given(attention_cases(), SCALES, WINDOWS, CAPS)
def test_matches_the_formula(case: Case, scale: float | None, window: int | None, cap: float | None) -> None:
    out, mass = by_hand(case, scale, window, cap)
    options = {"scale": scale, "window": window, "cap": cap}
    got = attention(case.q, case.k, case.v, case.q_positions, case.k_positions, **options)
    np.testing.assert_allclose(got, out, rtol=1e-10, atol=1e-12)
    got = attention_mass(case.q, case.k, case.q_positions, case.k_positions, **options)
    np.testing.assert_allclose(got, mass, rtol=1e-10, atol=1e-12)


@given(attention_cases())
def test_keys_after_the_last_query_change_nothing(case: Case) -> None:
    future = np.full((len(case.k), 1), max(case.q_positions[-1], case.k_positions.max()) + 1)
    k, v = (np.concatenate([x, x[:, :1] + 7], axis=1) for x in (case.k, case.v))
    got = attention(case.q, k, v, case.q_positions, np.concatenate([case.k_positions, future], axis=1))
    want = attention(case.q, case.k, case.v, case.q_positions, case.k_positions)
    np.testing.assert_allclose(got, want, rtol=1e-12, atol=1e-12)


def test_a_query_that_sees_nothing_reads_nothing() -> None:
    q, k = np.ones((2, 1, 4)), np.ones((1, 3, 4))
    out = attention(q, k, k, np.array([5]), np.array([[6, 7, 8]]))
    assert (out == 0).all()
    assert (attention_mass(q, k, np.array([5]), np.array([[6, 7, 8]])) == 0).all()


def test_scores_far_apart_do_not_overflow() -> None:
    q = np.full((1, 1, 4), 1e4, np.float32)
    k = np.stack([np.full(4, 1e4), np.full(4, -1e4)])[None].astype(np.float32)
    v = np.array([[[1.0] * 4, [2.0] * 4]], np.float32)
    np.testing.assert_array_equal(attention(q, k, v, np.array([1]), np.array([[0, 1]])), np.ones((1, 1, 4)))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"q": np.ones((3, 2, 4))}, "wanted a multiple of KV=2"),
        ({"q": np.ones((4, 2, 5))}, r"k: got shape \(2, 3, 4\), wanted \(KV, S, D=5\)"),
        ({"v": np.ones((2, 2, 4))}, r"v: got shape \(2, 2, 4\), wanted \(KV=2, S=3, D=4\)"),
        ({"q": np.ones((4, 2, 4), int)}, "q: got dtype int64, wanted a floating-point type"),
        ({"q_positions": np.array([1.0, 2.0])}, "q_positions: got dtype float64, wanted an integer type"),
        ({"k_positions": np.array([[0, 2, 1]] * 2)}, r"k_positions: got 2 followed by 1 at index \(0, 1\)"),
        ({"q_positions": np.array([2, 2])}, "q_positions: got 2 followed by 2"),
        ({"window": 0}, "window: got 0, wanted a whole number of at least 1"),
        ({"scale": math.nan}, "scale: got nan"),
    ],
)
def test_bad_arguments_are_named(change: dict, message: str) -> None:
    arguments = {
        "q": np.ones((4, 2, 4)),
        "k": np.ones((2, 3, 4)),
        "v": np.ones((2, 3, 4)),
        "q_positions": np.array([1, 2]),
        "k_positions": np.array([[0, 1, 2]] * 2),
    } | change
    with pytest.raises(ValueError, match=message):
        attention(**arguments)


@pytest.mark.parametrize("dtype", [np.int8, np.int16, np.int32, np.uint8, np.uint16, np.uint32, np.uint64])
def test_positions_of_any_integer_type_mean_the_same(dtype: type) -> None:
    """Differences of unsigned positions wrap: a key in the future would look far in the past."""
    rng = np.random.default_rng(0)
    q, k, v = rng.standard_normal((2, 5, 4)), rng.standard_normal((2, 9, 4)), rng.standard_normal((2, 9, 4))
    q_positions, k_positions = np.arange(3, 8), np.stack([np.arange(9), np.arange(9) + 90])
    wanted = attention(q, k, v, q_positions, k_positions, window=4)
    got = attention(q, k, v, q_positions.astype(dtype), k_positions.astype(dtype), window=4)
    np.testing.assert_array_equal(got, wanted)
    np.testing.assert_array_equal(attention(q, k, v, 3, k_positions, window=4), wanted)


@pytest.mark.parametrize(("tokens", "keys"), [(0, 3), (2, 0), (0, 0)])
def test_nothing_asked_or_nothing_there(tokens: int, keys: int) -> None:
    q, k, places = np.ones((4, tokens, 6)), np.ones((2, keys, 6)), np.tile(np.arange(keys), (2, 1))
    np.testing.assert_array_equal(attention(q, k, k, 5, places), np.zeros((4, tokens, 6)) + (keys > 0))
    np.testing.assert_array_equal(attention_mass(q, k, 5, places).sum(axis=1), [tokens * (keys > 0)] * 4)
    (rows,) = attention_each([(q, k, k, 5, places)])
    assert rows.shape == (tokens, 24)
