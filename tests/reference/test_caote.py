"""CAOTE against removing a token and measuring what became of the output."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from reference import H2O, Caote, SnapKV, Tova, caote_scores, group_mean, joint_eviction_error
from tests.reference.seen import attention_by_hand, seen_of
from tests.strategies import Case, attention_cases, chunk_cases


def moved_by_removal(alpha: np.ndarray, v: np.ndarray, gone: list[int]) -> float:
    """‖o - o_without‖ with α renormalised over the tokens that remain."""
    left = [i for i in range(len(alpha)) if i not in gone]
    without = sum(alpha[i] * v[i] for i in left) / sum(alpha[i] for i in left)
    return float(np.linalg.norm(sum(a * x for a, x in zip(alpha, v, strict=True)) - without))


@given(st.integers(0, 2**32 - 1), st.integers(2, 12), st.integers(1, 6), st.sampled_from([0.1, 1.0, 10.0]))
def test_a_score_is_what_removing_the_token_moves(seed: int, size: int, dim: int, spread: float) -> None:
    rng = np.random.default_rng(seed)
    h = np.exp(spread * rng.standard_normal(size))
    v = rng.standard_normal((size, dim))
    alpha = h / h.sum()
    wanted = [moved_by_removal(alpha, v, [j]) for j in range(size)]
    np.testing.assert_allclose(caote_scores(h[None], v[None])[0], wanted, rtol=1e-12, atol=1e-12)


@given(st.integers(0, 2**32 - 1), st.integers(2, 7))
def test_the_joint_error_is_what_removing_the_set_moves(seed: int, size: int) -> None:
    rng = np.random.default_rng(seed)
    alpha, v = rng.dirichlet(np.ones(size)), rng.standard_normal((size, 3))
    for count in range(size):
        for gone in itertools.combinations(range(size), count):
            left = 1 - alpha[list(gone)].sum()
            assume(left > 1e-3)
            got = joint_eviction_error(alpha, v, np.array(gone, np.int64))
            assert got == pytest.approx(moved_by_removal(alpha, v, list(gone)), rel=1e-10, abs=1e-12)


@given(attention_cases(max_keys=8))
def test_over_tova_it_is_the_output_error_of_the_last_query(case: Case) -> None:
    """Attention with and without each key, per query head; the group's score is the mean of its heads'."""
    size = case.k.shape[1]
    positions = np.arange(size)[None].repeat(len(case.k), axis=0)  # the query sees every key
    q_positions = np.arange(size, size + case.q.shape[1])
    case = Case(case.q, case.k, case.v, q_positions, positions)
    scores = Caote(1, base="tova").scores(seen_of(case))
    assume(size > 1)
    wanted = np.zeros((len(case.q), size))
    for head in range(len(case.q)):
        kv = head // case.group
        e = np.exp(0.3 * (case.k[kv] @ case.q[head, -1]) - np.max(0.3 * (case.k[kv] @ case.q[head, -1])))
        o = e @ case.v[kv] / e.sum()
        for j in range(size):
            e_left, v_left = np.delete(e, j), np.delete(case.v[kv], j, axis=0)
            assume(e_left.sum() > 1e-200)
            wanted[head, j] = np.linalg.norm(o - e_left @ v_left / e_left.sum())
    wanted = np.array([wanted[kv * case.group : (kv + 1) * case.group].mean(axis=0) for kv in range(len(case.k))])
    np.testing.assert_allclose(scores, wanted, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("rest", [1e-3, 1e-6, 1e-9, 1e-20, 0.0])
@pytest.mark.parametrize("fast", [False, True])
def test_a_token_that_holds_all_attention_scores_finite_and_highest(dtype: str, rest: float, fast: bool) -> None:
    """Where 1 - α is lost in rounding, and o - v_j with it."""
    rng = np.random.default_rng(0)
    v = rng.standard_normal((1, 6, 4)).astype(dtype)
    h = np.full((1, 6), rest, dtype)
    h[0, 3] = 1
    scores = caote_scores(h, v, fast=fast)
    assert scores.dtype == dtype
    assert np.isfinite(scores).all()
    assert scores[0].argmax() == 3
    assert scores[0, 3] > 10 * np.delete(scores[0], 3).max()
    if not fast:  # the others weigh equally, so the output moves to their mean
        wanted = np.linalg.norm(v[0, 3] - np.delete(v[0], 3, axis=0).mean(axis=0)) * h[0, 3] / h.sum()
        np.testing.assert_allclose(scores[0, 3], wanted, rtol=1e-5)


def test_the_norm_is_not_squared() -> None:
    """Squared, the far value with little attention would outrank the near one with more."""
    h = np.array([[0.03, 0.3, 0.67]])
    v = np.array([[[4.0], [1.0], [0.0]]])
    scores = caote_scores(h, v)[0]
    o = 0.03 * 4 + 0.3
    np.testing.assert_allclose(scores[:2], [0.03 / 0.97 * (4 - o), 0.3 / 0.7 * (1 - o)])
    assert scores[0] < scores[1]
    assert 0.03 / 0.97 * (4 - o) ** 2 > 0.3 / 0.7 * (1 - o) ** 2


@given(attention_cases(), st.integers(0, 2**32 - 1))
def test_fast_puts_the_mean_value_in_the_place_of_the_output(case: Case, seed: int) -> None:
    h = np.random.default_rng(seed).random((len(case.q), case.k.shape[1]))
    alpha = h / h.sum(axis=1, keepdims=True)
    c = np.zeros_like(h)
    for head, row in enumerate(alpha):
        values = case.v[head // case.group]
        for j, a in enumerate(row):
            c[head, j] = a / max(1 - a, 1e-6) * np.linalg.norm(values.mean(axis=0) - values[j])
    np.testing.assert_allclose(caote_scores(h, case.v, fast=True), group_mean(c, len(case.k)), rtol=1e-9, atol=1e-12)


def test_heads_are_joined_after_the_formula() -> None:
    rng = np.random.default_rng(0)
    h, v = rng.random((6, 9)), rng.standard_normal((2, 9, 4))
    per_head = np.stack([caote_scores(h[head : head + 1], v[head // 3 : head // 3 + 1])[0] for head in range(6)])
    grouped = per_head.reshape(2, 3, 9)
    np.testing.assert_allclose(caote_scores(h, v), grouped.mean(axis=1))
    np.testing.assert_allclose(caote_scores(h, v, group="max"), grouped.max(axis=1))
    np.testing.assert_allclose(caote_scores(h, v, group="rss"), np.sqrt((grouped**2).sum(axis=1)))
    alpha = h / h.sum(axis=1, keepdims=True)
    averaged_first = caote_scores(alpha.reshape(2, 3, 9).mean(axis=1), v)
    assert np.abs(averaged_first - grouped.mean(axis=1)).max() > 1e-3


def test_base_scores_need_not_sum_to_one() -> None:
    rng = np.random.default_rng(0)
    h, v = rng.random((2, 9)), rng.standard_normal((1, 9, 4))
    np.testing.assert_allclose(caote_scores(h * np.array([[7.0], [0.01]]), v), caote_scores(h, v))


def test_a_head_without_scores_says_nothing() -> None:
    v = np.random.default_rng(0).standard_normal((1, 5, 4))
    np.testing.assert_array_equal(caote_scores(np.zeros((1, 5)), v), np.zeros((1, 5)))
    np.testing.assert_array_equal(caote_scores(np.zeros((1, 5)), v, fast=True), np.zeros((1, 5)))


def test_a_single_token_is_finite() -> None:
    scores = caote_scores(np.ones((2, 1)), np.ones((1, 1, 3)))
    assert np.isfinite(scores).all()


def base_scores_by_hand(base: str, case: Case, columns: np.ndarray) -> np.ndarray:
    """h over all cached columns (H, S), zero where not read."""
    read = np.take_along_axis(case.k, columns[:, :, None], axis=1)
    weights = attention_by_hand(
        case.q, read, case.q_positions, np.take_along_axis(case.k_positions, columns, axis=1), 0.3
    )
    votes = {"h2o": weights, "tova": weights[:, -1:], "snapkv": weights[:, -2:]}[base].sum(axis=1)
    if base == "snapkv":
        padded = np.pad(votes, ((0, 0), (1, 1)))
        votes = (padded[:, :-2] + padded[:, 1:-1] + padded[:, 2:]) / 3
    h = np.zeros((len(case.q), case.k.shape[1]))
    for head in range(len(h)):
        h[head, columns[head // case.group]] = votes[head]
    return h


@given(chunk_cases(max_past=10), st.sampled_from(["h2o", "tova", "snapkv"]), st.booleans(), st.integers(0, 2**32 - 1))
def test_it_wraps_the_scores_of_its_base(drawn: tuple[Case, int], base: str, fast: bool, seed: int) -> None:
    case, past = drawn
    size, rng = case.k.shape[1], np.random.default_rng(seed)
    count = int(rng.integers(0, past + 1))
    columns = np.array(
        [sorted(rng.choice(past, count, replace=False)) + list(range(past, size)) for _ in case.k], np.int64
    )
    method = Caote(1, base=base, fast=fast, group="rss", window=2, kernel=3)
    seen = seen_of(case, columns=columns)
    method.observe(seen)
    h = base_scores_by_hand(base, case, columns)
    np.testing.assert_allclose(
        method.scores(seen), caote_scores(h, case.v, fast=fast, group="rss"), rtol=1e-6, atol=1e-9
    )


@pytest.mark.parametrize("base", ["h2o", "tova", "snapkv"])
def test_it_observes_and_protects_as_its_base_does(base: str) -> None:
    rng = np.random.default_rng(0)
    k, v = rng.standard_normal((2, 2, 12, 6))
    q, positions = rng.standard_normal((4, 12, 6)), np.arange(12)
    case = Case(q, k, v, positions, np.tile(positions, (2, 1)))
    own, wrapped = seen_of(case), seen_of(case)
    Caote(6, sinks=1, recent=1, base=base, window=4).evict(own)
    {"h2o": H2O(6, 1, 1), "tova": Tova(6, 1, 1), "snapkv": SnapKV(6, 1, 1, window=4)}[base].evict(wrapped)
    kept, newest = own.cache.positions, 4 if base == "snapkv" else 1
    assert (kept[:, 0] == 0).all()
    np.testing.assert_array_equal(kept[:, -newest:], [range(12 - newest, 12)] * 2)
    assert set(own.cache.arrays()) == set(wrapped.cache.arrays())


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Caote(8, base="keydiff"), "base: got 'keydiff', wanted one of h2o, tova, snapkv"),
        (lambda: Caote(8, group="sum"), "group: got 'sum', wanted one of mean, max, rss"),
        (lambda: Caote(0), "budget: got 0"),
        (lambda: Caote(8, base="snapkv", window=0), "window: got 0"),
        (lambda: caote_scores(np.array([[-1.0, 2.0]]), np.zeros((1, 2, 3))), "h: got a negative score"),
        (lambda: caote_scores(np.array([[np.nan, 2.0]]), np.zeros((1, 2, 3))), "h: got a negative score or NaN"),
        (
            lambda: caote_scores(np.ones((1, 2)), np.zeros((1, 3, 3))),
            r"v: got shape \(1, 3, 3\), wanted \(KV, S=2, D\)",
        ),
        (lambda: caote_scores(np.ones((3, 2)), np.zeros((2, 2, 3))), "h: got H=3 query heads"),
        (lambda: caote_scores(np.ones((1, 2)), np.zeros((1, 2, 3)), group="sum"), "group: got 'sum'"),
        (
            lambda: joint_eviction_error(np.array([0.5, 0.5]), np.zeros((2, 3)), np.array([0, 1])),
            "evicted: got tokens that hold all attention",
        ),
    ],
)
def test_bad_input(make: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()  # type: ignore[operator]
