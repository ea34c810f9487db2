"""Whole models on a backend: logits, caches, sequences side by side, several threads, and a forked child."""

from __future__ import annotations

import os
import threading
from concurrent.futures import ThreadPoolExecutor
from types import ModuleType

import numpy as np
import pytest

import reference
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
    Rope,
    SnapKV,
    Tova,
    decode,
    new_state,
    prefill,
)
from tests.small import small_model, with_norms

POLICIES = {
    "dense": Policy(),
    "quoka": Policy(select=Quoka(40)),
    "quoka with sinks": Policy(select=Quoka(40, n_queries=4, sinks=3, recent=5)),
    "keydiff": Policy(evict=KeyDiff(50)),
    "h2o": Policy(evict=H2O(50)),
    "tova": Policy(evict=Tova(50, sinks=2)),
    "snapkv": Policy(evict=SnapKV(50)),
    "caote": Policy(evict=Caote(50, base="tova")),
    "recent": Policy(evict=Recent(50, sinks=4)),
    "random": Policy(evict=Random(50)),
    "griffin": Policy(ffn=FastForward(0.5, neurons="griffin")),
    "all": Policy(
        select=Quoka(20), evict=Caote(60, base="snapkv", fast=True), ffn=FastForward(0.5, neurons="oracle", block=32)
    ),
}


BENT = {  # every cap and factor, and half of each head turns
    "score_cap": 0.5,
    "logit_cap": 1.5,
    "logit_scale": 2.0,
    "residual_scale": 0.5,
    "joint_qk_norm": True,
    "biases": True,
    "ropes": (Rope(1e4, share=0.5),) * 2,
}


def on(backend: ModuleType, **fields: object) -> Model:
    """A small model on a backend, with the weights of the float64 model that `small_model` makes."""
    model = small_model(**fields)  # type: ignore[arg-type]
    return Model(model.config, backend.prepare_weights(model.weights), backend)


def logits_of(model: Model, policy: Policy, tokens: int = 300, chunk: int = 64) -> tuple[np.ndarray, reference.State]:
    """Logits after every token of a prompt and of four decoding steps, and the state."""
    ids = np.random.default_rng(0).integers(0, model.config.vocab_size, tokens)
    state = new_state(model, policy)
    rows = [prefill(model, state, ids, chunk=chunk, every=True)]
    for token in (3, 1, 4, 1):
        decode(model, [state], [token])
        assert state.logits is not None
        rows.append(model.backend.to_numpy(state.logits)[None])
    return np.concatenate(rows), state


def error(got: np.ndarray, wanted: np.ndarray) -> float:
    return float(np.linalg.norm(got - wanted) / np.linalg.norm(wanted))


@pytest.mark.parametrize("name", POLICIES)
@pytest.mark.parametrize(
    "fields", [{}, {"biases": True, "head_dim": 10, "heads": 6, "kv_heads": 2}, BENT], ids=["llama", "odd", "bent"]
)
def test_logits_and_caches_under_every_policy(backend: ModuleType, name: str, fields: dict) -> None:
    wanted, meant = logits_of(small_model(**fields), POLICIES[name])
    got, state = logits_of(on(backend, **fields), POLICIES[name])
    assert error(got, wanted) < 1e-5
    assert state.cache.sizes == meant.cache.sizes
    for ours, theirs in zip(state.positions, meant.positions, strict=True):
        np.testing.assert_array_equal(backend.to_numpy(ours), theirs)
    for ours, theirs in zip(state.counts.__dict__.values(), meant.counts.__dict__.values(), strict=True):
        np.testing.assert_array_equal(ours, theirs)
    exact = sum(a.nbytes for layer in meant.cache.layers for n, a in layer.arrays().items() if n in ("k", "v")) // 2
    assert sum(a.nbytes for layer in state.cache.layers for n, a in layer.arrays().items() if n in ("k", "v")) == exact


def test_norms_that_stand_after_a_block_alone(backend: ModuleType) -> None:
    meant = with_norms(small_model(), before=False)
    got, _ = logits_of(Model(meant.config, backend.prepare_weights(meant.weights), backend), Policy())
    assert error(got, logits_of(meant, Policy())[0]) < 1e-5


