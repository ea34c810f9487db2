"""`keep_top` against sorting pairs of (score, index) in plain Python."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from reference import keep_top
from reference.topk import check_budget, resolve_budget

# Few distinct values, so that ties are the rule; infinities can be ranked too.
ROWS = st.lists(st.sampled_from([-np.inf, -1.0, 0.0, 0.5, 2.0, np.inf]), min_size=1, max_size=12)


def by_hand(row: list[float], budget: int, protected: set[int]) -> list[int]:
    ranked = sorted(range(len(row)), key=lambda j: (j not in protected, -row[j], j))
    return sorted(ranked[:budget])


@given(ROWS, st.integers(1, 14), st.data())
def test_keeps_the_highest_and_breaks_ties_to_the_lower_index(
    row: list[float], budget: int, data: st.DataObject
) -> None:
    scores = np.array([row, row[::-1]])
    expected = [by_hand(list(r), budget, set()) for r in scores]
    np.testing.assert_array_equal(keep_top(scores, budget), expected)

    sinks = data.draw(st.integers(0, budget))
    recent = data.draw(st.integers(0, budget - sinks))
    # Positions with gaps: fewer sinks may be left than asked for, and another number in every row.
    gaps = [data.draw(st.lists(st.integers(1, 3), min_size=len(row), max_size=len(row))) for _ in scores]
    positions = np.cumsum(gaps, axis=1) - 1
    size = len(row)
    expected = [
        by_hand(list(r), budget, {j for j in range(size) if places[j] < sinks or j >= size - recent})
        for r, places in zip(scores, positions.tolist(), strict=True)
    ]
    kept = keep_top(scores, budget, sinks=sinks, recent=recent, positions=positions)
    np.testing.assert_array_equal(kept, expected)
    assert kept.dtype == np.int64


def test_a_row_of_equal_scores_keeps_its_beginning() -> None:
    np.testing.assert_array_equal(keep_top(np.zeros((2, 9)), 4), [[0, 1, 2, 3]] * 2)


@pytest.mark.parametrize("budget", [0, -1, 1.5, True, "4", None])
def test_bad_budgets(budget: object) -> None:
    with pytest.raises(ValueError, match="budget: got"):
        keep_top(np.zeros((1, 3)), budget)  # type: ignore[arg-type]


def test_bad_scores_and_protection() -> None:
    with pytest.raises(ValueError, match="scores: got NaN"):
        keep_top(np.array([[1.0, np.nan]]), 1)
    with pytest.raises(ValueError, match=r"scores: got shape \(3,\), wanted \(KV, S\)"):
        keep_top(np.zeros(3), 1)
    places = np.arange(3)[None]
    with pytest.raises(ValueError, match=r"sinks \+ recent: got 1 \+ 1, wanted at most the budget, 1"):
        keep_top(np.zeros((1, 3)), 1, sinks=1, recent=1, positions=places)
    with pytest.raises(ValueError, match=r"positions: got shape \(1, 2\), wanted \(KV=1, S=3\)"):
        keep_top(np.zeros((1, 3)), 1, sinks=1, positions=places[:, :2])
    with pytest.raises(ValueError, match="positions: got none, wanted those by which 1 sinks are known"):
        keep_top(np.zeros((1, 3)), 1, sinks=1)
    with pytest.raises(ValueError, match="recent: got -1"):
        keep_top(np.zeros((1, 3)), 1, recent=-1)


@pytest.mark.parametrize(
    ("budget", "length", "tokens"),
    [(7, 100, 7), (0.25, 100, 25), (0.25, 101, 26), (1.0, 9, 9), (1e-9, 9, 1), (1, 9, 1)],
)
def test_fractions_round_up(budget: float, length: int, tokens: int) -> None:
    assert resolve_budget(budget, length) == tokens


@pytest.mark.parametrize("budget", [0, 0.0, 1.01, -0.5, float("nan"), -3])
def test_fractions_out_of_range(budget: float) -> None:
    with pytest.raises(ValueError, match="budget: got"):
        check_budget(budget)
