"""QUOKA against its definition, written as loops over heads, slots and keys."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import reference
from reference import Quoka, attention, keep_top, key_scores, quoka_attention, select_keys, select_queries
from tests.strategies import Case, chunk_cases


def cosine(x: np.ndarray, y: np.ndarray) -> float:
    lengths = np.linalg.norm(x) * np.linalg.norm(y)
    return float(x @ y / lengths) if lengths > 0 else 0.0


def chosen_by_hand(q: np.ndarray, n: int) -> list[list[int]]:
    """Step 1, head by head."""
    heads = []
    for queries in q:
        order = list(range(len(queries)))
        if len(queries) > n:
            mean = sum(queries) / len(queries)
            order.sort(key=lambda t: cosine(queries[t], mean))
        heads.append(order[:n])
    return heads


def scores_by_hand(q: np.ndarray, k: np.ndarray, slots: list[list[int]]) -> np.ndarray:
    """Steps 2 to 4, given the queries in every slot of every head."""
    group = len(q) // len(k)
    scores = np.zeros(k.shape[:2])
    for kv, keys in enumerate(k):
        heads = range(kv * group, (kv + 1) * group)
        for j, key in enumerate(keys):
            scores[kv, j] = max(
                sum(cosine(q[h, slots[h][slot]], key) for h in heads) / group for slot in range(len(slots[0]))
            )
    return scores


def draw(heads: int = 4, kv_heads: int = 2, tokens: int = 12, keys: int = 30, dim: int = 8, seed: int = 0) -> Case:
    rng = np.random.default_rng(seed)
    k, v = rng.standard_normal((2, kv_heads, keys, dim))
    positions = np.arange(keys)
    return Case(
        rng.standard_normal((heads, tokens, dim)),
        k,
        v,
        positions[-tokens:],
        np.broadcast_to(positions, (kv_heads, keys)),
    )


@given(chunk_cases(), st.integers(1, 9))
def test_scores_are_the_papers(drawn: tuple[Case, int], n: int) -> None:
    case, past = drawn
    k = case.k[:, :past]
    slots = chosen_by_hand(case.q, n)
    chosen = select_queries(case.q, n)
    for head, (got, wanted) in enumerate(zip(chosen, slots, strict=True)):
        mean = case.q[head].mean(axis=0)
        np.testing.assert_allclose(  # the same order, but for queries equally far from the mean
            [cosine(case.q[head, t], mean) for t in got], [cosine(case.q[head, t], mean) for t in wanted], atol=1e-12
        )
    np.testing.assert_allclose(key_scores(case.q, k, n), scores_by_hand(case.q, k, chosen.tolist()), atol=1e-12)


@given(chunk_cases(), st.integers(1, 9), st.integers(1, 20))
def test_keeps_the_top_of_its_own_scores(drawn: tuple[Case, int], n: int, budget: int) -> None:
    case, past = drawn
    k = case.k[:, :past]
    kept = select_keys(case.q, k, budget, n)
    assert kept.dtype == np.int64
    np.testing.assert_array_equal(kept, keep_top(key_scores(case.q, k, n), budget))
    assert kept.shape == (len(k), min(budget, past))


def test_the_least_similar_query_comes_first_and_ties_go_to_the_lower_index() -> None:
    q = np.array([[[1.0, 0], [0, 1], [1, 0], [-1, 0], [0, 1], [1, 0], [1, 0]]])  # mean (3, 2)/7
    np.testing.assert_array_equal(select_queries(q, 5), [[3, 1, 4, 0, 2]])
    np.testing.assert_array_equal(select_queries(q, 5, queries="most_similar"), [[0, 2, 5, 6, 1]])


def test_the_mean_is_of_the_raw_queries() -> None:
    """One long query carries the mean, so that the short ones are the unusual ones."""
    q = np.array([[[100.0, 0], [0, 1], [0, 1], [0, 1]]])
    np.testing.assert_array_equal(select_queries(q, 1), [[1]])  # the mean of unit queries would choose 0


def test_a_short_chunk_keeps_all_its_queries_in_order() -> None:
    q = draw(tokens=5).q
    for n in (5, 6, 16):
        np.testing.assert_array_equal(select_queries(q, n), [[0, 1, 2, 3, 4]] * 4)


def test_the_order_of_the_slots_matters() -> None:
    """Shuffling the slots of one head pairs other tokens; most kept keys change, and ours are the unshuffled ones."""
    case, rng, changed = draw(tokens=64, keys=400, seed=3), np.random.default_rng(4), []
    slots = chosen_by_hand(case.q, 16)
    wanted = keep_top(scores_by_hand(case.q, case.k, slots), 40)
    np.testing.assert_array_equal(select_keys(case.q, case.k, 40, 16), wanted)
    for _ in range(3):
        shuffled = [list(rng.permutation(head)) for head in slots]
        other = keep_top(scores_by_hand(case.q, case.k, shuffled), 40)
        changed += [1 - len(set(a) & set(b)) / 40 for a, b in zip(wanted, other, strict=True)]
    assert 0.4 < np.mean(changed) < 0.9  # the specification says about two thirds


def test_it_is_the_maximum_of_means_not_the_mean_of_maxima() -> None:
    """Two heads that point at key 0 in different slots: their means reach 1/2, while key 1 holds 0.8 in one slot."""
    a, b, c = np.eye(3)
    q = np.array([[a, c, c], [c, a, c]])  # slot by slot: key a gets mean 1/2, 1/2, 0
    k = np.array([[a, 0.8 * c + 0.6 * b]])
    np.testing.assert_allclose(key_scores(q, k, 3), [[0.5, 0.8]])  # the mean of maxima would be 1 for key a


def test_zero_vectors_have_cosine_zero() -> None:
    case = draw()
    case.k[0, 3] = 0
    case.q[:2] = 0
    scores = key_scores(case.q, case.k, 16)
    assert scores[0, 3] == 0
    np.testing.assert_array_equal(scores[0], np.zeros(30))  # both heads of the first group are zero
    assert not np.isnan(scores).any()


def test_equal_keys_tie_to_the_lower_index() -> None:
    q = np.tile(np.eye(4)[0], (2, 3, 1))
    k = np.eye(4)[[[1, 0, 0, 2, 0, 3]]]
    np.testing.assert_array_equal(select_keys(q, k, 2, 16), [[1, 2]])
    np.testing.assert_array_equal(select_keys(q, k, 4, 16), [[0, 1, 2, 4]])


@given(chunk_cases(), st.floats(0, 1.2), st.integers(1, 9), st.integers(0, 2), st.integers(0, 2))
def test_the_whole_chunk_reads_the_kept_past_and_itself(
    drawn: tuple[Case, int], share: float, n: int, sinks: int, recent: int
) -> None:
    """Against dense attention in which the forgone keys are hidden: original keys, per KV head, causal in the chunk."""
    case, past = drawn
    budget = max(1, round(share * past), sinks + recent)
    got = quoka_attention(
        case.q,
        case.k,
        case.v,
        case.q_positions,
        case.k_positions,
        past,
        budget=budget,
        n_queries=n,
        sinks=sinks,
        recent=recent,
    )
    scores = key_scores(case.q, case.k[:, :past], n)
    for kv in range(len(case.k)):
        forced = [j for j in range(past) if case.k_positions[kv, j] < sinks or j >= past - recent]
        ranked = sorted(range(past), key=lambda j: (j not in forced, -scores[kv, j], j))
        columns = sorted(ranked[:budget]) + list(range(past, case.k.shape[1]))
        for h in range(kv * case.group, (kv + 1) * case.group):
            for t in range(case.q.shape[1]):
                read = [j for j in columns if case.k_positions[kv, j] <= case.q_positions[t]]
                weights = np.exp(case.k[kv, read] @ case.q[h, t] / np.sqrt(case.q.shape[2]))
                wanted = weights / weights.sum() @ case.v[kv, read]
                np.testing.assert_allclose(got[h, t], wanted, rtol=1e-9, atol=1e-12)


@given(chunk_cases(), st.integers(0, 2))
def test_a_budget_of_the_whole_past_is_dense(drawn: tuple[Case, int], more: int) -> None:
    case, past = drawn
    inputs = (case.q, case.k, case.v, case.q_positions, case.k_positions)
    got = quoka_attention(*inputs, past, budget=max(1, past + more), n_queries=2)
    np.testing.assert_array_equal(got, attention(*inputs))


def test_ablations_are_what_they_say() -> None:
    case = draw(tokens=20)
    slots = chosen_by_hand(case.q, 4)
    group = np.array(
        [[[case.q[h, slots[h][n]] for n in range(4)] for h in range(2 * kv, 2 * kv + 2)] for kv in range(2)]
    )  # (KV, G, N, D)
    dots = group.mean(axis=1) @ case.k.swapaxes(1, 2)
    np.testing.assert_allclose(key_scores(case.q, case.k, 4, similarity="dot"), dots.max(axis=1))

    def normed(x: np.ndarray) -> np.ndarray:
        return x / np.linalg.norm(x, axis=-1, keepdims=True)

    cosines = normed(group).mean(axis=1) @ normed(case.k).swapaxes(1, 2)
    np.testing.assert_allclose(key_scores(case.q, case.k, 4, over="mean"), cosines.mean(axis=1))
    most = select_queries(case.q, 20 - 1, queries="most_similar")
    np.testing.assert_array_equal(most[:, ::-1][:, :4], select_queries(case.q, 19)[:, 1:5])
    drawn = select_queries(case.q, 4, queries="random", seed=5)
    np.testing.assert_array_equal(drawn, select_queries(case.q, 4, queries="random", seed=5))
    assert (drawn != select_queries(case.q, 4, queries="random", seed=6)).any()
    assert all(len(set(head)) == 4 for head in drawn.tolist())


class Cache:
    """As much of a layer's cache as a selection looks at."""

    def __init__(self, case: Case) -> None:
        self.k, self.positions, self.size = case.k, case.k_positions, case.k.shape[1]

    def keys(self) -> np.ndarray:
        return self.k


