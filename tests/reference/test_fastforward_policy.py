"""FastForward as a policy part, in a whole model: which blocks it leaves dense, and which neurons the others run."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

import reference
from reference import (
    Compensator,
    FastForward,
    FastForwardWeights,
    Model,
    Policy,
    neuron_magnitudes,
    new_state,
    prefill,
    select_neurons,
    sparse_ffn,
)
from reference.fastforward import Block
from tests.reference.neurons import silu, trained
from tests.small import small_config, small_model

RNG = np.random.default_rng
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
    return Block(x, slice(0, len(x)), first, 4096, False, layer, model, cache)


def run(part: FastForward, block: Block) -> tuple[np.ndarray, np.ndarray | None]:
    """The output of one block, and its neurons."""
    output, (neurons,) = part.run(block.x, [block])
    return output, neurons


@pytest.mark.parametrize("compensate", [True, False])
def test_a_block_runs_what_the_predictor_chooses_and_is_compensated(compensate: bool) -> None:
    model, weights = small_model(), trained()
    x, w = RNG(1).standard_normal((128, 32)), model.weights.layers[1]
    part = FastForward(weights=weights, schedule="uniform", compensate=compensate)
    output, neurons = run(part, block_of(model, x, layer=1))
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
        output, ran = run(part, at_first)
        np.testing.assert_allclose(output, at_first.dense())
        assert ran is None
        output, ran = run(part, later)
        np.testing.assert_array_equal(ran, wanted)
        w = model.weights.layers[0]
        np.testing.assert_allclose(output, sparse_ffn(second, w.w_gate, w.w_up, w.w_down, wanted))
        at_first.cache.neurons = None


def test_random_neurons_are_drawn_anew_for_every_block_and_layer_and_repeat_with_the_seed() -> None:
    model, x = small_model(), RNG(1).standard_normal((128, 32))

    def ran(seed: int, first: int, layer: int) -> list[int]:
        return run(FastForward(neurons="random", seed=seed), block_of(model, x, first, layer))[1].tolist()

    assert ran(0, 128, 0) == ran(0, 128, 0)
    assert len({tuple(ran(*place)) for place in ((0, 128, 0), (1, 128, 0), (0, 256, 0), (0, 128, 1))}) == 4


def test_magnitude_takes_the_largest_weights_whatever_the_block() -> None:
    model, rng = small_model(), RNG(1)
    w = model.weights.layers[0]
    wanted = select_neurons(neuron_magnitudes(w.w_gate, w.w_up, w.w_down), 32)
    for _ in range(2):
        _, ran = run(FastForward(neurons="magnitude"), block_of(model, rng.standard_normal((128, 32))))
        np.testing.assert_array_equal(ran, wanted)


@pytest.mark.parametrize(("density", "keep"), [(0.5, 32), (0.26, 17), (0.251, 16), (1e-9, 1), (0.99, 63)])
def test_the_neurons_kept_are_rounded_and_at_least_one(density: float, keep: int) -> None:
    model = small_model()
    _, ran = run(FastForward(density, neurons="oracle"), block_of(model, RNG(1).standard_normal((8, 32))))
    assert len(ran) == keep


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"density": 0.0}, "density: got 0.0, wanted a number in"),
        ({"density": 1.5}, "density: got 1.5"),
        ({"density": float("nan")}, "density: got nan"),
        ({"density": "half"}, "density: got 'half'"),
        ({"neurons": "best"}, "neurons: got 'best', wanted one of predictor, griffin, oracle, random, magnitude"),
        ({"neurons": "oracle", "schedule": "cosine"}, "schedule: got 'cosine', wanted one of layerwise, uniform"),
        ({"neurons": "oracle", "block": 0}, "block: got 0"),
        ({"neurons": "oracle", "dense_last": -1}, "dense_last: got -1"),
    ],
)
def test_bad_settings(fields: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        FastForward(**fields)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("part", "message"),
    [
        (FastForward(), "weights: got none, wanted trained FastForward weights for neurons='predictor'"),
        (FastForward(neurons="oracle", schedule="layerwise"), "schedule: got 'layerwise' without weights"),
    ],
)
def test_a_model_runs_no_part_that_lacks_its_weights(part: FastForward, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        new_state(small_model(), Policy(ffn=part))


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
