"""`keep_top` with sinks and recent columns against the definition written out, column by column."""

from __future__ import annotations

from types import ModuleType

import numpy as np
import pytest
from hypothesis import assume, example, given
from hypothesis import strategies as st

from accel import cpu
from tests.equivalence.calling import call


def kept_of_row(scores: list[float], budget: int, sinks: int, recent: int, positions: list[int]) -> list[int]:
    """The columns of one row: what is protected, and of the others the best, among equals the lower index."""
    count = len(scores)
    if budget >= count:
        return list(range(count))
    protected = {j for j in range(count) if positions[j] < sinks or j >= count - recent}
    others = sorted((-scores[j], j) for j in range(count) if j not in protected)
    return sorted(protected | {j for _, j in others[: budget - len(protected)]})


@given(
    st.integers(1, 40),
    st.integers(1, 4),
    st.integers(1, 45),
    st.integers(0, 12),
    st.integers(0, 12),
    st.sampled_from(["few", "many", "infinite"]),
    st.sampled_from([np.int64, np.int32, np.uint8]),
    st.integers(0, 2**31),
)
@example(40, 1, 30, 12, 12, "few", np.int64, 0)
@example(5, 1, 4, 4, 0, "few", np.int64, 0)
@example(5, 2, 4, 2, 2, "few", np.int64, 0)
def test_the_best_of_what_is_not_protected(
    backend: ModuleType, keys: int, heads: int, budget: int, sinks: int, recent: int, kind: str, dtype: type, seed: int
) -> None:  # fmt: skip
    rng = np.random.default_rng(seed)
    scores = rng.standard_normal((heads, keys)).astype(np.float32)
    if kind == "few":
        scores = np.round(scores)
    elif kind == "infinite":
        scores = rng.choice(np.float32([-np.inf, np.inf, 0.0, -0.0, 1e-40]), (heads, keys))
    # Every row holds other tokens: some have all sinks, some none.
    positions = np.sort([rng.choice(keys + 20, keys, replace=False) for _ in range(heads)]).astype(dtype)
    if sinks + recent > budget and budget < keys:
        with pytest.raises(ValueError, match=rf"sinks \+ recent: got {sinks} \+ {recent}, wanted at most the budget"):
            call(backend, "keep_top", scores, budget, sinks=sinks, recent=recent, positions=positions)
        return
    got = call(backend, "keep_top", scores, budget, sinks=sinks, recent=recent, positions=positions)
    assert got.dtype == np.int64
    wanted = [
        kept_of_row(row.tolist(), budget, sinks, recent, where.tolist())
        for row, where in zip(scores, positions, strict=True)
    ]
    assert got.tolist() == wanted


def test_a_score_that_is_no_number_is_refused_where_it_is_protected_too(backend: ModuleType) -> None:
    scores = np.zeros((2, 6), np.float32)
    scores[1, 5] = np.nan
    with pytest.raises(ValueError, match="scores: got NaN, wanted numbers that can be ranked"):
        call(backend, "keep_top", scores, 3, recent=2)


@given(
    st.integers(1, 40), st.integers(0, 6), st.integers(0, 5), st.integers(0, 5), st.booleans(), st.integers(0, 2**31)
)
@example(6, 1, 0, 5, False, 0)  # all that stays is protected
def test_scores_in_float64_are_not_rounded(
    keys: int, goes: int, sinks: int, recent: int, few: bool, seed: int
) -> None:  # fmt: skip
    """As H2O has them: a sum over many queries, of which one column goes when a token is decoded."""
    rng, budget = np.random.default_rng(seed), max(1, keys - goes)
    assume(sinks + recent <= budget)
    scores = 1 + 1e-12 * rng.standard_normal((2, keys))
    if few:
        scores = rng.choice([-np.inf, np.inf, 0.0, -0.0, 1e-300], (2, keys))
    positions = np.sort([rng.choice(keys + 20, keys, replace=False) for _ in range(2)])
    got = cpu.keep_top(scores, budget, sinks=sinks, recent=recent, positions=positions)
    for row, own, where in zip(scores.tolist(), got.tolist(), positions.tolist(), strict=True):
        assert own == kept_of_row(row, budget, sinks, recent, where)
