"""Sampling against the definition, token by token."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from reference import Sampling

LOGITS = st.lists(st.sampled_from([-30.0, -1.0, 0.0, 0.25, 1.5, 3.0]), min_size=1, max_size=9)


@given(
    LOGITS,
    st.sampled_from([0.5, 1.0, 2.0]),
    st.sampled_from([None, 1, 2, 5]),
    st.sampled_from([None, 0.1, 0.6, 1.0]),
    st.sampled_from([None, 0.05, 0.5, 1.0]),
)
def test_probabilities(
    logits: list[float], temperature: float, top_k: int | None, top_p: float | None, min_p: float | None
) -> None:
    p = [math.exp(value / temperature) for value in logits]
    ranked = sorted(range(len(p)), key=lambda i: (-p[i], i))
    if top_k is not None:
        ranked = ranked[:top_k]
    if top_p is not None:
        total, before, kept = sum(p[i] for i in ranked), 0.0, []
        for i in ranked:
            if before < top_p * total * (1 - 1e-12):  # the sum may fall short of top_p by rounding
                kept.append(i)
            before += p[i]
        ranked = kept
    if min_p is not None:
        ranked = [i for i in ranked if p[i] >= min_p * p[ranked[0]] * (1 - 1e-12)]
    want = [p[i] / sum(p[j] for j in ranked) if i in ranked else 0 for i in range(len(p))]
    got = Sampling(temperature, top_k, top_p, min_p).probabilities(np.array(logits))
    boundary = top_p is not None and any(
        abs(sum(p[j] for j in ranked[:n]) - top_p * sum(p)) < 1e-9 * sum(p) for n in range(1, len(ranked) + 1)
    )
    if not boundary:
        np.testing.assert_allclose(got, want, rtol=1e-9, atol=1e-15)
    assert got.sum() == pytest.approx(1)


@given(LOGITS, st.integers(0, 100))
def test_greedy_and_seeded(logits: list[float], seed: int) -> None:
    row = np.array(logits, np.float32)
    best = max(range(len(logits)), key=lambda i: (logits[i], -i))
    assert Sampling().draw(row, np.random.default_rng(seed)) == best
    assert Sampling(1.0, top_k=1).draw(row, np.random.default_rng(seed)) == best
    drawn = [
        [Sampling(0.8).draw(row, rng) for _ in range(5)] for rng in (np.random.default_rng(seed) for _ in range(2))
    ]
    assert drawn[0] == drawn[1]


@given(
    LOGITS.flatmap(lambda row: st.tuples(st.just(row), st.lists(st.booleans(), min_size=len(row), max_size=len(row)))),
    st.sampled_from([0.5, 1.0, 1.3, 4.0]),
    st.sampled_from([0.0, 0.7]),
)
def test_a_repetition_penalty(case: tuple[list[float], list[bool]], penalty: float, temperature: float) -> None:
    logits, seen = case
    want = [
        value if not there else value / penalty if value > 0 else value * penalty
        for value, there in zip(logits, seen, strict=True)
    ]
    sampling = Sampling(temperature, repetition_penalty=penalty)
    np.testing.assert_allclose(sampling.penalised(np.array(logits), np.array(seen)), want, rtol=1e-12)
    row, rngs = np.array(logits), [np.random.default_rng(5) for _ in range(2)]
    assert sampling.draw(row, rngs[0], np.array(seen)) == Sampling(temperature).draw(np.array(want), rngs[1])
    np.testing.assert_array_equal(row, logits)  # the state's logits stay as they are


def test_what_does_nothing_is_told() -> None:
    assert Sampling(0.0, top_k=4, min_p=0.1, repetition_penalty=1.2).idle == ["top_k", "min_p"]
    assert Sampling(0.5, top_k=4).idle == Sampling().idle == []


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("row", [[1.0, math.nan, 3.0], [1.0, math.inf], [-math.inf, -math.inf]])
def test_logits_that_are_no_numbers_are_refused(temperature: float, row: list[float]) -> None:
    with pytest.raises(ValueError, match=r"logits: got (nan|inf|-inf) as the highest, wanted a finite number"):
        Sampling(temperature).draw(np.array(row, np.float32), np.random.default_rng(0))


@pytest.mark.parametrize("temperature", [1e-320, 1e-45, 1e-8])
def test_a_tiny_temperature_is_greedy(temperature: float) -> None:
    row = np.array([-1e5, 2.0, 3.0, -math.inf, 2.999])
    np.testing.assert_array_equal(Sampling(temperature).probabilities(row), [0, 0, 1, 0, 0])
    np.testing.assert_array_equal(Sampling(temperature).probabilities(np.array([4.0, 4.0])), [0.5, 0.5])


def test_draws_follow_the_distribution() -> None:
    rng = np.random.default_rng(0)
    drawn = [Sampling(1.0).draw(np.log(np.array([0.7, 0.2, 0.1])), rng) for _ in range(4000)]
    np.testing.assert_allclose(np.bincount(drawn) / 4000, [0.7, 0.2, 0.1], atol=0.03)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"temperature": -0.1}, "temperature: got -0.1"),
        ({"temperature": math.inf}, "temperature: got inf"),
        ({"top_k": 0}, "top_k: got 0"),
        ({"top_p": 0.0}, "top_p: got 0.0, wanted a number in"),
        ({"min_p": 1.5}, "min_p: got 1.5"),
        ({"repetition_penalty": 0.0}, "repetition_penalty: got 0.0, wanted a finite number above 0"),
        ({"repetition_penalty": math.inf}, "repetition_penalty: got inf"),
    ],
)
def test_settings_out_of_range(fields: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Sampling(**fields)
