"""H2O, TOVA and SnapKV against loops over queries and keys, chunk after chunk."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from reference import H2O, SnapKV, Tova, group_mean, pool, snapkv_scores, tova_scores
from tests.reference.seen import attention_by_hand, seen_of
from tests.strategies import Case, attention_cases, chunk_cases


def pooled_by_hand(h: np.ndarray, kernel: int) -> np.ndarray:
    reach = kernel // 2
    return np.array(
        [[sum(row[max(0, j - reach) : j + reach + 1]) / kernel for j in range(len(row))] for row in h.tolist()]
    ).reshape(h.shape)


@given(attention_cases())
def test_tova_is_the_row_of_the_last_query(case: Case) -> None:
    weights = attention_by_hand(case.q, case.k, case.q_positions, case.k_positions, 0.3)
    got = tova_scores(case.q, case.k, case.q_positions, case.k_positions, scale=0.3)
    np.testing.assert_allclose(got, weights[:, -1], atol=1e-12)


@given(attention_cases(), st.integers(1, 8), st.sampled_from([1, 3, 5, 31]))
def test_snapkv_pools_the_votes_of_the_window(case: Case, window: int, kernel: int) -> None:
    weights = attention_by_hand(case.q, case.k, case.q_positions, case.k_positions, 0.3)
    got = snapkv_scores(case.q, case.k, case.q_positions, case.k_positions, window=window, kernel=kernel, scale=0.3)
    np.testing.assert_allclose(got, pooled_by_hand(weights[:, -window:].sum(axis=1), kernel), atol=1e-12)


def test_pooling_counts_the_zeros_beyond_the_ends() -> None:
    np.testing.assert_allclose(pool(np.array([[3.0, 6, 9, 12]]), 3), [[3, 6, 9, 7]])
    np.testing.assert_allclose(pool(np.array([[5.0]]), 5), [[1]])
    np.testing.assert_array_equal(pool(np.array([[3.0, 6]]), 1), [[3, 6]])


METHODS = {
    "h2o": lambda budget: H2O(budget),
    "tova": lambda budget: Tova(budget),
    "snapkv": lambda budget: SnapKV(budget, window=3, kernel=3),
}


def chunk(rng: np.random.Generator, first: int, tokens: int, dim: int) -> tuple[np.ndarray, ...]:
    q = rng.standard_normal((4, tokens, dim)) * 2
    k, v = rng.standard_normal((2, 2, tokens, dim))
    return q, k, v, np.arange(first, first + tokens)


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("chunks", [[5, 5, 5, 2], [5, 7, 1, 1, 1, 1]])
def test_chunk_after_chunk(name: str, chunks: list[int]) -> None:
    """The whole course of an eviction, with every score kept by token in plain dictionaries; chunks of one decode."""
    rng, method, budget = np.random.default_rng(len(chunks)), METHODS[name](8), 8
    empty = np.zeros((2, 0, 6))
    cache = seen_of(Case(empty, empty, empty, np.arange(0), np.zeros((2, 0), np.int64))).cache
    all_k, received = np.zeros((2, 100, 6)), np.zeros((4, 100))
    held = [list[int](), list[int]()]  # positions by KV head
    recent_q: list[tuple[int, np.ndarray]] = []  # all queries so far with their positions
    first = 0
    for tokens in chunks:
        q, k, v, positions = chunk(rng, first, tokens, 6)
        decoding = tokens == 1
        cache.append(k, v, first)
        seen = seen_of(Case(q, cache.k, cache.v, positions, cache.positions), decoding=decoding)
        seen = type(seen)(**{**seen.__dict__, "cache": cache})
        evicted = method.evict(seen)

        all_k[:, positions] = k
        recent_q += [(p, q[:, t]) for t, p in enumerate(positions.tolist())]
        voters = recent_q[-3:] if decoding else recent_q[-min(3, tokens) :]
        for kv in range(2):
            held[kv] += positions.tolist()
        h = np.zeros((4, len(held[0])))
        for head in range(4):
            kv = head // 2
            rows = []
            for p, queries in recent_q:
                seen_keys = [j for j in held[kv] if j <= p]
                e = np.exp(0.3 * all_k[kv, seen_keys] @ queries[head])
                rows.append((p, dict(zip(seen_keys, e / e.sum(), strict=True))))
            for p, row in rows:
                if p >= first:
                    for j, a in row.items():
                        received[head, j] += a
            votes = {"h2o": None, "tova": rows[-1:], "snapkv": rows[-len(voters) :]}[name]
            for column, j in enumerate(held[kv]):
                h[head, column] = received[head, j] if votes is None else sum(row.get(j, 0.0) for _, row in votes)
        if name == "snapkv":
            h = pooled_by_hand(h, 3)
        scores = h.reshape(2, 2, -1).mean(axis=1)
        first += tokens
        if len(held[0]) <= budget:
            assert evicted is None
            continue
        assert evicted is not None
        np.testing.assert_allclose(evicted[0], scores, atol=1e-12)
        newest = len(voters) if name == "snapkv" else 0
        for kv in range(2):
            size = len(held[kv])
            order = sorted(range(size), key=lambda j: (j < size - newest, -scores[kv, j], j))
            held[kv] = [held[kv][j] for j in sorted(order[:budget])]
        np.testing.assert_array_equal(cache.positions, held)
    assert first > budget


@given(
    chunk_cases(max_past=10),
    st.sampled_from(sorted(METHODS)),
    st.integers(0, 2**32 - 1),
    st.sampled_from([None, 0.3]),
)
def test_keys_that_were_not_read_score_zero(drawn: tuple[Case, int], name: str, seed: int, cap: float | None) -> None:
    """Scores over the keys that a selection left, put back in their columns, of capped attention too."""
    case, past = drawn
    size, rng = case.k.shape[1], np.random.default_rng(seed)
    count = int(rng.integers(0, past + 1))
    columns = np.array(
        [sorted(rng.choice(past, count, replace=False)) + list(range(past, size)) for _ in case.k], np.int64
    )
    seen = seen_of(case, columns=columns, cap=cap)
    method = METHODS[name](1)
    method.observe(seen)
    weights = attention_by_hand(case.q, seen.k, case.q_positions, seen.k_positions, 0.3, cap)
    h = {
        "h2o": weights.sum(axis=1),
        "tova": weights[:, -1],
        "snapkv": pooled_by_hand(weights[:, -3:].sum(axis=1), 3),
    }[name]
    wanted = np.zeros((len(h), size))
    for head in range(len(h)):
        wanted[head, columns[head // case.group]] = h[head]
    np.testing.assert_allclose(method.scores(seen), group_mean(wanted, len(case.k)), atol=1e-12)


@pytest.mark.parametrize("budget", [1, 2, 5, 20])
@pytest.mark.parametrize("sinks", [0, 1])
def test_snapkv_keeps_its_windows_own_keys_as_far_as_the_budget_goes(budget: int, sinks: int) -> None:
    rng = np.random.default_rng(0)
    q, k, v, positions = chunk(rng, 0, 30, 6)
    seen = seen_of(Case(q, k, v, positions, np.tile(positions, (2, 1))))
    SnapKV(budget, sinks=sinks, window=8).evict(seen)
    newest = min(8, budget - sinks)
    assert seen.cache.size == budget
    np.testing.assert_array_equal(seen.cache.positions[:, budget - newest :], [range(30 - newest, 30)] * 2)
    assert (seen.cache.positions[:, :sinks] == 0).all()


def test_h2o_refuses_to_score_what_it_has_not_observed() -> None:
    q, k, v, positions = chunk(np.random.default_rng(0), 0, 5, 6)
    with pytest.raises(RuntimeError, match="observe"):
        H2O(2).scores(seen_of(Case(q, k, v, positions, np.tile(positions, (2, 1)))))


def test_the_group_is_averaged_and_ties_go_to_the_lower_index() -> None:
    """Equal keys receive equal attention, so the first of them stay."""
    q, k, v, positions = chunk(np.random.default_rng(0), 0, 6, 6)
    k[:] = 1
    seen = seen_of(Case(q[:, -1:], k, v, positions[-1:], np.tile(positions, (2, 1))))
    Tova(4).evict(seen)
    np.testing.assert_array_equal(seen.cache.positions, [[0, 1, 2, 3]] * 2)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: H2O(0), "budget: got 0"),
        (lambda: Tova(2.5), "budget: got 2.5"),
        (lambda: SnapKV(8, window=0), "window: got 0"),
        (lambda: SnapKV(8, kernel=4), "kernel: got 4, wanted an odd number"),
        (lambda: SnapKV(8, kernel=0), "kernel: got 0"),
        (lambda: pool(np.zeros((1, 3)), 2), "kernel: got 2, wanted an odd number"),
    ],
)
def test_bad_settings(make: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()  # type: ignore[operator]


def test_bad_arrays() -> None:
    q, k, _, positions = chunk(np.random.default_rng(0), 0, 5, 6)
    k_positions = np.tile(positions, (2, 1))
    for scores in (tova_scores, snapkv_scores):
        with pytest.raises(ValueError, match=r"q: got shape \(4, 0, 6\), wanted at least one query"):
            scores(q[:, :0], k, positions[:0], k_positions)
        with pytest.raises(ValueError, match=r"k_positions: got shape \(2, 4\), wanted \(KV=2, S=5\)"):
            scores(q, k, positions, k_positions[:, :4])
    with pytest.raises(ValueError, match="window: got 0"):
        snapkv_scores(q, k, positions, k_positions, window=0)
