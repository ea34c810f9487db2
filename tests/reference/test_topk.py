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

    protected = data.draw(st.sets(st.integers(0, len(row) - 1), max_size=min(budget, len(row))))
    protect = np.zeros(scores.shape, bool)
    protect[:, sorted(protected)] = True
    expected = [by_hand(list(r), budget, protected) for r in scores]
    kept = keep_top(scores, budget, protect=protect)
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
    with pytest.raises(ValueError, match="protect: got 2 protected columns, wanted at most the budget, 1"):
        keep_top(np.zeros((1, 3)), 1, protect=np.array([[True, True, False]]))
    with pytest.raises(ValueError, match=r"protect: got shape \(1, 2\)"):
        keep_top(np.zeros((1, 3)), 1, protect=np.zeros((1, 2), bool))


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
