"""Sums that a step does: which are true, which are not, and which are none."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from thresher.answers.sums import sums_are_true

SIGNS = {"+": lambda a, b: a + b, "-": lambda a, b: a - b, "×": lambda a, b: a * b, "/": lambda a, b: a / b}


@given(st.integers(0, 9999), st.sampled_from(list(SIGNS)), st.integers(1, 9999), st.integers(0, 3), st.integers(-9, 9))
def test_a_sum_is_true_where_it_has_the_result(a: int, sign: str, b: int, digits: int, off: int) -> None:
    result = round(SIGNS[sign](a, b), digits)
    told = result + off / 10**digits
    text = f"So it is {a:,} {sign} {b:,} = {told:.{digits}f} dollars."
    if abs(off) != 1:  # the last digit may be rounded up or down
        assert sums_are_true(text) == (off == 0)
    else:
        assert not sums_are_true(text) or sign == "/"


@pytest.mark.parametrize(
    "text",
    [
        "no sums",
        "$20 × 0.75 = $15, and 15 − 3 = 12.",
        "200/3 = 66.66",
        "2x + 5 * 3 = 20",
        "25% of 80 = 20",
        "25% * 80 = 20",
        "3 + 4 = 7 * 2 = 14",  # sloppy, and its last sum is true
        "2 * 3 = 6 + 4 = 10",
        "(3 + 4) * 2 = 14",
        "f(3 + 4) = 9",
        "5 - (2 + 1) = 2",
        "1/2 = 50%",
        "5 + 3 = 2 * 4",
        "1/0 = 3",
    ],
)
def test_true_or_no_sum(text: str) -> None:
    assert sums_are_true(text)


@pytest.mark.parametrize(
    "text",
    [
        "3 + 4 = 8.",
        "x = 3 + 4 = 8",
        "5 * 6 = 30 and 30 / 4 = 9",
        "$1,200 + $300 = $1,400",
        "0.1 + 0.2 = 0.4",
        "(3 + 4) * 2 = 11",
        "5 - (2 + 1) = 6",
        "2 * 3 = 6 + 4 = 11",
        "2 - 5 = 3",
        "12 * 5=50 pages",
    ],
)
def test_false(text: str) -> None:
    assert not sums_are_true(text)
