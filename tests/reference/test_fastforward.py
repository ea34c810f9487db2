"""FastForward against its formulas, and which blocks it leaves dense."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import reference
from reference import (
    Compensator,
    FastForward,
    FastForwardLayer,
    FastForwardWeights,
    Model,
    Policy,
    Predictor,
    attention_mass,
    gated_ffn,
    griffin_statistic,
    layer_densities,
    mixing,
    neuron_magnitudes,
    new_state,
    predictor_scores,
    predictor_targets,
    prefill,
    select_neurons,
    sparse_ffn,
)
from reference.fastforward import Block
from tests.small import small_config, small_model

RNG = np.random.default_rng


def silu(x: np.ndarray) -> np.ndarray:
    return x / (1 + np.exp(-x))


def trained(layers: int = 2, width: int = 32, neurons: int = 64, seed: int = 0) -> FastForwardWeights:
    rng = RNG(seed)
    return FastForwardWeights(
        [
            FastForwardLayer(
                Predictor(
                    rng.standard_normal(width), rng.standard_normal((width, 2)), rng.standard_normal((2, neurons))
                ),
                Compensator(rng.standard_normal((4, width)) / 6, rng.standard_normal((width, 4)) / 2),
                density=0.25 + 0.5 * layer / max(1, layers - 1),
            )
            for layer in range(layers)
        ]
    )


@given(st.integers(0, 2**32 - 1), st.integers(1, 6), st.sampled_from([1.0, 50.0]))
def test_the_predictor_pools_then_predicts(seed: int, tokens: int, size: float) -> None:
    rng = RNG(seed)
    x, q_pred = rng.standard_normal((tokens, 5)) * size, rng.standard_normal(5)
    w1, w2 = rng.standard_normal((5, 3)), rng.standard_normal((3, 7))
    logits = [float(q_pred @ token) / math.sqrt(5) for token in x]
    shares = [math.exp(logit - max(logits)) for logit in logits]
    pooled = sum(share / sum(shares) * token for share, token in zip(shares, x, strict=True))
    hidden = [max(0.0, float(pooled @ w1[:, r])) for r in range(3)]
    wanted = [sum(hidden[r] * w2[r, f] for r in range(3)) for f in range(7)]
    np.testing.assert_allclose(predictor_scores(x, Predictor(q_pred, w1, w2)), wanted, rtol=1e-9, atol=1e-9)


def test_neurons_tie_to_the_lower_and_come_ascending() -> None:
    np.testing.assert_array_equal(select_neurons(np.array([1.0, 3, 1, 3, 2, 1]), 4), [0, 1, 3, 4])
    np.testing.assert_array_equal(select_neurons(np.zeros(6), 2), [0, 1])
    np.testing.assert_array_equal(select_neurons(np.zeros(3), 9), [0, 1, 2])


@given(st.integers(0, 2**32 - 1), st.integers(1, 4), st.integers(1, 9), st.booleans())
def test_the_sparse_ffn_is_the_dense_one_without_the_other_neurons(
    seed: int, tokens: int, keep: int, compensated: bool
) -> None:
    rng = RNG(seed)
    x, w_gate, w_up = rng.standard_normal((tokens, 5)), *rng.standard_normal((2, 9, 5))
    w_down = rng.standard_normal((5, 9))
    neurons = np.sort(rng.choice(9, keep, replace=False))
    c1, c2 = rng.standard_normal((3, 5)), rng.standard_normal((5, 3))
    got = sparse_ffn(x, w_gate, w_up, w_down, neurons, compensator=Compensator(c1, c2) if compensated else None)
    z = silu(x @ w_gate.T) * (x @ w_up.T)
    z[:, np.setdiff1d(np.arange(9), neurons)] = 0
    wanted = z @ w_down.T + (silu(x @ c1.T) @ c2.T if compensated else 0)
    np.testing.assert_allclose(got, wanted, rtol=1e-9, atol=1e-9)


def test_all_neurons_are_the_dense_ffn_and_the_activation_is_the_models() -> None:
    rng = RNG(0)
    x, (w_gate, w_up), w_down = rng.standard_normal((3, 5)), rng.standard_normal((2, 9, 5)), rng.standard_normal((5, 9))
    for act in ("silu", "gelu_tanh"):
        np.testing.assert_allclose(
            sparse_ffn(x, w_gate, w_up, w_down, np.arange(9), act=act), gated_ffn(x, w_gate, w_up, w_down, act=act)
        )
    c = Compensator(rng.standard_normal((3, 5)), rng.standard_normal((5, 3)))
    none = np.zeros(0, np.int64)
    gelu = sparse_ffn(x, w_gate, w_up, w_down, none, compensator=c, act="gelu_tanh")
    inner = x @ c.c1.T
    tanh = np.tanh(np.sqrt(2 / np.pi) * (inner + 0.044715 * inner**3))
    np.testing.assert_allclose(gelu, 0.5 * inner * (1 + tanh) @ c.c2.T)


@given(
    st.lists(st.floats(0, 1e6, allow_nan=False), min_size=1, max_size=12),
    st.floats(0.01, 1.0),
)
def test_layer_densities_sum_to_what_there_is(importance: list[float], density: float) -> None:
    densities = layer_densities(importance, density)
    assert densities.sum() == pytest.approx(density * len(importance), rel=1e-9)
    assert ((densities >= 0) & (densities <= 1)).all()
    order = np.argsort(importance)
    assert (np.diff(densities[order]) >= -1e-9).all()  # a layer that mixes more never gets less
    free = [i for i, b in enumerate(densities) if b < 1 - 1e-9]
    shares = [(importance[i], densities[i]) for i in free]
    for s, b in shares:
        for t, c in shares:
            if sum(importance) > 1e-3:
                assert s * c == pytest.approx(t * b, rel=1e-6, abs=1e-6 * max(importance))


def test_layers_are_visited_by_falling_importance() -> None:
    np.testing.assert_allclose(layer_densities([1, 1, 1, 6], 0.5), [1 / 3, 1 / 3, 1 / 3, 1])  # the paper's: sum 1.67
    np.testing.assert_allclose(layer_densities([6, 1, 1, 1], 0.5), [1, 1 / 3, 1 / 3, 1 / 3])
    np.testing.assert_allclose(layer_densities([2, 2, 2], 0.3), [0.3, 0.3, 0.3])
    np.testing.assert_allclose(layer_densities([0, 0], 0.3), [0.3, 0.3])
    np.testing.assert_allclose(layer_densities([0, 5, 0], 0.5), [0.25, 1, 0.25])
    np.testing.assert_allclose(layer_densities([1, 2, 3], 1.0), [1, 1, 1])


def test_mixing_is_the_attention_beyond_the_first_block() -> None:
    rng = RNG(0)
    q, k = rng.standard_normal((4, 9, 6)), rng.standard_normal((2, 9, 6))
    positions = np.arange(9)
    mass = attention_mass(q, k, positions, np.tile(positions, (2, 1)))
    shares = []
    for h in range(4):
        for t in range(9):
            e = np.exp(k[h // 2, : t + 1] @ q[h, t] / np.sqrt(6))
            shares.append(e[4:].sum() / e.sum())  # the diagonal included
    assert mixing(mass, first=4) == pytest.approx(np.mean(shares))


@given(st.integers(0, 2**32 - 1), st.integers(1, 5))
def test_griffins_statistic(seed: int, tokens: int) -> None:
    gate, up = RNG(seed).standard_normal((2, tokens, 6))
    z = silu(gate) * up
    wanted = [math.sqrt(sum((z[t, f] / np.linalg.norm(z[t])) ** 2 for t in range(tokens))) for f in range(6)]
    np.testing.assert_allclose(griffin_statistic(gate, up), wanted)


def test_a_token_that_activates_nothing_does_not_count() -> None:
    gate, up = np.array([[1.0, 2.0], [0.0, 0.0]]), np.array([[1.0, 1.0], [3.0, 3.0]])
    np.testing.assert_allclose(griffin_statistic(gate, up), griffin_statistic(gate[:1], up[:1]))


def test_training_targets_weigh_the_strongest_most() -> None:
    labels, weights = predictor_targets(np.arange(20.0)[::-1])
    np.testing.assert_array_equal(labels, [True] * 10 + [False] * 10)
    np.testing.assert_array_equal(weights, [32, 32, 16, 16, 8, 8, 4, 4, 2, 2] + [1] * 10)
    labels, weights = predictor_targets(np.array([0.0, 5, 5, 1]), positives=0.5)
    np.testing.assert_array_equal(labels, [False, True, True, False])
    np.testing.assert_array_equal(weights, [1, 32, 8, 1])  # of two, one is in the first fifth and one in the third


def test_magnitudes_are_the_product_of_the_three_norms() -> None:
    (gate, up), down = RNG(0).standard_normal((2, 6, 4)), RNG(1).standard_normal((4, 6))
    wanted = [np.linalg.norm(gate[f]) * np.linalg.norm(up[f]) * np.linalg.norm(down[:, f]) for f in range(6)]
    np.testing.assert_allclose(neuron_magnitudes(gate, up, down), wanted)


# The policy part, in a whole model.

IDS = RNG(5).integers(0, 50, 700)


def blocks_run(part: FastForward, length: int, chunk: int = 128, layer: int = 0) -> list[tuple[int, int | None]]:
    """First position and neurons run (None: dense) of every block of one layer."""
    model = small_model()
    state = new_state(model, Policy(ffn=part), trace=True)
    prefill(model, state, IDS[:length], chunk=chunk)
    assert state.trace is not None
    return [(r.at, None if r.neurons is None else len(r.neurons)) for r in state.trace.neurons if r.layer == layer]


@pytest.mark.parametrize("neurons", ["griffin", "oracle", "random", "magnitude"])
def test_first_and_last_block_are_dense(neurons: str) -> None:
    part = FastForward(neurons=neurons)
    assert blocks_run(part, 512) == [(0, None), (128, 32), (256, 32), (384, None)]
    assert blocks_run(part, 513) == [(0, None), (128, 32), (256, 32), (384, None), (512, None)]  # one token and 127
    assert blocks_run(part, 384) == [(0, None), (128, 32), (256, None)]


@pytest.mark.parametrize("length", [1, 127, 128, 200, 255, 256])
@pytest.mark.parametrize("chunk", [64, 100, 128, 700])
def test_a_prompt_of_up_to_256_tokens_is_dense(length: int, chunk: int) -> None:
    assert {neurons for _, neurons in blocks_run(FastForward(neurons="oracle"), length, chunk)} == {None}


def test_what_is_dense_does_not_hang_on_the_chunks() -> None:
    part = FastForward(neurons="oracle")
    assert blocks_run(part, 512, chunk=64) == [
        *((at, None) for at in (0, 64)),
        *((at, 32) for at in (128, 192, 256, 320)),
        *((at, None) for at in (384, 448)),
    ]
    assert blocks_run(part, 512, chunk=700) == [(0, None), (128, 32), (256, 32), (384, None)]


def test_the_dense_ends_are_parameters() -> None:
    assert blocks_run(FastForward(neurons="oracle", dense_first=0, dense_last=0), 300) == [
        (0, 32),
        (128, 32),
        (256, 32),
    ]
    assert blocks_run(FastForward(neurons="oracle", dense_first=0), 300) == [(0, 32), (128, None), (256, None)]
    assert blocks_run(FastForward(neurons="oracle", dense_last=1), 300) == [(0, None), (128, 32), (256, None)]


@pytest.mark.parametrize(("decode", "wanted"), [(False, None), (True, 32)])
def test_decoding_is_dense_unless_asked_for(decode: bool, wanted: int | None) -> None:
    model = small_model()
    state = new_state(model, Policy(ffn=FastForward(weights=trained(), schedule="uniform", decode=decode)), trace=True)
    prefill(model, state, IDS[:20])
    reference.decode(model, [state], [3])
    assert state.trace is not None
    last = state.trace.neurons[-1]
    assert last.at == 20
    assert (last.neurons if last.neurons is None else len(last.neurons)) == wanted


def logits_with(part: FastForward | None) -> np.ndarray:
    model = small_model()
    return prefill(model, new_state(model, Policy(ffn=part)), IDS[:400], every=True)


def test_density_one_is_dense_with_or_without_a_compensator() -> None:
    dense = logits_with(None)
    for part in (
        FastForward(1.0, neurons="oracle"),
        FastForward(1.0, weights=trained()),
        FastForward(1.0, weights=trained(), compensate=False),
    ):
        np.testing.assert_allclose(logits_with(part), dense, rtol=1e-9, atol=1e-9)


def test_every_layer_runs_its_own_density() -> None:
    weights = trained(layers=2)  # densities .25 and .75
    assert blocks_run(FastForward(0.5, weights=weights), 400, layer=0)[1] == (128, 16)
    assert blocks_run(FastForward(0.5, weights=weights), 400, layer=1)[1] == (128, 48)
    assert blocks_run(FastForward(0.5, weights=weights, schedule="uniform"), 400, layer=1)[1] == (128, 32)
    assert blocks_run(FastForward(0.8, weights=weights), 400, layer=1)[1] == (128, None)  # clipped at 1, so dense
    assert blocks_run(FastForward(0.8, weights=weights), 400, layer=0)[1] == (128, round(0.6 * 64))


def block_of(model: Model, x: np.ndarray, first: int = 128, layer: int = 0) -> Block:
    """A block in the middle of a long prompt."""
    cache = new_state(model).cache.layers[layer]
    return Block(x, first, 4096, False, layer, model.weights.layers[layer], model.config, cache, reference)


@pytest.mark.parametrize("compensate", [True, False])
def test_a_block_runs_what_the_predictor_chooses_and_is_compensated(compensate: bool) -> None:
    model, weights = small_model(), trained()
    x, w = RNG(1).standard_normal((128, 32)), model.weights.layers[1]
    output, neurons = FastForward(weights=weights, schedule="uniform", compensate=compensate).run(
        block_of(model, x, layer=1)
    )
    p, c = weights.layers[1].predictor, weights.layers[1].compensator
    assert c is not None
    shares = np.exp(x @ p.q_pred / np.sqrt(32))
    s = np.maximum(shares / shares.sum() @ x @ p.w1, 0) @ p.w2
    chosen = sorted(sorted(range(64), key=lambda f: (-s[f], f))[:32])
    np.testing.assert_array_equal(neurons, chosen)
    z = silu(x @ w.w_gate.T) * (x @ w.w_up.T)
    wanted = z[:, chosen] @ w.w_down[:, chosen].T + (silu(x @ c.c1.T) @ c.c2.T if compensate else 0)
    np.testing.assert_allclose(output, wanted, rtol=1e-9, atol=1e-9)


def best(x: np.ndarray, model: Model, keep: int) -> np.ndarray:
    """GRIFFIN's choice for a block, by hand."""
    w = model.weights.layers[0]
    z = silu(x @ w.w_gate.T) * (x @ w.w_up.T)
    s = np.linalg.norm(z / np.linalg.norm(z, axis=1, keepdims=True), axis=0)
    return np.sort(np.argsort(-s, kind="stable")[:keep])


