"""A token decoded in one compiled step has the bits that it has call by call, and leaves the same cache and counts."""

from __future__ import annotations

import weakref
from dataclasses import replace
from itertools import cycle
from types import ModuleType
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from accel import cpu
from accel.cpu.runtime.calls import Calls
from accel.cpu.simd import HALF
from reference import (
    H2O,
    Caote,
    FastForward,
    KeyDiff,
    Model,
    Policy,
    Quoka,
    Rope,
    SnapKV,
    State,
    Tova,
    Weights,
    decode,
    new_state,
    prefill,
)
from reference.caote import BASES
from reference.contract import JOINS
from reference.int8 import quantize
from tests.small import random_weights, small_config

STORED = {"float32": np.float32, "float16": np.float16, "bfloat16": ml_dtypes.bfloat16, "int8": None}


def call_by_call() -> ModuleType:
    """The backend without its own way through a pass."""
    plain = ModuleType("accel.cpu")
    plain.__dict__.update({name: value for name, value in vars(cpu).items() if name != "run_pass"})
    return plain


def stored(weights: Weights, dtype: str, vectors: str) -> Weights:
    """The same weights, their matrices in one dtype, and norms and biases in another."""

    def as_stored(array: Any) -> Any:
        if array.ndim == 1:
            return array.astype(vectors)
        kind = STORED[dtype]
        return quantize(array.astype(np.float32)) if kind is None else array.astype(kind)

    layers = tuple(replace(w, **{name: as_stored(x) for name, x in w.arrays().items()}) for w in weights.layers)
    embedding = as_stored(weights.embedding)
    return Weights(
        embedding, layers, as_stored(weights.final_norm), embedding,
        np.dtype(ml_dtypes.bfloat16) if dtype == "int8" else None,
    )  # fmt: skip


def models(
    dtype: str, *, biases: bool = False, norms: bool = True, vectors: str = "float32", **fields: Any
) -> tuple[Model, Model]:
    """The same model in steps and call by call."""
    fields = {"heads": 4, "kv_heads": 2, "head_dim": 8, "tied": True, **fields}
    config = small_config(**fields)
    weights = random_weights(config, biases=biases)
    if norms:
        factor = np.linspace(0.5, 1.5, config.width)
        names = ("attention_norm", "post_attention_norm", "ffn_norm", "post_ffn_norm")
        extra = {name: np.roll(factor, n) for n, name in enumerate(names)}
        weights = replace(weights, layers=tuple(replace(w, **extra) for w in weights.layers))
    prepared = cpu.prepare_weights(stored(weights, dtype, vectors))
    return Model(config, prepared, cpu), Model(config, prepared, call_by_call())  # type: ignore[arg-type]


def read(model: Model, lengths: list[int], policy: Policy | None = None) -> list[State]:
    states = [new_state(model, policy) for _ in lengths]
    for n, (state, length) in enumerate(zip(states, lengths, strict=True)):
        prefill(model, state, np.random.default_rng(n).integers(0, model.config.vocab_size, length))
    return states


def check_same(got: State, wanted: State) -> None:
    assert got.logits.tobytes() == wanted.logits.tobytes()
    assert got.position == wanted.position
    for name, counted in vars(wanted.counts).items():
        np.testing.assert_array_equal(getattr(got.counts, name), counted, name)
    for ours, theirs in zip(got.cache.layers, wanted.cache.layers, strict=True):
        assert (ours.newest, ours._room) == (theirs.newest, theirs._room)  # type: ignore[attr-defined]
        for name, array in theirs.arrays().items():
            assert ours.arrays()[name].tobytes() == array.tobytes(), name
        np.testing.assert_array_equal(ours.keys().rates, theirs.keys().rates)
        np.testing.assert_array_equal(ours.keys().sums, theirs.keys().sums)


