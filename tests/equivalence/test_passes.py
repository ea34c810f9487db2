"""A pass of many chunks, and of many sequences, is as if they had come one by one: for every policy the same columns
chosen, neurons run and tokens forgotten, and the same logits but for rounding."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from types import ModuleType

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from reference import (
    H2O,
    Caote,
    FastForward,
    KeyDiff,
    Model,
    Policy,
    Quoka,
    Random,
    Recent,
    SnapKV,
    State,
    Tova,
    decode,
    new_state,
    prefill,
    transformer,
)
from tests.equivalence.test_forward import on
from tests.reference.neurons import trained
from tests.small import small_model

# No token stands twice in a chunk of two: the same query at two positions is as far from their mean as at the other,
# and which of the two is chosen is then a matter of rounding.
IDS = np.tile(np.random.default_rng(5).permutation(50), 8)
FEW = st.integers(0, 3)
SELECT = st.none() | st.builds(Quoka, budget=st.integers(6, 40), n_queries=st.integers(1, 20), sinks=FEW, recent=FEW)
EVICT = st.none() | st.one_of(
    *(
        st.builds(method, budget=st.integers(6, 60), sinks=FEW, recent=FEW)
        for method in (
            *(KeyDiff, H2O, Tova, partial(SnapKV, window=5, kernel=3)),
            *(Recent, Random),
            *(partial(Caote, base="tova"), partial(Caote, fast=True, group="max"), partial(Caote, base="snapkv")),
        )
    )
)
FFN = st.none() | st.builds(
    FastForward,
    density=st.sampled_from([0.3, 1.0]),
    weights=st.just(trained()),
    neurons=st.sampled_from(["predictor", "griffin", "oracle", "magnitude", "random"]),
    block=st.sampled_from([8, 32, 128]),
    dense_first=st.sampled_from([0, 10]),
    dense_last=st.sampled_from([0, 10]),
    decode=st.booleans(),
)
POLICIES = st.lists(st.builds(Policy, select=SELECT, evict=EVICT, ffn=FFN), min_size=1, max_size=3)


@contextmanager
def together(backend: ModuleType, chunks: int) -> Iterator[None]:
    """So many chunks of a prompt share a pass."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(backend if hasattr(backend, "TOGETHER") else transformer, "TOGETHER", chunks)
        yield


def told(model: Model, policies: list[Policy], length: int, chunk: int, shared: bool) -> list[State]:
    """Sequences of different lengths, read and continued by three tokens, one by one or, with `shared`, together."""
    states = [new_state(model, policy, trace=True) for policy in policies]
    for n, state in enumerate(states):
        prefill(model, state, IDS[n : length + 20 * n + 1], chunk=chunk)
    for token in (3, 1, 4):
        for group in [states] if shared else [[state] for state in states]:
            decode(model, group, [token] * len(group))
    return states


def same_choices(model: Model, got: State, wanted: State, most: float) -> None:
    """Equal traces, counts and caches; logits and scores within `most`."""
    to_numpy = model.backend.to_numpy
    np.testing.assert_allclose(to_numpy(got.logits), to_numpy(wanted.logits), rtol=0, atol=most)
    for ours, theirs in zip(got.positions, wanted.positions, strict=True):
        np.testing.assert_array_equal(to_numpy(ours), to_numpy(theirs))
    for name, counted in vars(wanted.counts).items():
        np.testing.assert_array_equal(getattr(got.counts, name), counted, name)
    assert got.trace is not None
    assert wanted.trace is not None
    for kind in ("reads", "evictions", "neurons"):
        ours, theirs = (sorted(getattr(t, kind), key=lambda e: e[:2]) for t in (got.trace, wanted.trace))
        assert [entry[:2] for entry in ours] == [entry[:2] for entry in theirs]
        for one, other in zip(ours, theirs, strict=True):
            np.testing.assert_array_equal(one[2], other[2], f"{kind} of layer {one[0]} at {one[1]}")
            np.testing.assert_allclose(one[3:], other[3:], rtol=0, atol=most)


@pytest.mark.parametrize("where", ["reference", "backend"])
@given(POLICIES, st.integers(1, 150), st.integers(1, 40), st.integers(2, 9), st.sampled_from([None, 1, 7, 30]))
@settings(max_examples=25)
def test_a_shared_pass_changes_nothing(
    backend: ModuleType, where: str, policies: list[Policy], length: int, chunk: int, count: int, window: int | None
) -> None:
    windows = {"windows": (None, window)}
    model = small_model(**windows) if where == "reference" else on(backend, **windows)
    with together(model.backend, 1):
        alone = told(model, policies, length + 3, chunk, shared=False)
    with together(model.backend, count):
        shared = told(model, policies, length + 3, chunk, shared=True)
    for got, wanted in zip(shared, alone, strict=True):
        same_choices(model, got, wanted, 1e-9 if where == "reference" else 1e-4)


@settings(max_examples=20)
@given(st.integers(2, 8), st.integers(1, 4), st.sampled_from([1, 4, 12]), POLICIES, st.integers(1, 1400), st.data())
def test_who_decodes_beside_a_sequence_does_not_change_its_bits(
    backend: ModuleType, count: int, kv_heads: int, group: int, policies: list[Policy], length: int, data: st.DataObject
) -> None:
    """As many as the backend names share a pass, short ones and long ones, under any policies."""
    count = min(count, getattr(backend, "FEW", 1))
    model = on(backend, heads=kv_heads * group, kv_heads=kv_heads)
    lengths = [length, *(data.draw(st.integers(1, 1400)) for _ in range(count - 1))]
    states, alone = [], []
    for n, each in enumerate(lengths):
        states.append(new_state(model, policies[n % len(policies)]))
        prefill(model, states[n], np.resize(IDS, each))
        alone.append(copied(states[n]))
    for token in (3, 7, 11):
        decode(model, states, [token] * count)
        for state, one in zip(states, alone, strict=True):
            decode(model, [one], [token])
            np.testing.assert_array_equal(state.logits, one.logits)


def copied(state: State) -> State:
    """A state of its own with the same content."""
    return replace(state, cache=state.cache.copy(), counts=state.counts.copy())
