"""Policies in the one forward pass: alone, together, per layer, through prefill and decoding."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from reference import (
    H2O,
    Caote,
    Chunk,
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
    forward,
    keep_top,
    new_state,
    prefill,
)
from tests.reference.neurons import trained
from tests.small import small_model

MODEL = small_model()
IDS = np.random.default_rng(7).integers(0, 50, 2000)

SELECTORS = {
    "none": lambda budget: None,
    "quoka": lambda budget: Quoka(budget, n_queries=4),
    "quoka of everything": lambda budget: Quoka(
        budget, n_queries=2, similarity="dot", over="mean", queries="random", share=True
    ),
}
EVICTORS = {
    "none": lambda budget, **kept: None,
    "keydiff": lambda budget, **kept: KeyDiff(budget, **kept),
    "keydiff raw": lambda budget, **kept: KeyDiff(budget, **kept, anchor="raw"),
    "h2o": lambda budget, **kept: H2O(budget, **kept),
    "tova": lambda budget, **kept: Tova(budget, **kept),
    "snapkv": lambda budget, **kept: SnapKV(budget, **kept, window=6, kernel=3),
    "caote h2o": lambda budget, **kept: Caote(budget, **kept),
    "caote tova": lambda budget, **kept: Caote(budget, **kept, base="tova", fast=True, group="max"),
    "caote snapkv": lambda budget, **kept: Caote(budget, **kept, base="snapkv", group="rss"),
    "recent": lambda budget, **kept: Recent(budget, **kept),
    "random": lambda budget, **kept: Random(budget, **kept),
}
FFNS = {
    "none": lambda: None,
    "all neurons": lambda: FastForward(1.0, weights=trained(), dense_first=0, dense_last=0, decode=True),
    "half": lambda: FastForward(0.5, weights=trained(), block=16, dense_first=16, dense_last=16, decode=True),
}


def run(
    policy: Policy | None, length: int, chunk: int, steps: int = 0, model: Model = MODEL
) -> tuple[np.ndarray, State]:
    """Logits after every token of the prompt and every decoded one, and the state."""
    state = new_state(model, policy, trace=True)
    rows = [prefill(model, state, IDS[:length], chunk=chunk, every=True)]
    for token in IDS[length : length + steps]:
        decode(model, [state], [int(token)])
        rows.append(state.logits[None])  # type: ignore[index]
    return np.concatenate(rows), state


@given(
    st.sampled_from(sorted(SELECTORS)),
    st.sampled_from(sorted(EVICTORS)),
    st.sampled_from(["none", "all neurons"]),
    st.integers(1, 40),
    st.integers(1, 17),
    st.integers(0, 3),
)
@settings(max_examples=60, deadline=None)
def test_a_budget_of_the_whole_length_is_dense(
    select: str, evict: str, ffn: str, length: int, chunk: int, more: int
) -> None:
    steps = 3
    budget = length + steps + more
    dense, _ = run(None, length, chunk, steps)
    got, state = run(Policy(SELECTORS[select](budget), EVICTORS[evict](budget), FFNS[ffn]()), length, chunk, steps)
    np.testing.assert_allclose(got, dense, rtol=1e-9, atol=1e-9)
    assert not state.counts.keys_evicted.any()
    np.testing.assert_array_equal(state.counts.keys_read, state.counts.keys_visible)


@pytest.mark.parametrize("names", list(itertools.product(SELECTORS, EVICTORS, FFNS)))
def test_a_tight_budget_changes_something_and_stays_finite(names: tuple[str, str, str]) -> None:
    """That the property above is no accident: the same policies do act when they are given less."""
    select, evict, ffn = names
    if names == ("none", "none", "none") or names == ("none", "none", "all neurons"):
        return
    got, _ = run(Policy(SELECTORS[select](8), EVICTORS[evict](12), FFNS[ffn]()), 64, 16, 2)
    dense, _ = run(None, 64, 16, 2)
    assert np.isfinite(got).all()
    assert np.abs(got - dense).max() > 1e-6


def snapshots(policy: Policy, length: int, chunk: int, steps: int, model: Model = MODEL) -> list[tuple[int, State]]:
    """(tokens seen, an independent copy of the state) after every chunk and decoding step."""
    state, taken = new_state(model, policy), []
    for start in range(0, length, chunk):
        prefill(model, state, IDS[start : min(start + chunk, length)], chunk=chunk)
        taken.append((state.position, State(state.cache.copy(), policy, state.counts)))
    for token in IDS[length : length + steps]:
        decode(model, [state], [int(token)])
        taken.append((state.position, State(state.cache.copy(), policy, state.counts)))
    return taken


@given(
    st.sampled_from([name for name in EVICTORS if name != "none"]),
    st.sampled_from(sorted(SELECTORS)),
    st.integers(1, 24),
    st.integers(0, 3),
    st.integers(0, 3),
    st.integers(1, 13),
)
@settings(max_examples=60, deadline=None)
def test_after_every_chunk(evict: str, select: str, budget: int, sinks: int, recent: int, chunk: int) -> None:
    """At most the budget, bytes that are the arrays', positions ascending, sinks and recent kept, decoding included."""
    budget = max(budget, sinks + recent)
    policy = Policy(SELECTORS[select](6), EVICTORS[evict](budget, sinks=sinks, recent=recent))
    for seen, state in snapshots(policy, 40, chunk, 3):
        total = 0
        for layer in state.cache.layers:
            size = min(budget, seen)
            assert layer.k.shape == layer.v.shape == (2, size, 8)
            assert layer.positions.shape == (2, size)
            assert (np.diff(layer.positions, axis=1) > 0).all()
            assert layer.positions.min() >= 0
            assert layer.positions.max() < seen
            for kept in layer.positions.tolist():
                assert kept[: min(sinks, seen)] == list(range(min(sinks, seen)))
                assert kept[len(kept) - min(recent, size) :] == list(range(seen - min(recent, size), seen))
            extra = 0
            if "h2o" in evict:
                assert layer.received is not None
                assert layer.received.shape == (4, size)
                extra = 4 * size * 8
            if "snapkv" in evict:
                assert layer.queries is not None
                held = min(layer.queries.shape[1], 40)
                extra = 4 * held * 8 * 8
            total += 2 * 2 * size * 8 * 8 + 2 * size * 8 + extra
        assert state.cache.nbytes == total