def test_griffin_keeps_the_choice_of_the_first_block_and_the_oracle_makes_a_new_one() -> None:
    model, rng = small_model(), RNG(1)
    first, second = rng.standard_normal((2, 128, 32))
    at_first, later = block_of(model, first, first=0), block_of(model, second, first=128)
    later = replace(later, cache=at_first.cache)
    for neurons, wanted in (("griffin", best(first, model, 32)), ("oracle", best(second, model, 32))):
        part = FastForward(neurons=neurons)
        output, ran = part.run(at_first)
        np.testing.assert_allclose(output, at_first.dense())
        assert ran is None
        output, ran = part.run(later)
        np.testing.assert_array_equal(ran, wanted)
        w = model.weights.layers[0]
        np.testing.assert_allclose(output, sparse_ffn(second, w.w_gate, w.w_up, w.w_down, wanted))
        at_first.cache.neurons = None


def test_random_neurons_are_drawn_anew_for_every_block_and_layer_and_repeat_with_the_seed() -> None:
    model, x = small_model(), RNG(1).standard_normal((128, 32))

    def ran(seed: int, first: int, layer: int) -> list[int]:
        return FastForward(neurons="random", seed=seed).run(block_of(model, x, first, layer))[1].tolist()

    assert ran(0, 128, 0) == ran(0, 128, 0)
    assert len({tuple(ran(*place)) for place in ((0, 128, 0), (1, 128, 0), (0, 256, 0), (0, 128, 1))}) == 4


