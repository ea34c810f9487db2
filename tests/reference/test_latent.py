"""Latent attention against its formulas, head by head; whole models with it; and the count of A.X K1's parameters."""

from __future__ import annotations

from types import ModuleType
from typing import Any

import numpy as np
import pytest

import reference
from accel import cpu
from loaders.families import FAMILIES
from reference import H2O, Caote, KeyDiff, Latent, Mixture, Model, Policy, Quoka, SnapKV, decode, new_state, prefill
from reference.latent import latent_heads
from reference.weights import parameters
from tests.small import small_model

HEADS = 4
KINDS = {
    "narrow values": Latent(12, 6, 4, 5, query_rank=9),
    "wide values": Latent(12, 3, 4, 11),
}
POLICIES = {
    "quoka": lambda budget: Policy(select=Quoka(budget)),
    "keydiff": lambda budget: Policy(evict=KeyDiff(budget)),
    "caote": lambda budget: Policy(evict=Caote(budget, base="h2o")),
    "snapkv and quoka": lambda budget: Policy(select=Quoka(budget), evict=SnapKV(budget)),
    "h2o": lambda budget: Policy(evict=H2O(budget)),
}
IDS = np.random.default_rng(5).integers(0, 50, 90)


def model_of(latent: Latent, backend: ModuleType = reference, **fields: Any) -> Model:
    """A small model whose values end in zeros where they are narrower than keys, as loaders leave them."""
    made = small_model(latent=latent, kv_heads=HEADS, heads=HEADS, head_dim=latent.head_dim, biases=True, **fields)
    for w in made.weights.layers:
        w.w_v.reshape(HEADS, latent.head_dim, -1)[:, latent.value_dim :] = 0
    return Model(made.config, backend.prepare_weights(made.weights), backend)


@pytest.mark.parametrize("kind", KINDS)
def test_heads_are_their_formulas(kind: str) -> None:
    latent = KINDS[kind]
    model = model_of(latent)
    w, tokens = model.weights.layers[0], 5
    x = np.random.default_rng(1).standard_normal((tokens, model.config.width))
    angles = np.random.default_rng(2).random((tokens, latent.rotated // 2))
    q, k, v = latent_heads(reference, model.config, w, x, (np.cos(angles), np.sin(angles)))

    def normed(row: np.ndarray, weight: np.ndarray) -> np.ndarray:
        return row / np.sqrt((row * row).mean() + 1e-6) * weight

    def turned(row: np.ndarray, angle: np.ndarray) -> np.ndarray:
        pairs = row[: len(angle)] + 1j * row[len(angle) :]  # a turn is a factor of length 1
        pairs = pairs * np.exp(1j * angle)
        return np.concatenate([pairs.real, pairs.imag])

    for t in range(tokens):
        c = normed(w.w_kv_down @ x[t] + w.b_kv_down, w.kv_down_norm)
        c_q = x[t] if latent.query_rank is None else normed(w.w_q_down @ x[t] + w.b_q_down, w.q_down_norm)
        k_rotated = turned(w.w_k_rotated @ x[t] + w.b_k_rotated, angles[t])
        for h in range(HEADS):
            own = {n: getattr(w, n).reshape(HEADS, -1, getattr(w, n).shape[1])[h] for n in ("w_q", "w_k", "w_v")}
            rows = w.w_q_rotated.reshape(HEADS, latent.rotated, -1)[h]
            fill = np.zeros(latent.head_dim - latent.unrotated - latent.rotated)
            wanted = np.concatenate([own["w_q"] @ c_q, turned(rows @ c_q, angles[t]), fill])
            np.testing.assert_allclose(q[h, t], wanted, atol=1e-12)
            np.testing.assert_allclose(k[h, t], np.concatenate([own["w_k"] @ c, k_rotated, fill]), atol=1e-12)
            np.testing.assert_allclose(v[h, t], own["w_v"] @ c, atol=1e-12)


def logits_of(model: Model, policy: Policy, chunk: int = 16) -> tuple[np.ndarray, reference.State]:
    """Logits after every token of a prompt and of three that are decoded, and the state."""
    state = new_state(model, policy)
    rows = [prefill(model, state, IDS, chunk=chunk, every=True)]
    for token in (3, 1, 4):
        decode(model, [state], [token])
        rows.append(np.asarray(state.logits)[None])
    return np.concatenate(rows), state


@pytest.mark.parametrize("kind", KINDS)
def test_whole_models(kind: str) -> None:
    """In chunks and not, on the reference and on the CPU; every method with room for all is dense, and else keeps its
    budget."""
    mixture = Mixture((False, True), 6, 2, 12, 20, score="sigmoid", groups=3, groups_chosen=2, scale=2.5)
    here, there = (model_of(KINDS[kind], backend, mixture=mixture) for backend in (reference, cpu))
    dense, state = logits_of(here, Policy())
    assert state.cache.layers[0].nbytes == 93 * HEADS * (2 * KINDS[kind].head_dim * 8 + 8)
    np.testing.assert_allclose(logits_of(here, Policy(), chunk=128)[0], dense, rtol=0, atol=1e-9)
    np.testing.assert_allclose(logits_of(there, Policy())[0], dense, rtol=0, atol=2e-5)
    for make in POLICIES.values():
        np.testing.assert_allclose(logits_of(here, make(93))[0], dense, rtol=0, atol=1e-9)
        wanted, meant = logits_of(here, make(40))
        got, held = logits_of(there, make(40))
        np.testing.assert_allclose(got, wanted, rtol=0, atol=2e-5)
        assert held.cache.sizes == meant.cache.sizes
        assert make(40).evict is None or max(held.cache.sizes) <= 40


def test_parameters_of_ax_k1_are_counted_from_its_config() -> None:
    family = FAMILIES["axk1"]
    config = family.model_config(family.settings({"model_type": "axk1"}, "config.json"))
    norms = config.layers * config.width  # after every FFN, stored for the dense layer too, which does not use it
    assert parameters(config) + norms == 518_983_059_456


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_counted_is_what_there_is(kind: str) -> None:
    model = model_of(KINDS[kind], mixture=Mixture((True, False), 4, 2, 7, 3))
    latent, filled = KINDS[kind], 0
    arrays = [model.weights.embedding, model.weights.output, model.weights.final_norm]
    for w in model.weights.layers:
        filled += HEADS * (latent.head_dim - latent.value_dim) * (latent.rank + model.config.width)
        arrays += [x for name, x in w.arrays().items() if not name.startswith("b_") and name != "router_bias"]
    assert parameters(model.config) == sum(x.size for x in arrays) - filled


def test_what_cannot_be_is_one_line() -> None:
    with pytest.raises(ValueError, match="rotated: got 3 dimensions, wanted an even number"):
        Latent(12, 6, 3, 8)
    with pytest.raises(ValueError, match=r"latent: got 2 KV heads of 10, wanted 4 of 10"):
        small_model(latent=Latent(12, 6, 4, 8), heads=4, kv_heads=2, head_dim=10)