@pytest.mark.parametrize("evict", [name for name in EVICTORS if name != "none"])
def test_a_budget_of_one_works_and_decoding_evicts_too(evict: str) -> None:
    got, state = run(Policy(Quoka(1), EVICTORS[evict](1)), 40, 8, 4)
    assert np.isfinite(got).all()
    assert state.cache.sizes == [1, 1]
    assert state.trace is not None
    decoded = [e for e in state.trace.evictions if e.at >= 40]
    assert [(e.layer, e.at, e.positions.shape) for e in decoded] == [
        (n, at, (2, 1)) for at in range(40, 44) for n in range(2)
    ]


def layer_zero(model: Model, ids: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Rotated queries (H, T, D) and keys (KV, T, D) of layer 0, which no policy can change."""
    c, w = model.config, model.weights.layers[0]
    x = model.weights.embedding[ids]
    x = x / np.sqrt((x**2).mean(axis=-1, keepdims=True) + c.rms_eps) * w.attention_norm
    angles = np.arange(len(ids))[:, None] * 10_000.0 ** (-np.arange(0, c.head_dim, 2) / c.head_dim)

    def turned(weight: np.ndarray, heads: int) -> np.ndarray:
        y = (x @ weight.T).reshape(len(ids), heads, 2, -1).transpose(1, 0, 2, 3)
        pairs = (y[:, :, 0] + 1j * y[:, :, 1]) * np.exp(1j * angles)
        return np.concatenate([pairs.real, pairs.imag], axis=-1)

    return turned(w.w_q, c.heads), turned(w.w_k, c.kv_heads)


def cosines(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    return x @ y.T / np.linalg.norm(x, axis=-1)[:, None] / np.linalg.norm(y, axis=-1)


def quoka_by_hand(q: np.ndarray, k: np.ndarray, n: int, budget: int) -> list[int]:
    """Columns kept of one KV head: q (G, T, D), k (S, D)."""
    slots = []
    for head in q:
        far = np.argsort(cosines(head, head.mean(axis=0)[None])[:, 0], kind="stable")[:n] if len(head) > n else slice(n)
        slots.append(head[far] / np.linalg.norm(head[far], axis=-1, keepdims=True))
    s = (np.mean(slots, axis=0) @ (k / np.linalg.norm(k, axis=-1, keepdims=True)).T).max(axis=0)
    return keep_top(s[None], budget)[0].tolist()


def test_selection_ranks_the_survivors_and_eviction_follows_attention() -> None:
    """Layer 0 step by step: each chunk chooses among what was left by the last eviction, then the oldest order goes on.

    Queries and keys are those after rotation; unrotated ones would choose others.
    """
    q, k = layer_zero(MODEL, IDS[:90])
    _, state = run(Policy(Quoka(10, n_queries=4), KeyDiff(20)), 88, 16, 2)
    assert state.trace is not None
    reads = [r for r in state.trace.reads if r.layer == 0]
    evictions = [e for e in state.trace.evictions if e.layer == 0]
    held = [list[int](), list[int]()]
    for read, tokens in zip(reads, [16] * 5 + [8, 1, 1], strict=True):
        for kv in range(2):
            if len(held[kv]) > 10:
                chosen = quoka_by_hand(q[2 * kv : 2 * kv + 2, read.at : read.at + tokens], k[kv, held[kv]], 4, 10)
                assert read.positions is not None
                assert read.positions[kv].tolist() == [held[kv][column] for column in chosen]
            else:
                assert read.positions is None
            held[kv] += range(read.at, read.at + tokens)
        if len(held[0]) > 20:
            evicted = evictions.pop(0)
            assert evicted.at == read.at
            for kv in range(2):
                units = k[kv, held[kv]] / np.linalg.norm(k[kv, held[kv]], axis=-1, keepdims=True)
                kept = keep_top(-cosines(units, units.mean(axis=0)[None]).T, 20)[0]
                gone = [p for column, p in enumerate(held[kv]) if column not in kept]
                assert evicted.positions[kv].tolist() == gone
                held[kv] = [held[kv][column] for column in kept]
    assert evictions == []


@pytest.mark.parametrize(("budget", "share"), [(64, 0.149), (128, 0.260), (256, 0.458)])
def test_the_share_of_pairs_read_is_the_specifications(budget: int, share: float) -> None:
    """8192 tokens in chunks of 128 at 512, 1024 and 2048, all an eighth of that."""
    model = small_model(layers=1, width=8, heads=1, kv_heads=1, ffn_width=8)
    _, state = run(Policy(Quoka(budget)), 1024, 16, model=model)
    assert state.counts.keys_read[0] / state.counts.keys_visible[0] == pytest.approx(share, abs=5e-4)


def test_fractions_are_resolved_once_against_the_prompt() -> None:
    policy = Policy(Quoka(0.25), KeyDiff(0.5), overrides={1: Policy(evict=H2O(0.1))})
    _, state = run(policy, 101, 16, 30)
    assert state.policy.select.budget == 26
    assert state.policy.evict.budget == 51
    assert state.policy.at(1).evict.budget == 11
    assert state.cache.sizes == [51, 11]


def test_a_fraction_that_cannot_hold_what_is_protected() -> None:
    with pytest.raises(ValueError, match=r"sinks \+ recent: got 8 \+ 8, wanted at most the budget, 10"):
        run(Policy(evict=KeyDiff(0.1, sinks=8, recent=8)), 100, 16)


def test_layers_may_differ() -> None:
    """A layer without selection reads everything, one without eviction keeps everything."""
    policy = Policy(Quoka(8), KeyDiff(12), overrides={0: Policy(), 2: Policy(evict=Tova(5))})
    _, state = run(policy, 64, 16, 2, small_model(layers=4))
    assert state.cache.sizes == [66, 12, 5, 12]
    assert state.counts.keys_evicted.tolist() == [0, 54, 61, 54]
    assert (state.counts.keys_read == state.counts.keys_visible).tolist() == [True, False, True, False]


def test_dense_layers_give_the_same_as_dense_until_the_first_that_is_not() -> None:
    dense, _ = run(None, 40, 8)
    same, _ = run(Policy(Quoka(4), overrides={0: Policy(), 1: Policy()}), 40, 8)
    np.testing.assert_array_equal(same, dense)


def test_windowed_layers_are_left_alone() -> None:
    model = small_model(layers=3, windows=(9, None, 9))
    _, state = run(Policy(Quoka(4), KeyDiff(6)), 64, 16, 2, model)
    assert state.cache.sizes == [9, 6, 9]
    assert state.counts.keys_evicted.tolist() == [0, 60, 0]
    assert state.trace is not None
    assert all(read.positions is None for read in state.trace.reads if read.layer != 1)
    for n in (0, 2):
        np.testing.assert_array_equal(state.cache.layers[n].positions, [range(57, 66)] * 2)


@pytest.mark.parametrize(
    "policy", [Policy(Quoka(4)), Policy(evict=KeyDiff(4)), Policy(overrides={1: Policy(evict=H2O(2))})]
)
def test_a_model_of_windows_alone_has_nothing_to_choose_from(policy: Policy) -> None:
    with pytest.raises(
        ValueError, match="policy: got select or evict for a model whose layers all have a sliding window"
    ):
        new_state(small_model(window=8), policy)


def test_overrides_that_mean_nothing() -> None:
    with pytest.raises(ValueError, match="overrides: got layer 2, wanted 0 to 1 for this model"):
        new_state(MODEL, Policy(overrides={2: Policy()}))
    with pytest.raises(ValueError, match="overrides: layer 0's policy has overrides of its own"):
        new_state(MODEL, Policy(overrides={0: Policy(overrides={1: Policy()})}))


def test_sequences_with_different_policies_share_a_pass() -> None:
    policies = [
        None,
        Policy(Quoka(8)),
        Policy(evict=Caote(12, base="snapkv", window=4)),
        Policy(ffn=FFNS["half"]()),
        Policy(Quoka(8), KeyDiff(12), FastForward(neurons="griffin", dense_last=0, decode=True)),
    ]
    alone = [run(policy, 30 + n, 8, 4)[0][-1] for n, policy in enumerate(policies)]
    states = [new_state(MODEL, policy) for policy in policies]
    for n, state in enumerate(states):
        prefill(MODEL, state, IDS[: 30 + n], chunk=8)
    for step in range(4):
        decode(MODEL, states, [int(IDS[30 + n + step]) for n in range(len(states))])
    for state, wanted in zip(states, alone, strict=True):
        np.testing.assert_allclose(state.logits, wanted, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("select", SELECTORS)
@pytest.mark.parametrize("evict", EVICTORS)
def test_chunks_that_share_a_pass_give_what_they_give_alone(select: str, evict: str) -> None:
    """Each attends to what the one before it left: appended, chosen from and evicted in its turn."""
    policy = Policy(SELECTORS[select](40), EVICTORS[evict](50), FFNS["half"]())
    shared, alone = new_state(MODEL, policy, trace=True), new_state(MODEL, policy, trace=True)
    ids = IDS[:250]
    prefill(MODEL, shared, ids, chunk=32)
    for start in range(0, len(ids), 32):
        part = ids[start : start + 32]
        forward(MODEL, [Chunk(alone, part, start, len(ids), slice(0, len(part)))])
    for ours, theirs in zip(shared.cache.layers, alone.cache.layers, strict=True):
        np.testing.assert_array_equal(ours.positions, theirs.positions)
        np.testing.assert_allclose(ours.k, theirs.k, rtol=0, atol=1e-10)
        np.testing.assert_allclose(ours.v, theirs.v, rtol=0, atol=1e-10)
    for ours, theirs in zip(vars(shared.counts).values(), vars(alone.counts).values(), strict=True):
        np.testing.assert_array_equal(ours, theirs)
    assert shared.trace is not None
    assert alone.trace is not None
    for told, wanted in zip(vars(shared.trace).values(), vars(alone.trace).values(), strict=True):
        for one, other in zip(*(sorted(entries, key=lambda e: e[:2]) for entries in (told, wanted)), strict=True):
            for x, y in zip(one, other, strict=True):
                np.testing.assert_equal(type(x), type(y))
                if x is not None:
                    np.testing.assert_allclose(x, y, rtol=1e-9)


def test_a_copied_cache_goes_its_own_way() -> None:
    _, state = run(Policy(evict=H2O(12)), 30, 8)
    before, copied = state.cache.copy(), State(state.cache.copy(), state.policy, state.counts, state.position)
    decode(MODEL, [copied], [3])
    for layer, kept in zip(state.cache.layers, before.layers, strict=True):
        for name, array in kept.arrays().items():
            np.testing.assert_array_equal(getattr(layer, name), array)
