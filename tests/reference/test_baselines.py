"""Recent and random eviction: which tokens are there, told from the positions alone."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from reference import Policy, Random, Recent, decode, new_state, prefill
from tests.small import small_model

MODEL = small_model()
IDS = np.random.default_rng(7).integers(0, 50, 300)


def positions(evict: Recent | Random, length: int, chunk: int, steps: int = 0) -> np.ndarray:
    """(L, KV, S): the positions that the layers hold after a prompt and some decoded tokens."""
    state = new_state(MODEL, Policy(evict=evict))
    prefill(MODEL, state, IDS[:length], chunk=chunk)
    for token in IDS[length : length + steps]:
        decode(MODEL, [state], [int(token)])
    return np.stack([layer.positions for layer in state.cache.layers])


@given(st.integers(1, 80), st.integers(1, 40), st.data())
def test_recent_holds_the_sinks_and_the_newest(length: int, budget: int, data: st.DataObject) -> None:
    sinks = data.draw(st.integers(0, budget))
    steps = data.draw(st.integers(0, 3))
    total = length + steps
    wanted = sorted({*range(min(sinks, total)), *range(max(0, total - (budget - sinks)), total)})
    if total <= budget:
        wanted = list(range(total))
    got = positions(Recent(budget, sinks=sinks), length, data.draw(st.integers(1, 20)), steps)
    assert (got == wanted).all()


@given(st.integers(1, 80), st.integers(1, 40), st.integers(1, 20), st.integers(0, 5))
def test_random_is_one_choice_however_the_prompt_is_cut(length: int, budget: int, chunk: int, seed: int) -> None:
    """A token that was forgotten by a chunk would have been forgotten by the whole: its number does not change."""
    chunked, alone = (positions(Random(budget, seed=seed), length, size) for size in (chunk, 1))
    assert (chunked == alone).all()


def test_random_takes_early_and_late_tokens_alike() -> None:
    """Each half of the prompt holds as many as chance allows: 1,200 draws, 5 standard deviations."""
    found = np.concatenate([positions(Random(30, seed=seed), 200, 16)[0].ravel() for seed in range(20)])
    assert abs((found < 100).mean() - 0.5) < 5 * np.sqrt(0.25 / len(found))
    assert len(set(found.tolist())) > 190  # 200 places, all but certain to be drawn


def test_random_differs_by_head_and_by_seed_and_keeps_what_is_protected() -> None:
    first, other = (positions(Random(20, sinks=3, recent=4, seed=seed), 100, 10) for seed in (0, 1))
    assert (first[0, 0] != first[0, 1]).any()
    assert (first != other).any()
    for held in (first, other):
        assert (held[:, :, :3] == [0, 1, 2]).all()
        assert (held[:, :, -4:] == [96, 97, 98, 99]).all()


@pytest.mark.parametrize("seed", [-1, 1.5])
def test_a_seed_is_a_whole_number(seed: float) -> None:
    with pytest.raises(ValueError, match="seed"):
        Random(8, seed=seed)  # type: ignore[arg-type]
