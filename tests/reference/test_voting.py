"""Votes against a brute force written from the formulas, in exact fractions, and what must hold of any vote."""

from __future__ import annotations

from fractions import Fraction
from itertools import combinations
from math import comb

import numpy as np
import pytest
from hypothesis import assume, example, given
from hypothesis import strategies as st

import reference
from reference import voting

Table = list[list[int]]  # answers of N sources to M queries


@st.composite
def tables(draw: st.DrawFn, most: int = 6) -> np.ndarray:
    """Answers with their holes; the numbers of the answers need not begin at 0."""
    n, m = draw(st.integers(1, most)), draw(st.integers(1, 8))
    numbers = st.sampled_from([-1, 0, 1, 2, 7, 10**12])
    return np.array(draw(st.lists(st.lists(numbers, min_size=m, max_size=m), min_size=n, max_size=n)), np.int64)


def winners(column: list[int], weights: list[Fraction]) -> list[int]:
    """All answers of the greatest total weight; none where nobody knows."""
    totals: dict[int, Fraction] = {}
    for answer, weight in zip(column, weights, strict=True):
        if answer >= 0:
            totals[answer] = totals.get(answer, Fraction(0)) + weight
    return [answer for answer, total in totals.items() if total == max(totals.values())]


def estimate(table: Table, rounds: int = 100) -> list[Fraction] | None:
    """v by the formulas, one step after the other; None where a vote is tied, which only the noise can decide."""
    n, m = len(table), len(table[0])
    columns = [[table[i][j] for i in range(n)] for j in range(m)]

    def strict(column: list[int]) -> bool:
        known = [answer for answer in column if answer >= 0]
        return any(known.count(answer) > len(known) - known.count(answer) for answer in known)

    counted = [j for j in range(m) if strict(columns[j])] or list(range(m))
    v = [Fraction(1)] * n
    for _ in range(rounds):
        found = {j: winners(columns[j], v) for j in counted}
        if any(len(tied) > 1 for tied in found.values()):
            return None
        new = []
        for i in range(n):
            mine = [j for j in counted if table[i][j] >= 0]
            w = Fraction(sum(table[i][j] == found[j][0] for j in mine), len(mine)) if mine else None
            new.append(Fraction(1) if w is None else n * w - 1)
        still = new == v
        v, counted = new, list(range(m))
        if still:
            break
    return v


def eighths(n: int) -> st.SearchStrategy[list[int]]:
    return st.lists(st.integers(-16, 16), min_size=n, max_size=n)


@given(tables(), st.data(), st.integers(0, 5))
@example(np.array([[-1], [-1]]), None, 0)
def test_the_vote_is_the_brute_force(answers: np.ndarray, data: st.DataObject | None, seed: int) -> None:
    drawn = data.draw(eighths(len(answers))) if data else [1, 1]
    got = reference.weighted_vote(answers, np.array(drawn) / 8, seed=seed)  # sums of eighths are exact
    for j, column in enumerate(answers.T.tolist()):
        best = winners(column, [Fraction(x, 8) for x in drawn])
        assert got[j] in best if best else got[j] == -1


def test_noise_decides_ties_by_the_seed_and_not_always_alike() -> None:
    answers, weights = np.array([[0] * 50, [1] * 50]), np.ones(2)
    first = reference.weighted_vote(answers, weights, seed=0)
    assert set(first) == {0, 1}
    assert (first == reference.weighted_vote(answers, weights, seed=0)).all()
    assert (first != reference.weighted_vote(answers, weights, seed=1)).any()
    assert (reference.weighted_vote(answers, np.array([1.0, 1 + 1e-7])) == 1).all()  # no tie: noise is below 1e-8


def test_an_answer_that_only_liars_give_still_wins_where_it_is_the_only_one() -> None:
    assert reference.weighted_vote(np.array([[3], [-1]]), np.array([-1.0, 5.0])).tolist() == [3]


@given(tables(), st.integers(1, 4))
def test_the_estimate_is_the_brute_force(answers: np.ndarray, rounds: int) -> None:
    for limit in (rounds, 100):
        wanted = estimate(answers.tolist(), limit)
        if wanted is not None:
            got = reference.estimate_reliability(answers, rounds=limit)
            np.testing.assert_allclose(got, [float(x) for x in wanted], rtol=0, atol=1e-12)


@given(tables())
def test_every_estimate_is_a_share_of_answers(answers: np.ndarray) -> None:
    """Tied or not, n · (v + 1) / N is a count of answers between none and all."""
    n, known = len(answers), (answers >= 0).sum(axis=1)
    v = reference.estimate_reliability(answers, rounds=2)  # the second round has counted all queries
    right = np.where(known > 0, (v + 1) * known / n, 0)
    np.testing.assert_allclose(right, np.round(right), atol=1e-9)
    assert ((right >= -1e-9) & (right <= known + 1e-9)).all()
    assert (v[known == 0] == 1).all()