@settings(max_examples=30)
@given(
    st.sampled_from(list(STORED)), st.lists(st.integers(1, 900), min_size=1, max_size=4), st.booleans(), st.booleans(),
    st.sampled_from([(Rope(1e4),) * 2, (Rope(1e4), None), (Rope(1e4, share=0.5), Rope(1e6))]),
    st.sampled_from(["silu", "gelu_tanh"]), st.sampled_from([1.0, 0.3]),
)  # fmt: skip
def test_a_step_has_the_bits_of_its_calls(
    dtype: str, lengths: list[int], biases: bool, norms: bool, ropes: tuple, activation: str, scale: float
) -> None:
    fields = {"ropes": ropes, "activation": activation, "residual_scale": scale}
    stepping, plain = models(dtype, biases=biases, norms=norms, **fields)
    ours, theirs = read(stepping, lengths), read(plain, lengths)
    for token in (3, 1, 4):
        for model, states in ((stepping, ours), (plain, theirs)):
            decode(model, states, [token + n for n in range(len(states))])
        for got, wanted in zip(ours, theirs, strict=True):
            check_same(got, wanted)
    assert ours[0].cache.step is not None or (dtype == "float16" and not HALF)  # type: ignore[attr-defined]


def parts(*, with_layer: bool = True) -> st.SearchStrategy[Policy]:
    """Policies at small budgets, any method beside any other, and perhaps another policy in one layer."""
    protected = {"sinks": st.integers(0, 3), "recent": st.integers(0, 3)}
    budgets = st.integers(6, 40) | st.integers(260, 290)
    evictors = [st.builds(method, budgets, **protected) for method in (KeyDiff, Tova, H2O)]
    snapkv = {"window": st.integers(1, 12), "kernel": st.sampled_from([1, 5, 11])}
    evictors.append(st.builds(SnapKV, budgets, **protected, **snapkv))
    joined = {"base": st.sampled_from(BASES), "fast": st.booleans(), "group": st.sampled_from(JOINS)}
    evictors.append(st.builds(Caote, budgets, **protected, **joined, **snapkv))
    raw = st.just(KeyDiff(9, anchor="raw"))
    select = st.none() | st.builds(Quoka, budgets, **protected) | st.just(Quoka(0.3, of="past"))
    inner = st.dictionaries(st.just(1), parts(with_layer=False)) if with_layer else st.just({})
    return st.builds(Policy, select, st.none() | st.one_of(*evictors) | raw, overrides=inner)


@settings(max_examples=25)
@given(
    st.sampled_from(list(STORED)), st.lists(parts(), min_size=1, max_size=2),
    st.lists(st.integers(1, 400), min_size=1, max_size=3), st.sampled_from([1, 2, 4]), st.data(),
)  # fmt: skip
def test_a_policy_leaves_what_its_calls_leave(
    dtype: str, policies: list[Policy], lengths: list[int], kv_heads: int, data: st.DataObject
) -> None:
    """Tokens, further prompts, copies and any company: the caches, counts and logits are the same at every one."""
    both = models(dtype, kv_heads=kv_heads, ropes=data.draw(st.sampled_from([(Rope(1e4),) * 2, (Rope(1e4), None)])))
    held = [[read(model, [t], policy)[0] for t, policy in zip(lengths, cycle(policies))] for model in both]
    numbers = st.sampled_from(range(len(lengths)))
    for turn in range(data.draw(st.integers(2, 8))):
        together = data.draw(st.lists(numbers, min_size=1, unique=True))
        what = data.draw(st.sampled_from(["decode"] * 5 + ["prefill", "copy"]))
        for model, states in zip(both, held, strict=True):
            for n in together:
                if what == "prefill":
                    prefill(model, states[n], np.arange(5 + n), chunk=3)
                elif what == "copy":
                    states[n] = replace(states[n], cache=states[n].cache.copy(), counts=states[n].counts.copy())
            if what == "decode":
                decode(model, [states[n] for n in together], [turn + n for n in together])
        for got, wanted in zip(*held, strict=True):
            check_same(got, wanted)


LONG = 270  # tokens that are read in more than one range
FULL = [
    Policy(evict=KeyDiff(20, sinks=2, recent=3)), Policy(evict=Tova(LONG, sinks=2, recent=3)), Policy(evict=H2O(20)),
    Policy(select=Quoka(LONG, sinks=2, recent=3)), Policy(select=Quoka(19), evict=KeyDiff(20)),
    Policy(evict=KeyDiff(LONG), overrides={1: Policy(select=Quoka(LONG))}),
    Policy(evict=SnapKV(LONG, sinks=2, window=7)), Policy(evict=Caote(20, base="snapkv", window=7, fast=True)),
    Policy(evict=Caote(LONG)), Policy(evict=Caote(20, base="tova", group="rss")),
    Policy(select=Quoka(20), ffn=FastForward(0.5, neurons="magnitude")),
]  # fmt: skip