def test_sliding_windows_keep_their_window(backend: ModuleType) -> None:
    wanted, _ = logits_of(small_model(window=37), Policy())
    got, state = logits_of(on(backend, window=37), Policy())
    assert error(got, wanted) < 1e-5
    assert state.cache.sizes == [37, 37]


@pytest.mark.parametrize("chunk", [1, 7, 128, 1000])
def test_chunks_change_nothing_but_rounding(backend: ModuleType, chunk: int) -> None:
    model = on(backend)
    assert error(logits_of(model, Policy(), chunk=chunk)[0], logits_of(model, Policy(), chunk=300)[0]) < 1e-5


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_weights_and_caches_of_16_bits(backend: ModuleType, dtype: str) -> None:
    import ml_dtypes

    stored = small_model(dtype=np.dtype(getattr(ml_dtypes, dtype, dtype)))
    model = Model(stored.config, backend.prepare_weights(stored.weights), backend)
    got, state = logits_of(model, Policy())
    assert state.cache.layers[0].k.dtype == stored.weights.embedding.dtype
    assert error(got, logits_of(stored, Policy())[0]) < 1e-2


def test_a_cache_moves_between_backends(backend: ModuleType) -> None:
    model, meant = on(backend), small_model()
    _, state = logits_of(model, Policy(evict=H2O(50)))
    arrays = [{n: np.array(a) for n, a in layer.arrays().items()} for layer in state.cache.layers]
    state.cache = backend.restore_cache(arrays)
    there = new_state(meant, state.policy)
    there.cache, there.position = reference.restore_cache(arrays), state.position
    decode(model, [state], [5])
    decode(meant, [there], [5])
    assert state.logits is not None
    assert there.logits is not None
    assert error(backend.to_numpy(state.logits), there.logits) < 1e-5


def test_a_copy_of_a_cache_is_independent(backend: ModuleType) -> None:
    model = on(backend)
    _, state = logits_of(model, Policy(evict=KeyDiff(50)))
    copied = state.cache.copy()
    before = [np.array(backend.to_numpy(layer.k)) for layer in copied.layers]
    decode(model, [state], [7])
    for layer, k in zip(copied.layers, before, strict=True):
        np.testing.assert_array_equal(backend.to_numpy(layer.k), k)
    assert isinstance(copied, backend.KVCache)


def test_a_trace_names_every_token_that_the_cache_forgot(backend: ModuleType) -> None:
    model = on(backend)
    state = new_state(model, Policy(evict=KeyDiff(50)), trace=True)
    prefill(model, state, np.arange(300) % 50, chunk=64)
    assert state.trace is not None
    for n, held in enumerate(state.positions):
        forgotten = [entry.positions for entry in state.trace.evictions if entry.layer == n]
        for head, rest in enumerate(backend.to_numpy(held)):
            told = np.concatenate([rest, *(positions[head] for positions in forgotten)])
            np.testing.assert_array_equal(np.sort(told), np.arange(300))


def test_four_threads_get_what_one_gets(backend: ModuleType) -> None:
    model = on(backend)
    names = [*POLICIES, *POLICIES]
    wanted = {name: logits_of(model, POLICIES[name], tokens=150)[0] for name in POLICIES}
    start = threading.Barrier(4)

    def work(turn: int) -> None:
        start.wait()
        for name in names[turn::4]:
            np.testing.assert_allclose(logits_of(model, POLICIES[name], tokens=150)[0], wanted[name], rtol=0, atol=1e-4)

    with ThreadPoolExecutor(4) as pool:
        for done in [pool.submit(work, turn) for turn in range(4)]:
            done.result()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this system")
@pytest.mark.filterwarnings("ignore:.*use of fork.*:DeprecationWarning")
def test_a_forked_child_computes_the_same(backend: ModuleType) -> None:
    if hasattr(backend, "device_name"):
        pytest.skip("a forked child can use nothing of its parent's GPU, and is told so")
    model = on(backend)
    wanted = logits_of(model, POLICIES["quoka"])[0]  # the parent's helper threads are running now
    child = os.fork()
    if child == 0:
        same = error(logits_of(model, POLICIES["quoka"])[0], wanted) < 1e-6
        os._exit(0 if same else 3)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
