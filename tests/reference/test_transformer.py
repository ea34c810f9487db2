"""The one forward pass: chunks, caches and batches must not change what a token means."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from reference import Model, ModelConfig, Rope, decode, new_state, prefill
from reference.layers import activate
from tests.small import random_weights, small_config, small_model, with_norms

IDS = np.random.default_rng(1).integers(0, 50, 40)


def by_hand(model: Model, ids: np.ndarray) -> np.ndarray:
    """Logits (T, V) of a whole sequence at once, token by token and head by head, without a cache."""
    c, w = model.config, model.weights

    def norm(x: np.ndarray, weight: np.ndarray | None) -> np.ndarray:
        return x if weight is None else x / np.sqrt((x**2).mean(-1, keepdims=True) + c.rms_eps) * weight

    def turn(x: np.ndarray, position: int, rope: Rope | None) -> np.ndarray:
        if rope is None:
            return x
        r = round(len(x) * rope.share)
        pairs = x[: r // 2] + 1j * x[r // 2 : r]  # a rotation is a product of complex numbers
        angles = position * rope.theta ** (-np.arange(0, r, 2) / r)
        if rope.scaling == "longrope":
            angles /= rope.long_factors if len(ids) > rope.original_positions else rope.short_factors
        turned = pairs * np.exp(1j * angles) * (rope.attention_factor or 1)
        return np.concatenate([turned.real, turned.imag, x[r:]])

    x = w.embedding[ids] * c.embedding_scale
    for n, layer in enumerate(w.layers):
        h = norm(x, layer.attention_norm)
        bias = {name: 0 if getattr(layer, name) is None else getattr(layer, name) for name in ("b_q", "b_k", "b_v")}
        q, k = h @ layer.w_q.T + bias["b_q"], h @ layer.w_k.T + bias["b_k"]
        if c.joint_qk_norm:
            q, k = norm(q, layer.q_norm), norm(k, layer.k_norm)
        q, k = q.reshape(len(ids), c.heads, -1), k.reshape(len(ids), c.kv_heads, -1)
        v = (h @ layer.w_v.T + bias["b_v"]).reshape(len(ids), c.kv_heads, -1)
        if not c.joint_qk_norm:
            q, k = norm(q, layer.q_norm), norm(k, layer.k_norm)
        out = np.zeros((len(ids), c.heads, c.head_dim))
        for t in range(len(ids)):
            for head in range(c.heads):
                kv = head // c.group
                first = 0 if c.windows[n] is None else max(0, t - c.windows[n] + 1)
                scores = np.array(
                    [
                        turn(q[t, head], t, c.ropes[n]) @ turn(k[j, kv], j, c.ropes[n]) * c.attention_scale
                        for j in range(first, t + 1)
                    ]
                )
                scores = scores if c.score_cap is None else c.score_cap * np.tanh(scores / c.score_cap)
                weights = np.exp(scores - scores.max())
                out[t, head] = weights / weights.sum() @ v[first : t + 1, kv]
        x = x + c.residual_scale * norm(out.reshape(len(ids), -1) @ layer.w_o.T, layer.post_attention_norm)
        h = norm(x, layer.ffn_norm)
        out = (activate(h @ layer.w_gate.T, c.activation) * (h @ layer.w_up.T)) @ layer.w_down.T
        x = x + c.residual_scale * norm(out, layer.post_ffn_norm)
    logits = norm(x, w.final_norm) @ w.output.T * c.logit_scale
    return logits if c.logit_cap is None else c.logit_cap * np.tanh(logits / c.logit_cap)


FACTORS = {"short_factors": (1.0, 1.5, 2.0, 3.0), "long_factors": (2.0, 3.0, 4.0, 5.0)}
MODELS = {
    "plain": small_model(),
    "biases and q/k norms": small_model(biases=True),
    "window": small_model(window=7),
    "one window, one full, one without rotation": small_model(
        layers=3, windows=(5, None, None), ropes=(Rope(1e4), Rope(1e6), None)
    ),
    "one KV head, tied": small_model(heads=4, kv_heads=1, tied=True),
    "norms before and after": with_norms(small_model(), before=True),
    "norms after, and of all heads": with_norms(small_model(biases=True, joint_qk_norm=True), before=False),
    "a quarter of a head turns, by long factors": small_model(
        ropes=(Rope(1e4, share=0.25), Rope(9.0, "longrope", 2.0, 1, attention_factor=1.2, **FACTORS)), head_dim=8
    ),
    "caps": small_model(score_cap=0.4, logit_cap=1.1, logit_scale=1.5, window=9),
    "factors": small_model(embedding_scale=7.0, residual_scale=0.3, logit_scale=0.125, attention_scale=0.2),
    "scaled embedding, gelu": small_model(embedding_scale=math.sqrt(32), activation="gelu_tanh", attention_scale=0.2),
}


@pytest.mark.parametrize("name", MODELS)
def test_matches_a_forward_pass_without_chunks_or_cache(name: str) -> None:
    model = MODELS[name]
    got = prefill(model, new_state(model), IDS[:20], chunk=6, every=True)
    np.testing.assert_allclose(got, by_hand(model, IDS[:20]), rtol=1e-9, atol=1e-9)


@settings(max_examples=40)
@given(st.sampled_from(sorted(MODELS)), st.integers(1, 41), st.integers(1, 39))
def test_any_chunking_and_any_split_into_prefill_and_decode(name: str, chunk: int, prompt: int) -> None:
    model = MODELS[name]
    whole = prefill(model, new_state(model), IDS, chunk=len(IDS), every=True)
    state = new_state(model)
    np.testing.assert_allclose(
        prefill(model, state, IDS[:prompt], chunk=chunk, every=True), whole[:prompt], rtol=1e-9, atol=1e-9
    )
    for t in range(prompt, len(IDS)):
        decode(model, [state], [IDS[t]])
        np.testing.assert_allclose(state.logits, whole[t], rtol=1e-9, atol=1e-9)
    assert state.position == len(IDS)


def test_a_second_prefill_goes_on_where_the_first_ended() -> None:
    model = MODELS["plain"]
    state = new_state(model)
    prefill(model, state, IDS[:13], chunk=5)
    got = prefill(model, state, IDS[13:], chunk=8, every=True)
    np.testing.assert_allclose(got, prefill(model, new_state(model), IDS, every=True)[13:], rtol=1e-9, atol=1e-9)


def test_sequences_that_share_a_pass_do_not_touch_each_other() -> None:
    model = MODELS["one window, one full, one without rotation"]
    alone, together = [], []
    for states, pass_ in ((alone, False), (together, True)):
        for n in (3, 9, 20):
            state = new_state(model)
            prefill(model, state, IDS[:n])
            states.append(state)
        for step in range(5):
            tokens = [IDS[n + step] for n in (3, 9, 20)]
            if pass_:
                decode(model, states, tokens)
            else:
                for state, token in zip(states, tokens, strict=True):
                    decode(model, [state], [token])
    for a, b in zip(alone, together, strict=True):
        np.testing.assert_allclose(a.logits, b.logits, rtol=1e-9, atol=1e-9)


def test_cache_size_and_bytes() -> None:
    model = small_model(layers=2, windows=(None, 7))
    state = new_state(model)
    prefill(model, state, IDS[:30], chunk=8)
    assert state.cache.sizes == [30, 7]
    c = model.config
    assert state.cache.nbytes == sum(n * c.kv_heads * (2 * c.head_dim * 8 + 8) for n in (30, 7))
    assert c.cache_bytes_per_token(8) == 2 * c.kv_heads * (2 * c.head_dim * 8 + 8)
    for layer in state.cache.layers:
        np.testing.assert_array_equal(layer.positions, np.broadcast_to(np.arange(30 - layer.size, 30), (2, layer.size)))


def test_float32_stays_float32_and_close() -> None:
    config = small_config()
    exact = Model(config, random_weights(config), MODELS["plain"].backend)
    single = Model(config, random_weights(config, dtype="float32"), MODELS["plain"].backend)
    a, b = (prefill(m, new_state(m), IDS, every=True) for m in (exact, single))
    assert b.dtype == np.float32
    assert np.linalg.norm(a - b) <= 1e-5 * np.linalg.norm(a)


@pytest.mark.parametrize(
    ("ids", "message"),
    [
        ([], r"token_ids: got shape \(0,\), wanted \(T,\) with T of at least 1"),
        ([[1, 2]], r"token_ids: got shape \(1, 2\)"),
        ([0.5], "token_ids: got dtype float64"),
        ([50], "token_ids: got ids from 50 to 50, wanted 0 to 49"),
        ([-1, 3], "token_ids: got ids from -1 to 3"),
        ([1] * 65, "token_ids: got 65 tokens after 0, which ends at 65, wanted at most the model's 64 positions"),
    ],
)
def test_bad_tokens_are_refused_before_anything_is_computed(ids: list, message: str) -> None:
    model = small_model(max_positions=64)
    state = new_state(model)
    with pytest.raises(ValueError, match=message):
        prefill(model, state, ids)
    assert state.position == 0
    assert state.cache.sizes == [0, 0]


def test_a_sequence_cannot_take_two_tokens_in_one_pass() -> None:
    model = MODELS["plain"]
    state = new_state(model)
    prefill(model, state, [1, 2, 3])
    with pytest.raises(ValueError, match="states: got one twice, wanted every sequence once"):
        decode(model, [state, state], [4, 5])
    assert state.position == 3


def test_decoding_stops_at_the_last_position() -> None:
    model = small_model(max_positions=4)
    state = new_state(model)
    prefill(model, state, [1, 2, 3])
    decode(model, [state], [4])
    with pytest.raises(ValueError, match="wanted at most the model's 4 positions"):
        decode(model, [state], [5])


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"heads": 3}, "heads: got 3, wanted a multiple of kv_heads = 2"),
        ({"head_dim": 7}, "head_dim: got 7, wanted an even number"),
        ({"layers": 0, "ropes": (), "windows": ()}, "layers: got 0, wanted a whole number of at least 1"),
        ({"ropes": (None,)}, "ropes: got 1 entries, wanted one for each of 2 layers"),
        ({"windows": (0, None)}, "windows: got 0, wanted at least 1 or None"),
        ({"activation": "relu"}, "activation: got 'relu', wanted one of silu, gelu_tanh"),
    ],
)
def test_configs_that_cannot_be(fields: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        small_config(**fields)


def test_weights_that_do_not_fit_their_config() -> None:
    weights = random_weights(small_config())
    wider: ModelConfig = small_config(ffn_width=65)
    with pytest.raises(ValueError, match=r"layers.0.w_gate: got shape \(64, 32\), wanted \(65, 32\)"):
        Model(wider, weights, MODELS["plain"].backend)
    deeper = small_config(layers=3)
    with pytest.raises(ValueError, match="weights: got 2 layers, wanted 3"):
        Model(deeper, weights, MODELS["plain"].backend)
