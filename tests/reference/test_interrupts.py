"""A pass that is cut off, by Ctrl-C or by an error, leaves the state as it was, or says that it cannot be continued."""

from __future__ import annotations

from types import ModuleType

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import reference
from reference import H2O, FastForward, KeyDiff, Model, Policy, Quoka, SnapKV, State, decode, new_state, prefill
from reference.backend import NAMES
from tests.small import small_model

IDS = np.random.default_rng(3).integers(0, 50, 120)
RESTORED = {
    "dense": Policy(),
    "quoka": Policy(Quoka(12, n_queries=4)),
    "griffin": Policy(ffn=FastForward(neurons="griffin", dense_first=8, dense_last=8)),
    "keydiff with room": Policy(evict=KeyDiff(500)),
}
LOST = {
    "keydiff": Policy(evict=KeyDiff(12)),
    "h2o with room": Policy(evict=H2O(500)),
    "snapkv": Policy(Quoka(8), SnapKV(12, window=4)),
}


def interrupted_after(calls: int) -> ModuleType:
    """The reference as a backend whose functions are interrupted at their `calls`-th call, all counted together."""
    backend, left = ModuleType("interrupted"), [calls]

    def counted(name: str):  # type: ignore[no-untyped-def]
        def call(*arguments, **options):  # type: ignore[no-untyped-def]
            left[0] -= 1
            if left[0] == 0:
                raise KeyboardInterrupt
            return getattr(reference, name)(*arguments, **options)

        return call

    for name in NAMES:
        setattr(backend, name, counted(name))
    return backend


def started(model: Model, policy: Policy, tokens: int) -> State:
    state = new_state(model, policy, trace=True)
    if tokens:
        prefill(model, state, IDS[:tokens], chunk=8)
    return state


@pytest.mark.parametrize("window", [None, 9])
@pytest.mark.parametrize("name", RESTORED)
@given(st.integers(1, 90), st.sampled_from([0, 20]))
@settings(max_examples=25, deadline=None)
def test_nothing_was_evicted_so_nothing_is_lost(name: str, window: int | None, calls: int, before: int) -> None:
    """Wherever the interrupt falls, reading the same text again gives what an uninterrupted state gives."""
    layers = {"layers": 3, "windows": (None, window, None)}
    model, policy = small_model(**layers), RESTORED[name]
    wanted = started(model, policy, before)
    state = started(model, policy, before)
    broken = Model(model.config, model.weights, interrupted_after(calls))
    try:
        prefill(broken, state, IDS[before:100], chunk=8)
    except KeyboardInterrupt:
        assert (state.position - before) % 32 == 0  # whole passes
        rest = IDS[state.position : 100]
    else:
        return
    assert all(layer.newest == state.position - 1 for layer in state.cache.layers)
    logits = prefill(model, state, rest, chunk=8)
    np.testing.assert_allclose(logits, prefill(model, wanted, IDS[before:100], chunk=8), rtol=1e-9, atol=1e-9)
    assert state.cache.sizes == wanted.cache.sizes
    if name != "griffin":  # whose dense ends go by the length of each prompt
        for one, other in zip(vars(state.counts).values(), vars(wanted.counts).values(), strict=True):
            np.testing.assert_array_equal(one, other)
        assert state.trace is not None
        assert wanted.trace is not None
        assert state.trace.sizes() == wanted.trace.sizes()


@pytest.mark.parametrize("name", LOST)
def test_what_was_evicted_cannot_be_had_again_and_is_said(name: str) -> None:
    model = small_model()
    state = started(model, LOST[name], 60)
    broken = Model(model.config, model.weights, interrupted_after(25))  # in the second layer
    with pytest.raises(KeyboardInterrupt):
        decode(broken, [state], [7])
    with pytest.raises(ValueError, match=r"state: got one whose last pass was interrupted \(KeyboardInterrupt\) after"):
        decode(model, [state], [7])
    with pytest.raises(ValueError, match="wanted a whole one"):
        prefill(model, state, [7, 8])


def test_an_error_in_one_sequence_leaves_all_that_share_the_pass() -> None:
    model = small_model()
    states = [started(model, Policy(), tokens) for tokens in (5, 20)]
    with pytest.raises(KeyboardInterrupt):
        decode(Model(model.config, model.weights, interrupted_after(20)), states, [3, 4])
    decode(model, states, [3, 4])
    for state, tokens in zip(states, (5, 20), strict=True):
        alone = started(model, Policy(), tokens)
        decode(model, [alone], [3 if tokens == 5 else 4])
        np.testing.assert_allclose(state.logits, alone.logits, rtol=1e-9, atol=1e-9)