def test_magnitude_takes_the_largest_weights_whatever_the_block() -> None:
    model, rng = small_model(), RNG(1)
    w = model.weights.layers[0]
    wanted = select_neurons(neuron_magnitudes(w.w_gate, w.w_up, w.w_down), 32)
    for _ in range(2):
        _, ran = FastForward(neurons="magnitude").run(block_of(model, rng.standard_normal((128, 32))))
        np.testing.assert_array_equal(ran, wanted)


@pytest.mark.parametrize(("density", "keep"), [(0.5, 32), (0.26, 17), (0.251, 16), (1e-9, 1), (0.99, 63)])
def test_the_neurons_kept_are_rounded_and_at_least_one(density: float, keep: int) -> None:
    model = small_model()
    _, ran = FastForward(density, neurons="oracle").run(block_of(model, RNG(1).standard_normal((8, 32))))
    assert len(ran) == keep


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"density": 0.0}, "density: got 0.0, wanted a number in"),
        ({"density": 1.5}, "density: got 1.5"),
        ({"density": float("nan")}, "density: got nan"),
        ({"density": "half"}, "density: got 'half'"),
        ({}, "weights: got none, wanted trained FastForward weights for neurons='predictor'"),
        ({"neurons": "best"}, "neurons: got 'best', wanted one of predictor, griffin, oracle, random, magnitude"),
        ({"neurons": "oracle", "schedule": "layerwise"}, "schedule: got 'layerwise' without weights"),
        ({"neurons": "oracle", "schedule": "cosine"}, "schedule: got 'cosine', wanted one of layerwise, uniform"),
        ({"neurons": "oracle", "block": 0}, "block: got 0"),
        ({"neurons": "oracle", "dense_last": -1}, "dense_last: got -1"),
    ],
)
def test_bad_settings(fields: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        FastForward(**fields)  # type: ignore[arg-type]


def test_weights_for_another_model() -> None:
    def check(weights: object, **fields: object) -> None:
        Policy(ffn=FastForward(weights=weights)).check(small_config(**fields))  # type: ignore[arg-type]

    check(trained())
    with pytest.raises(ValueError, match="weights: got FastForward weights for 2 layers, wanted 3"):
        check(trained(), layers=3)
    with pytest.raises(ValueError, match=r"layers.0.q_pred: got shape \(32,\), wanted \(48,\) for this model"):
        check(trained(), width=48)
    with pytest.raises(ValueError, match=r"layers.0.w2: got shape \(2, 64\), wanted \(2, 96\)"):
        check(trained(), ffn_width=96)
    layer = replace(trained().layers[1], compensator=Compensator(np.zeros((4, 32)), np.zeros((32, 5))))
    with pytest.raises(ValueError, match=r"layers.1.c2: got shape \(32, 5\), wanted \(32, 4\)"):
        check(FastForwardWeights([trained().layers[0], layer]))
    with pytest.raises(ValueError, match=r"layers\.1\.density: got 0.0"):
        check(FastForwardWeights([trained().layers[0], replace(trained().layers[1], density=0.0)]))
    with pytest.raises(ValueError, match=r"weights: got 'smollm2.safetensors', wanted the arrays"):
        check("smollm2.safetensors")


def test_bad_arrays() -> None:
    x, w = np.zeros((3, 5)), np.zeros((9, 5))
    with pytest.raises(ValueError, match=r"neurons: got 8 followed by 8 at index \(1,\)"):
        sparse_ffn(x, w, w, w.T, np.array([2, 8, 8]))
    with pytest.raises(ValueError, match=r"neurons: got .* wanted 0 to 8"):
        sparse_ffn(x, w, w, w.T, np.array([2, 9]))
    with pytest.raises(ValueError, match=r"neurons: got .* wanted 0 to 8"):
        sparse_ffn(x, w, w, w.T, np.array([-1, 3]))
    with pytest.raises(ValueError, match=r"neurons: got shape .* of float64"):
        sparse_ffn(x, w, w, w.T, np.array([1.0]))
    with pytest.raises(ValueError, match=r"w_down: got shape \(9, 5\), wanted \(E=5, F=9\)"):
        sparse_ffn(x, w, w, w, np.array([1]))
    with pytest.raises(ValueError, match=r"c1: got shape \(3, 4\), wanted \(hidden, E=5\)"):
        sparse_ffn(x, w, w, w.T, np.array([1]), compensator=Compensator(np.zeros((3, 4)), np.zeros((5, 3))))
    with pytest.raises(ValueError, match="keep: got 0"):
        select_neurons(np.zeros(4), 0)
    with pytest.raises(ValueError, match="scores: got NaN"):
        select_neurons(np.array([0.0, np.nan]), 1)
    with pytest.raises(ValueError, match=r"x: got shape .* wanted at least one token"):
        predictor_scores(x[:0], trained(1, 5, 9).layers[0].predictor)
    with pytest.raises(ValueError, match="importance: got a negative"):
        layer_densities([1.0, -1.0], 0.5)
    with pytest.raises(ValueError, match="density: got 0"):
        layer_densities([1.0, 1.0], 0)
