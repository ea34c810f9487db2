"""Cosines at the edges of floating point, and the inequality of QUOKA and KeyDiff."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from reference import cosine_bound, unit


@given(st.integers(0, 2**32 - 1), st.integers(1, 9), st.sampled_from([1e-40, 1e-30, 1.0, 1e30]))
def test_unit_vectors_have_length_one_at_any_size(seed: int, dim: int, size: float) -> None:
    x = np.random.default_rng(seed).standard_normal((3, dim)) * size
    np.testing.assert_allclose(np.linalg.norm(unit(x), axis=-1), 1, rtol=1e-12)
    np.testing.assert_allclose(unit(x) * np.linalg.norm(x / size, axis=-1, keepdims=True), x / size, rtol=1e-12)
    narrow = unit(x.astype(np.float32))
    assert narrow.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(narrow, axis=-1), 1, rtol=1e-5)


def test_a_zero_vector_stays_zero() -> None:
    np.testing.assert_array_equal(unit(np.array([[0.0, 0.0], [3.0, 4.0]])), [[0, 0], [0.6, 0.8]])


@given(st.integers(0, 2**32 - 1), st.integers(2, 8))
def test_a_query_that_reads_what_the_mean_does_not_is_far_from_the_mean(seed: int, dim: int) -> None:
    k, q, m = np.random.default_rng(seed).standard_normal((3, dim))

    def cosine(x: np.ndarray, y: np.ndarray) -> float:
        return x @ y / (np.linalg.norm(x) * np.linalg.norm(y))

    assert cosine(m, q) <= cosine_bound(cosine(m, k), cosine(k, q)) + 1e-12


@pytest.mark.parametrize(("alpha", "beta"), [(-1.0, 1.0), (-0.5, 0.5), (0.0, 0.0)])
def test_the_bound_is_reached_where_both_cosines_are_equally_large(alpha: float, beta: float) -> None:
    """In the plane, with |α| = |β|, both steps of the inequality are equalities."""
    q = np.array([beta, np.sqrt(1 - beta**2)])  # k = (1, 0)
    m = np.array([alpha, np.sqrt(1 - alpha**2)])
    assert cosine_bound(alpha, beta) == pytest.approx(m @ q, abs=1e-12)