@pytest.mark.parametrize("policy", FULL, ids=str)
def test_a_full_cache_decodes_in_steps(policy: Policy) -> None:
    """Token after token, and of keys that scores cannot tell apart the same are kept."""
    stepping, plain = models("float32")
    (ours,), (theirs,) = read(stepping, [280], policy), read(plain, [280], policy)
    for token in (3, 1, *[7] * 40):
        for model, state in ((stepping, ours), (plain, theirs)):
            decode(model, [state], [token])
        check_same(ours, theirs)
        assert ours.cache.step is not None  # type: ignore[attr-defined]


@pytest.mark.parametrize("policy", FULL[:-1], ids=str)
def test_a_cache_fills_up(policy: Policy) -> None:
    """From some tokens below the budget to some above it."""
    stepping, plain = models("float32")
    below = [(policy.select or policy.evict).budget - 4]
    (ours,), (theirs,) = read(stepping, below, policy), read(plain, below, policy)
    for token in range(9):
        for model, state in ((stepping, ours), (plain, theirs)):
            decode(model, [state], [token])
        check_same(ours, theirs)


@pytest.mark.parametrize("policy", FULL[:-1], ids=str)
def test_a_full_cache_decodes_in_company(policy: Policy) -> None:
    """Sequences whose layers are alike share memory to work in, one after the other."""
    stepping, plain = models("bfloat16")
    lengths = [LONG, 280, 400]  # the first evicts nothing before it decodes
    ours, theirs = read(stepping, lengths, policy), read(plain, lengths, policy)
    for token in range(5):
        for model, states in ((stepping, ours), (plain, theirs)):
            decode(model, states, [token, token + 20, token + 9])
        for got, wanted in zip(ours, theirs, strict=True):
            check_same(got, wanted)
    assert ours[0].cache.step is not None  # type: ignore[attr-defined]


@pytest.mark.parametrize("policy", [policy for policy in FULL if not policy.overrides], ids=str)
def test_scores_that_are_no_numbers_are_refused(policy: Policy) -> None:
    """In the words of the methods, with nothing read that is not the cache's; what was evicted cannot be had again."""
    said = []
    for model in models("float32"):
        (state,) = read(model, [280], policy)
        decode(model, [state], [3])
        state.cache.layers[1].k[:, 7] = np.nan
        state.cache.layers[1]._rates[:, 7] = np.nan  # type: ignore[attr-defined]
        with pytest.raises(ValueError, match=r"got .*NaN, wanted") as caught:
            decode(model, [state], [4])
        said.append((str(caught.value), state.broken, state.position, [layer.newest for layer in state.cache.layers]))
        assert state.broken == ("" if policy.evict is None else "interrupted (ValueError) after a layer had evicted")
    assert said[0][:3] == said[1][:3]


