"""Tuning from end to end: the network is the model, its gradient is right, and what is tuned is better and goes on."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import reference
from reference import Compensator, FastForward, FastForwardLayer, FastForwardWeights, Policy, Predictor, gradients
from reference.fitting import Adam
from thresher.fit import tune as tuning_module
from thresher.fit.network import Network
from thresher.fit.tune import Tuning, tune

TOKENS, BLOCK = 64, 16


def parts_of(config: reference.ModelConfig, seed: int = 0) -> list[FastForwardLayer]:
    rng, e, f = np.random.default_rng(seed), config.width, config.ffn_width

    def layer() -> FastForwardLayer:
        predictor = Predictor(rng.standard_normal(e), rng.standard_normal((e, 4)), rng.standard_normal((4, f)))
        return FastForwardLayer(
            predictor, Compensator(rng.standard_normal((3, e)), rng.standard_normal((e, 3)) / 3), 0.5
        )

    return [layer() for _ in range(config.layers)]


MODELS: dict[str, dict[str, Any]] = {
    "llama": {},
    "all": {"biases": True, "tied": True, "windows": (None, 24), "ropes": (None, reference.Rope(100.0))},
    "gelu": {"activation": "gelu_tanh", "embedding_scale": 2.0, "kv_heads": 1},
}


@pytest.mark.parametrize("name", MODELS)
def test_the_network_is_the_model(name: str) -> None:
    model = reference.toy_model(**MODELS[name])
    ids = np.random.default_rng(0).integers(0, 50, (2, TOKENS))
    parts = parts_of(model.config)
    network = Network(model.config, model.weights, TOKENS, BLOCK)

    def run(policy: Policy) -> np.ndarray:
        prompts = [reference.prefill(model, reference.new_state(model, policy), one, every=True) for one in ids]
        return np.array(prompts)[:, BLOCK:]

    np.testing.assert_allclose(network.logits(ids)[0], run(Policy()), rtol=1e-8, atol=1e-10)
    half = FastForward(0.5, FastForwardWeights(parts), block=BLOCK, dense_first=BLOCK, dense_last=0)
    np.testing.assert_allclose(network.logits(ids, parts, [32, 32])[0], run(Policy(ffn=half)), rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("layer", [0, 1])
def test_the_slope_of_the_whole_network(name: str, layer: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Along a random direction of one layer's arrays and of its number of neurons: the masks stay, but for the one that
    the direction moves. It moves as far as the sigmoid of its scores does, and a neuron more is spread around the cut
    by the sigmoid's slope."""
    model = reference.toy_model(**MODELS[name])
    rng = np.random.default_rng(1)
    ids, parts = rng.integers(0, 50, (2, TOKENS)), parts_of(model.config)
    network = Network(model.config, model.weights, TOKENS, BLOCK)
    _, gradient = network.slope(ids, parts, [32, 32])
    choices: list[tuple[np.ndarray, np.ndarray, np.ndarray]] = []
    choose = gradients.choose

    def noted(scores: np.ndarray, keep: int) -> tuple[np.ndarray, np.ndarray]:
        choices.append((scores, *choose(scores, keep)))
        return choices[-1][1:]

    monkeypatch.setattr(gradients, "choose", noted)
    network.logits(ids, parts, [32, 32])
    direction = {name: rng.standard_normal(array.shape) for name, array in gradient[layer].items()}
    slope = sum((gradient[layer][name] * along).sum() for name, along in direction.items())

    def loss(step: float) -> float:
        turn = iter(range(2))

        def held(scores: np.ndarray, keep: int) -> tuple[np.ndarray, np.ndarray]:
            at = next(turn)
            was, mask, cut = choices[at]
            if at != layer:
                return mask, cut
            unit = 0.3 * np.abs(was - cut).mean(axis=1, keepdims=True)
            unit += unit == 0  # no unit of the predictor is open
            chance = 1 / (1 + np.exp((cut - was) / unit))
            near = chance * (1 - chance)
            more = step * direction["keep"] * near / near.sum(axis=1, keepdims=True)
            return mask + near / unit * (scores - was) + more, cut

        monkeypatch.setattr(gradients, "choose", held)
        one = parts[layer]
        moved = {
            name: array + step * direction[name]
            for name, array in {**vars(one.predictor), **vars(one.compensator)}.items()
        }
        c1, c2 = moved.pop("c1"), moved.pop("c2")
        there = [*parts]
        there[layer] = replace(one, predictor=Predictor(**moved), compensator=Compensator(c1, c2))
        return network.divergence(ids, there, [32, 32])[0]

    assert slope == pytest.approx((loss(1e-5) - loss(-1e-5)) / 2e-5, rel=1e-4, abs=1e-7)