@pytest.mark.parametrize(
    "variant",
    [
        {},
        {"similarity": "dot"},
        {"over": "mean"},
        {"queries": "most_similar"},
        {"queries": "random", "seed": 3},
        {"share": True},
    ],
)
def test_columns_of_every_variant(variant: dict[str, object]) -> None:
    case = draw(tokens=20, keys=50)
    (columns,) = Quoka(7, n_queries=4, sinks=1, recent=2, **variant).columns(reference, [case.q], Cache(case), [30])
    share = variant.pop("share", False)
    scores = key_scores(case.q, case.k[:, :30], 4, **variant)
    if share:
        scores = np.tile(scores.mean(axis=0), (2, 1))
    scores[:, [0, 28, 29]] = np.inf  # a sink and two recent
    kept = keep_top(scores, 7)
    np.testing.assert_array_equal(columns, np.hstack([kept, np.tile(np.arange(30, 50), (2, 1))]))


def test_sharing_gives_every_head_the_same_tokens() -> None:
    case = draw(tokens=20, keys=50)
    (apart,) = Quoka(7).columns(reference, [case.q], Cache(case), [30])
    (together,) = Quoka(7, share=True).columns(reference, [case.q], Cache(case), [30])
    assert (apart[0] != apart[1]).any()
    np.testing.assert_array_equal(together[0], together[1])