@pytest.mark.parametrize("policy", [None, FULL[0]], ids=str)
@pytest.mark.parametrize("done", [True, False])
def test_an_interrupt_leaves_no_half_token(policy: Policy | None, done: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """It comes before a list is run or after: then the token is taken back, or the state says that it cannot be."""
    model, run = models("float32")[0], Calls.run
    (state,), (twin,) = read(model, [45], policy), read(model, [45], policy)

    def interrupted(calls: Calls) -> None:
        if done:
            run(calls)
        raise KeyboardInterrupt

    decode(model, [state], [3])
    decode(model, [twin], [3])
    monkeypatch.setattr(Calls, "run", interrupted)
    with pytest.raises(KeyboardInterrupt):
        decode(model, [state], [4])
    monkeypatch.setattr(Calls, "run", run)
    assert bool(state.broken) == (policy is not None)
    if not state.broken:
        decode(model, [state], [7])
        decode(model, [twin], [7])
        assert state.logits.tobytes() == twin.logits.tobytes()
        for ours, theirs in zip(state.cache.layers, twin.cache.layers, strict=True):
            np.testing.assert_allclose(ours._sums, theirs._sums, rtol=1e-12)  # type: ignore[attr-defined]


def test_sums_that_are_not_kept_up_are_added_up() -> None:
    """A layer that forgot its oldest keys does not know the sum of those that it holds."""
    both = models("float32")
    (ours,), (theirs,) = (read(model, [45], Policy(evict=KeyDiff(20))) for model in both)
    for model, state in zip(both, (ours, theirs), strict=True):
        for layer in state.cache.layers:
            layer.keep_newest(15)
            layer.reserve(layer.capacity + 1)  # type: ignore[attr-defined]
        for token in range(12):
            decode(model, [state], [token])
    assert ours.logits.tobytes() == theirs.logits.tobytes()


@pytest.mark.parametrize("policy", [None, *FULL[:-1]], ids=str)
def test_a_step_keeps_no_memory_of_the_cache(policy: Policy | None) -> None:
    """A long prompt moves the cache to larger buffers, and the old ones must go at once."""
    model = models("float32")[0]
    (state,) = read(model, [280], policy)
    decode(model, [state], [3])
    layers: list[Any] = state.cache.layers
    old = [weakref.ref(buffer) for layer in layers for buffer in (layer._k, layer._v, layer._positions)]
    for layer in layers:
        layer.reserve(layer.capacity + 1)
    assert state.cache.step is not None  # type: ignore[attr-defined]
    assert [buffer() for buffer in old] == [None] * len(old)


def test_layers_may_hold_unlike_numbers_and_grow() -> None:
    """As under a policy that was in force before."""
    both = models("float32")
    earlier = Policy(evict=KeyDiff(20), overrides={1: Policy(evict=KeyDiff(300))})
    (ours,), (theirs,) = (read(model, [310], earlier) for model in both)
    for now in (Policy(), Policy(select=Quoka(15)), Policy(select=Quoka(40))):
        for model, state in zip(both, (ours, theirs), strict=True):
            state.policy = now
            for token in range(4):
                decode(model, [state], [token])
        check_same(ours, theirs)
        assert ours.cache.step is not None  # type: ignore[attr-defined]


def test_a_cache_that_grows_is_followed() -> None:
    """An answer outgrows its buffers, which then move, and the keys are shared out anew."""
    stepping, plain = models("float32")
    (ours,), (theirs,) = read(stepping, [3]), read(plain, [3])
    for n in range(600):
        for model, state in ((stepping, ours), (plain, theirs)):
            decode(model, [state], [n % 50])
    check_same(ours, theirs)


def test_company_may_change_from_token_to_token() -> None:
    stepping, plain = models("bfloat16")
    ours, theirs = read(stepping, [40, 7, 300]), read(plain, [40, 7, 300])
    for together in ([0, 1, 2], [1, 0], [2], [2, 0], [0, 1, 2]):
        for model, states in ((stepping, ours), (plain, theirs)):
            decode(model, [states[n] for n in together], [5] * len(together))
    for got, wanted in zip(ours, theirs, strict=True):
        check_same(got, wanted)


def test_a_copy_goes_on_by_itself() -> None:
    stepping, plain = models("float32")
    (ours,), (theirs,) = read(stepping, [30]), read(plain, [30])
    decode(stepping, [ours], [1])
    decode(plain, [theirs], [1])
    twin = replace(ours, cache=ours.cache.copy(), counts=ours.counts.copy())
    decode(stepping, [twin], [9])
    for token in (2, 3):
        decode(stepping, [ours], [token])
        decode(plain, [theirs], [token])
    check_same(ours, theirs)


@pytest.mark.parametrize(
    ("fields", "policy", "trace"),
    [
        ({"vectors": "float16"}, None, False),
        ({"vectors": "float16", "norms": False, "biases": False}, None, False),
        ({}, Policy(evict=KeyDiff(20, anchor="raw")), False),
        ({}, Policy(select=Quoka(0.3, of="past")), False),
        ({"window": 16}, None, False),
        ({"joint_qk_norm": True}, None, False),
        ({"ffn_width": 60}, None, False),
        ({}, None, True),
    ],
    ids=[
        "norms in 16 bits",
        "the last norm in 16 bits",
        "raw keys",
        "a share",
        "window",
        "joint norms",
        "odd width",
        "trace",
    ],
)
def test_all_else_goes_call_by_call(fields: dict[str, Any], policy: Policy | None, trace: bool) -> None:
    stepping, plain = models("float32", **{"biases": True, **fields})
    found = []
    for model in (stepping, plain):
        state = new_state(model, policy, trace=trace)
        prefill(model, state, np.arange(45))
        for token in (3, 1):
            decode(model, [state], [token])
        found.append(state)
    assert found[0].cache.step is None
    assert found[0].logits.tobytes() == found[1].logits.tobytes()