def test_torch_gives_the_same_slope() -> None:
    """Where torch is: on its processor, since a GPU is not everywhere."""
    pytest.importorskip("torch")
    model = reference.toy_model(windows=(None, 24))
    parts, ids = parts_of(model.config), np.random.default_rng(3).integers(0, 50, (3, TOKENS))
    plain, torch = (Network(model.config, model.weights, TOKENS, BLOCK, device) for device in (None, "cpu"))
    loss, gradient = plain.slope(ids, parts, [32, 20])
    there = [
        FastForwardLayer(
            Predictor(*map(torch.to_array, vars(part.predictor).values())),
            Compensator(*map(torch.to_array, vars(part.compensator).values())),
            part.density,
        )
        for part in parts
    ]
    other, same = torch.slope(ids, there, [32, 20])
    assert float(other) == pytest.approx(float(loss), rel=1e-9)
    for one, two in zip(gradient, same, strict=True):
        for name, array in one.items():
            np.testing.assert_allclose(torch.to_numpy(two[name]), array, rtol=1e-6, atol=1e-10, err_msg=name)


@pytest.fixture
def task() -> tuple[Any, ...]:
    model = reference.toy_model()
    prompts = np.random.default_rng(2).integers(0, 50, (12, TOKENS))
    return Network(model.config, model.weights, TOKENS, BLOCK), parts_of(model.config), prompts[:9], prompts[9:]


def test_tuning_lowers_the_divergence_and_goes_on(task: tuple[Any, ...], tmp_path: Path) -> None:
    tuning = Tuning(40 * 4 * TOKENS, prompts=4, rate=0.03)
    begun = [vars(part.predictor)["w2"].copy() for part in task[1]]
    tuned, losses = tune(*task, tmp_path, tuning=tuning, seed=0)
    assert min(losses) < 0.8 * losses[0]
    network, parts, _, held = task
    densities = [part.density for part in tuned]
    assert np.mean(densities) == pytest.approx(0.5)
    assert densities != [0.5, 0.5]
    now = network.divergence(held, tuned, [round(64 * b) for b in densities])[0]
    assert now == pytest.approx(min(losses), rel=1e-9)  # the best of what it looked at
    for part, was in zip(parts, begun, strict=True):
        np.testing.assert_array_equal(part.predictor.w2, was)  # what it was given stays

    def stop(done: int, total: int, loss: float) -> None:
        if done >= total // 2:
            raise KeyboardInterrupt

    (tmp_path / "again").mkdir()
    with pytest.raises(KeyboardInterrupt):
        tune(*task, tmp_path / "again", tuning=tuning, seed=0, progress=stop)
    calls: list[int] = []
    again, same = tune(
        *task, tmp_path / "again", tuning=tuning, seed=0, progress=lambda done, total, loss: calls.append(done)
    )
    assert calls[0] > 8 * 4 * TOKENS  # it did not begin at the beginning
    assert same == losses
    assert [part.density for part in again] == densities
    for one, other in zip(tuned, again, strict=True):
        np.testing.assert_array_equal(one.compensator.c1, other.compensator.c1)  # type: ignore[union-attr]
        np.testing.assert_array_equal(one.predictor.w1, other.predictor.w1)


def test_what_is_looked_at_is_the_average_of_the_steps(
    task: tuple[Any, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Step i of 20 weighs i (i + 1) … (i + 7), and it is arrays that are averaged, not losses."""
    noted: list[list[np.ndarray]] = []

    class Noting(Adam):
        def step(self, *given: Any) -> None:
            super().step(*given)
            noted.append([array.copy() for array in self.arrays])

    monkeypatch.setattr(tuning_module, "Adam", Noting)
    monkeypatch.setattr(tuning_module, "DENSITY_RATE", 0.0)
    _, losses = tune(*task, tmp_path, tuning=Tuning(20 * 4 * TOKENS, prompts=4, rate=0.03), seed=0)
    assert len(noted) == 20
    weights = np.array([float(np.prod(np.arange(i, i + 8.0))) for i in range(1, 21)])
    network, parts, _, held = task
    mean = [
        sum(w * one for w, one in zip(weights, each, strict=True)) / weights.sum() for each in zip(*noted, strict=True)
    ]
    there = [
        FastForwardLayer(Predictor(*mean[at : at + 3]), Compensator(*mean[at + 3 : at + 5]), 0.5)
        for at in range(0, len(mean), 5)
    ]
    assert len(there) == len(parts)
    assert losses[-1] == pytest.approx(network.divergence(held, there, [32, 32])[0], rel=1e-9)


def test_predictors_may_be_left_as_they_are(task: tuple[Any, ...], tmp_path: Path) -> None:
    tuned, losses = tune(
        *task, tmp_path, tuning=Tuning(40 * 4 * TOKENS, prompts=4, rate=0.03, predictors=False), seed=0
    )
    assert min(losses) < losses[0]
    for one, other in zip(task[1], tuned, strict=True):
        np.testing.assert_array_equal(one.predictor.w1, other.predictor.w1)
        assert not np.array_equal(one.compensator.c1, other.compensator.c1)