@given(tables(), st.data())
def test_permuting_sources_permutes_their_weights(answers: np.ndarray, data: st.DataObject) -> None:
    order = np.array(data.draw(st.permutations(range(len(answers)))))
    v = reference.estimate_reliability(answers)
    np.testing.assert_allclose(reference.estimate_reliability(answers[order]), v[order], atol=1e-12)
    weights = np.array(data.draw(eighths(len(answers)))) / 8
    voted = reference.weighted_vote(answers, weights)
    assert (reference.weighted_vote(answers[order], weights[order]) == voted).all()


@given(tables(), st.data())
def test_renaming_answers_or_permuting_queries_changes_nothing_but_ties(
    answers: np.ndarray, data: st.DataObject
) -> None:
    assume(estimate(answers.tolist()) is not None)
    v = reference.estimate_reliability(answers)
    queries = np.array(data.draw(st.permutations(range(answers.shape[1]))))
    np.testing.assert_allclose(reference.estimate_reliability(answers[:, queries]), v, atol=1e-12)
    names = dict(zip([-1, 0, 1, 2, 7, 10**12], [-1, *data.draw(st.permutations(range(5)))], strict=True))
    renamed = np.vectorize(names.get)(answers)
    np.testing.assert_allclose(reference.estimate_reliability(renamed), v, atol=1e-12)


@given(tables(), st.data())
def test_what_sources_agree_on_is_no_matter_of_their_names(answers: np.ndarray, data: st.DataObject) -> None:
    """Answers renamed in their order keep even the ties, since the noise goes by rank."""
    gaps = {-1: -1, 0: 3, 1: 4, 2: 100, 7: 101, 10**12: 102}
    renamed = np.vectorize(gaps.get)(answers)
    assert (reference.estimate_reliability(renamed) == reference.estimate_reliability(answers)).all()
    weights = np.array(data.draw(eighths(len(answers)))) / 8
    voted = reference.weighted_vote(answers, weights)
    assert (reference.weighted_vote(renamed, weights) == [gaps[int(x)] for x in voted]).all()


@given(tables(), st.data())
def test_a_duplicate_has_the_weight_of_its_original(answers: np.ndarray, data: st.DataObject) -> None:
    i = data.draw(st.integers(0, len(answers) - 1))
    v = reference.estimate_reliability(np.vstack([answers, answers[i]]))
    assert v[-1] == v[i]
    weights = np.array(data.draw(eighths(len(answers)))) / 8
    twice, silent = weights.copy(), np.append(weights, 5.0)
    twice[i] *= 2
    voted = reference.weighted_vote(np.vstack([answers, answers[i]]), np.append(weights, weights[i]))
    assert (voted == reference.weighted_vote(answers, twice)).all()
    knows_nothing = np.vstack([answers, np.full(answers.shape[1], -1)])
    assert (reference.weighted_vote(knows_nothing, silent) == reference.weighted_vote(answers, weights)).all()


def test_one_source_all_agree_nobody_knows() -> None:
    assert reference.estimate_reliability(np.array([[0, 1, -1]])).tolist() == [0.0]  # 1 · w − 1 with w = 1
    assert reference.estimate_reliability(np.array([[4, 5]] * 3)).tolist() == [2.0] * 3
    assert reference.estimate_reliability(np.full((3, 4), -1)).tolist() == [1.0] * 3
    assert reference.weighted_vote(np.full((3, 2), -1), np.ones(3)).tolist() == [-1, -1]
    assert reference.estimate_reliability(np.zeros((2, 0), int)).tolist() == [1.0, 1.0]


def test_the_first_round_looks_at_strict_majorities_alone() -> None:
    """Two of four is no majority: only the first query counts, where the last source is outvoted."""
    answers = np.array([[0, 0, 1], [0, 0, 2], [0, 1, 3], [1, 1, 4]])
    assert reference.estimate_reliability(answers, rounds=1).tolist() == [3.0, 3.0, 3.0, -1.0]


def test_reliable_sources_are_told_from_liars() -> None:
    rng = np.random.default_rng(1)
    reliability = np.array([0.9, 0.9, 0.9, 0.5, 0.1, 0.1])
    truth = rng.integers(0, 10, 400)
    wrong = (truth + rng.integers(1, 10, (6, 400))) % 10
    answers = np.where(rng.random((6, 400)) < reliability[:, None], truth, wrong)
    answers[rng.random((6, 400)) > 0.6] = -1
    v = reference.estimate_reliability(answers)
    assert np.corrcoef((v + 1) / 6, reliability)[0, 1] > 0.99
    assert set(np.argsort(-v)[:3]) == {0, 1, 2}


@given(tables(), st.data(), st.integers(1, 4))
def test_kappa_counts_the_first_that_know(answers: np.ndarray, data: st.DataObject, kappa: int) -> None:
    weights = np.array(data.draw(st.lists(st.integers(0, 2), min_size=len(answers), max_size=len(answers))), float)
    counted = reference.reliable_sources(answers, weights, kappa)
    asked = reference.sources_asked(answers, weights, kappa)
    for j in range(answers.shape[1]):
        order = sorted(range(len(answers)), key=lambda i: (-weights[i], i))
        found: list[int] = []
        read: list[int] = []
        for i in order:
            if len(found) == kappa:
                break
            read.append(i)
            if answers[i, j] >= 0:
                found.append(i)
        assert set(np.flatnonzero(counted[:, j])) == set(found)
        assert set(np.flatnonzero(asked[:, j])) == set(read)


