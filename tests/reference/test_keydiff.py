"""KeyDiff against its pairwise definition, and as an evictor."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from reference import KeyDiff, keydiff_scores
from tests.reference.seen import seen_of
from tests.strategies import Case, attention_cases


def cosine(x: np.ndarray, y: np.ndarray) -> float:
    lengths = np.linalg.norm(x) * np.linalg.norm(y)
    return float(x @ y / lengths) if lengths > 0 else 0.0


@given(attention_cases())
def test_scores_are_the_papers(case: Case) -> None:
    for kv, keys in enumerate(case.k):
        units = [key / np.linalg.norm(key) if key.any() else key for key in keys]
        anchor = sum(units) / len(keys)
        if np.linalg.norm(anchor) > 1e-9:
            wanted = [-cosine(key, anchor) for key in keys]
            np.testing.assert_allclose(keydiff_scores(case.k)[kv], wanted, atol=1e-7)
        raw = sum(keys) / len(keys)
        if np.linalg.norm(raw) > 1e-9:
            wanted = [-cosine(key, raw) for key in keys]
            np.testing.assert_allclose(keydiff_scores(case.k, anchor="raw")[kv], wanted, atol=1e-7)


@given(st.integers(0, 2**32 - 1), st.integers(1, 40), st.integers(2, 16))
def test_the_pairwise_and_the_anchor_form_rank_equally(seed: int, size: int, dim: int) -> None:
    k = np.random.default_rng(seed).standard_normal((1, size, dim)) * np.exp(
        np.random.default_rng(seed + 1).standard_normal((1, size, 1))
    )
    pairwise = np.array([-sum(cosine(x, y) for y in k[0]) for x in k[0]])
    scores = keydiff_scores(k)[0]
    for i in range(size):
        apart = np.abs(pairwise - pairwise[i]) > 1e-9
        np.testing.assert_array_equal((scores > scores[i])[apart], (pairwise > pairwise[i])[apart])
    anchor = sum(x / np.linalg.norm(x) for x in k[0]) / size
    np.testing.assert_allclose(scores * size * np.linalg.norm(anchor), pairwise, atol=1e-9)


def test_the_raw_anchor_ranks_differently() -> None:
    """One long key pulls the raw mean to itself; unit keys outvote it."""
    k = np.array([[[10.0, 0.0], [0.0, 1.0], [0.0, 1.0], [0.1, 1.0]]])
    assert keydiff_scores(k)[0].argmax() == 0
    assert keydiff_scores(k, anchor="raw")[0].argmin() == 0


def test_a_zero_anchor_or_key_has_cosine_zero() -> None:
    opposite = np.array([[[1.0, 0.0], [-1.0, 0.0], [0.0, 2.0], [0.0, -5.0]]])
    np.testing.assert_array_equal(keydiff_scores(opposite), np.zeros((1, 4)))
    with_zero = np.array([[[1.0, 0.0], [0.0, 0.0], [3.0, 0.0]]])
    np.testing.assert_allclose(keydiff_scores(with_zero), [[-1, 0, -1]])


@pytest.mark.parametrize("size", [1e-30, 1e30])
def test_length_does_not_matter(size: float) -> None:
    k = np.random.default_rng(0).standard_normal((2, 9, 8)).astype(np.float32)
    scaled = k * np.array([size, 1, 1] * 3, np.float32)[:, None]
    np.testing.assert_allclose(keydiff_scores(scaled), keydiff_scores(k), rtol=1e-5, atol=1e-6)


def test_every_head_is_scored_on_its_own() -> None:
    k = np.random.default_rng(0).standard_normal((3, 9, 8))
    for kv in range(3):
        np.testing.assert_array_equal(keydiff_scores(k)[kv], keydiff_scores(k[kv : kv + 1])[0])


@given(attention_cases(max_keys=16), st.integers(1, 16), st.integers(0, 2), st.integers(0, 2), st.booleans())
def test_evicts_to_the_budget_over_all_that_is_cached(
    case: Case, budget: int, sinks: int, recent: int, raw: bool
) -> None:
    budget = max(budget, sinks + recent)
    anchor = "raw" if raw else "normalised"
    seen = seen_of(case)
    evicted = KeyDiff(budget, sinks, recent, anchor).evict(seen)
    size = case.k.shape[1]
    if size <= budget:
        assert evicted is None
        np.testing.assert_array_equal(seen.cache.positions, case.k_positions)
        return
    scores = keydiff_scores(case.k, anchor=anchor)
    for kv in range(len(case.k)):
        forced = [j for j in range(size) if case.k_positions[kv, j] < sinks or j >= size - recent]
        columns = sorted(sorted(range(size), key=lambda j: (j not in forced, -scores[kv, j], j))[:budget])
        np.testing.assert_array_equal(seen.cache.positions[kv], case.k_positions[kv, columns])
        np.testing.assert_array_equal(seen.cache.k[kv], case.k[kv, columns])
        np.testing.assert_array_equal(seen.cache.v[kv], case.v[kv, columns])


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"budget": 0}, "budget: got 0"),
        ({"budget": -3}, "budget: got -3"),
        ({"budget": 0.0}, "budget: got 0.0"),
        ({"budget": 1.01}, "budget: got 1.01"),
        ({"budget": "8"}, "budget: got '8'"),
        ({"budget": 4, "sinks": 3, "recent": 2}, r"sinks \+ recent: got 3 \+ 2, wanted at most the budget, 4"),
        ({"budget": 4, "recent": -1}, "recent: got -1"),
        ({"budget": 4, "anchor": "median"}, "anchor: got 'median', wanted one of normalised, raw"),
    ],
)
def test_bad_settings(fields: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        KeyDiff(**fields)


def test_bad_arrays() -> None:
    with pytest.raises(ValueError, match=r"k: got shape \(3, 4\), wanted \(KV, S, D\)"):
        keydiff_scores(np.zeros((3, 4)))
    with pytest.raises(ValueError, match="anchor: got 'median'"):
        keydiff_scores(np.zeros((1, 3, 4)), anchor="median")
    with pytest.raises(ValueError, match="k: got dtype int64"):
        keydiff_scores(np.zeros((1, 3, 4), np.int64))