def test_a_fraction_of_the_prompt_is_fixed_and_one_of_the_past_grows() -> None:
    fixed = Quoka(0.25).resolve(1001)
    assert fixed.budget == 251
    assert [fixed.budget_of(past) for past in (0, 100, 251, 800)] == [0, 100, 251, 251]
    growing = Quoka(0.25, of="past", recent=9).resolve(1001)
    assert [growing.budget_of(past) for past in (0, 5, 20, 101, 800)] == [0, 5, 9, 26, 200]
    assert Quoka(64).resolve(1001) == Quoka(64)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"budget": 0}, "budget: got 0"),
        ({"budget": 1.5}, "budget: got 1.5"),
        ({"budget": 8, "n_queries": 0}, "n_queries: got 0"),
        ({"budget": 8, "sinks": -1}, "sinks: got -1"),
        ({"budget": 8, "sinks": 5, "recent": 4}, r"sinks \+ recent: got 5 \+ 4, wanted at most the budget, 8"),
        ({"budget": 0.5, "of": "future"}, "of: got 'future', wanted one of prompt, past"),
        ({"budget": 8, "similarity": "euclid"}, "similarity: got 'euclid', wanted one of cosine, dot"),
        ({"budget": 8, "over": "min"}, "over: got 'min'"),
        ({"budget": 8, "queries": "all"}, "queries: got 'all'"),
    ],
)
def test_bad_settings(fields: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Quoka(**fields)


def test_bad_arrays() -> None:
    case = draw()
    inputs = (case.q, case.k, case.v, case.q_positions, case.k_positions)
    with pytest.raises(ValueError, match="past: got 31, wanted at most the 30 keys"):
        quoka_attention(*inputs, 31, budget=4, n_queries=4)
    with pytest.raises(ValueError, match="budget: got 0"):
        quoka_attention(*inputs, 18, budget=0, n_queries=4)
    with pytest.raises(ValueError, match=r"q: got shape \(4, 0, 8\), wanted at least one query"):
        select_queries(case.q[:, :0], 4)
    with pytest.raises(ValueError, match="q: got H=3 query heads, wanted a multiple of KV=2"):
        key_scores(case.q[:3], case.k, 4)
    with pytest.raises(ValueError, match=r"k: got shape \(2, 30, 7\), wanted \(KV, S, D=8\)"):
        key_scores(case.q, case.k[:, :, :7], 4)
    with pytest.raises(ValueError, match="n_queries: got 0"):
        key_scores(case.q, case.k, 0)


@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_narrow_inputs_are_scored_in_float32(dtype: str) -> None:
    case = draw()
    q, k = case.q.astype(dtype), case.k.astype(dtype)
    scores = key_scores(q, k, 4)
    assert scores.dtype == np.float32
    np.testing.assert_allclose(scores, key_scores(q.astype(np.float64), k.astype(np.float64), 4), atol=1e-5)