@given(st.integers(0, 9), st.data())
def test_pass_at_k_is_the_share_of_draws_with_a_right_one(n: int, data: st.DataObject) -> None:
    c, k = data.draw(st.integers(0, n)), data.draw(st.integers(0, n))
    draws = list(combinations([True] * c + [False] * (n - c), k))
    wanted = sum(any(draw) for draw in draws) / len(draws)
    assert float(reference.pass_at_k(n, c, k)) == pytest.approx(wanted, abs=1e-12)


def test_pass_at_k_broadcasts_and_holds_for_many_runs() -> None:
    got = reference.pass_at_k(2000, np.array([0, 1, 700, 2000]), np.array([[1], [300]]))
    wanted = [[1 - Fraction(comb(2000 - c, k), comb(2000, k)) for c in (0, 1, 700, 2000)] for k in (1, 300)]
    np.testing.assert_allclose(got, np.array(wanted, float), rtol=1e-12)


@given(st.integers(1, 3), st.integers(0, 8), st.data())
def test_the_mix_is_every_draw_of_its_methods_together(methods: int, k: int, data: st.DataObject) -> None:
    accuracy = data.draw(st.lists(st.sampled_from([0.2, 0.5, 0.9]), min_size=methods, max_size=methods))
    turns = reference.round_robin(np.array(accuracy), k)
    best_first = sorted(range(methods), key=lambda m: (-accuracy[m], m))
    assert turns.tolist() == [best_first[i % methods] for i in range(k)]
    n = np.array(data.draw(st.lists(st.integers(8, 9), min_size=methods, max_size=methods)))
    c = np.array([data.draw(st.integers(0, int(x))) for x in n])
    none = Fraction(1)
    for m in range(methods):
        taken = turns.tolist().count(m)
        none *= Fraction(comb(int(n[m] - c[m]), taken), comb(int(n[m]), taken))
    assert float(reference.mixed_pass_at_k(n, c, turns)) == pytest.approx(float(1 - none), abs=1e-12)


def test_a_mix_of_several_problems_keeps_their_axis() -> None:
    n, c = np.full((2, 3), 4), np.array([[0, 1, 4], [0, 2, 0]])
    np.testing.assert_allclose(reference.mixed_pass_at_k(n, c, np.array([0, 1])), [0, 1 - 3 / 4 * 2 / 4, 1])


def test_bad_arguments_are_named() -> None:
    good = np.array([[0, 1], [1, 1]])
    for call, line in [
        (lambda: reference.weighted_vote(good[0], np.ones(2)), r"answers: got \(2,\) of int64, wanted \(N, M\)"),
        (lambda: reference.weighted_vote(good / 2, np.ones(2)), "answers: got .* of float64"),
        (lambda: reference.weighted_vote(good - 2, np.ones(2)), "answers: got -2, wanted numbers of answers"),
        (lambda: reference.weighted_vote(good, np.ones(3)), r"weights: got shape \(3,\), wanted \(N=2,\)"),
        (lambda: reference.weighted_vote(good, np.array([1, np.nan])), "weights: got NaN or infinity"),
        (lambda: reference.weighted_vote(good, np.ones(2), seed=-1), "seed: got -1"),
        (lambda: reference.estimate_reliability(good, rounds=0), "rounds: got 0"),
        (lambda: reference.estimate_reliability(good, tolerance=float("nan")), "tolerance: got nan"),
        (lambda: reference.reliable_sources(good, np.ones(2), 0), "kappa: got 0"),
        (lambda: reference.pass_at_k(3, 4, 1), r"c: got \[4\] of n = \[3\] runs"),
        (lambda: reference.pass_at_k(3, 1, 4), r"k: got \[4\] of n = \[3\] runs"),
        (lambda: reference.pass_at_k(3, 1.5, 1), "c: got dtype float64"),
        (lambda: reference.round_robin(np.array([]), 1), r"accuracy: got shape \(0,\)"),
        (lambda: reference.mixed_pass_at_k(np.array([3]), np.array([1]), np.array([1])), "turns: got"),
    ]:
        with pytest.raises(ValueError, match=line):
            call()


def test_noise_is_what_the_docstring_says() -> None:
    answers, weights = np.array([[5, 9], [9, 5], [-1, 7]]), np.ones(3)
    noise = np.random.default_rng(3).random((2, 3))
    wanted = [[5, 9][int(noise[0, :2].argmax())], [5, 7, 9][int(noise[1].argmax())]]
    assert reference.weighted_vote(answers, weights, seed=3).tolist() == wanted
    assert voting.NOISE == 1e-8
