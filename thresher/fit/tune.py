"""Tuning from end to end: all predictors and compensators together, by how far the model's next token moves.

    L = mean over tokens of KL(p ‖ q),   p the next token's distribution of the dense model, q that of the sparse one

The layers' own losses know neither which errors matter to the model nor that a layer is given what the sparse layers
below it leave. Here the gradient comes back through the whole model (`network`), to all parts at once. Each step draws
a density, so that one set of weights serves all of them, and moves neurons to the layers where one more is worth more.
Neurons that pass the cut make the loss rough, so what is looked at and kept is the average of the latest steps.

WORK/tuning.safetensors     the parts, their average, Adam's two moments and the densities at the last look
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from loaders.tensors import TensorFile, write_tensors
from reference import Compensator, FastForwardLayer, Predictor, layer_densities
from reference.fitting import Adam, average_in, share_out
from reference.neurons import kept_neurons
from thresher.fit.network import Network
from thresher.state import write_atomically

ARRAYS = ("q_pred", "w1", "w2", "c1", "c2")
FORMAT = "thresher-fit-tuning-3"
LOOKS = 20  # at the held-out divergence, or at every step where they are fewer
DENSITY_RATE = 0.57  # how far a layer's density moves in a step, as a share of the rate
WARM = 20  # the rate rises along 1 / WARM of the steps: at first Adam's second moment knows little


@dataclass(frozen=True)
class Tuning:
    """How the layers are tuned together. All is chosen.

    tokens: read, again from the start where the text ends. prompts: of a step of Adam. rate: of Adam, as a share of
    each array's own size (root mean square), which rises at first and then falls to zero. predictors: whether they are
    tuned, or compensators alone.
    """

    tokens: int
    prompts: int = 6
    rate: float = 0.007
    predictors: bool = True


def tune(
    network: Network,
    layers: Sequence[FastForwardLayer],
    train: np.ndarray,
    held: np.ndarray,
    work: Path,
    *,
    tuning: Tuning,
    seed: int,
    progress: Callable[[int, int, float], None] | None = None,
) -> tuple[list[FastForwardLayer], list[float]]:
    """The layers, tuned on prompts (P, T): their average at the best look at held-out prompts (P', T), with the
    densities of that moment, whose mean stays, and the divergence at every look.

    Each step draws an overall density from the layers' mean b up to (1 + b) / 2, and the layers share it as in use.
    What is done lies in WORK/tuning.safetensors after every look, from where a run that was killed goes on. `progress`
    is called with tokens done, tokens in all, and the last held-out divergence.
    """
    names = [name for name in ARRAYS if tuning.predictors or name.startswith("c")]
    per_step = tuning.prompts * train.shape[1]
    steps = max(1, tuning.tokens // per_step)
    fixed = [{**vars(layer.predictor), **vars(layer.compensator)} for layer in layers]
    arrays = [network.to_array(np.array(one[name], network.dtype)) for one in fixed for name in names]
    sizes = [float((array * array).mean()) ** 0.5 for array in arrays]
    adam, file = Adam(arrays, eps=1e-12, by_array=True), work / "tuning.safetensors"  # some gradients are below 1e-8
    averages = [array * 1 for array in arrays]
    densities = np.array([layer.density for layer in layers], np.float64)
    worth, least = densities * 0, float(densities.mean())

    def parts(tuned: Sequence[Any]) -> list[FastForwardLayer]:
        every = [{name: network.to_array(np.asarray(one[name], network.dtype)) for name in ARRAYS} for one in fixed]
        for place, array in enumerate(tuned):
            every[place // len(names)][names[place % len(names)]] = array
        return [_layer(one, least) for one in every]  # the network is told how many neurons to keep

    def keep(density: float) -> list[int]:
        return [kept_neurons(float(b), network.config.ffn_width) for b in layer_densities(densities, density)]

    def order(p: int) -> int:
        pass_, at = divmod(p, len(train))
        return int(np.random.default_rng([seed, pass_]).permutation(len(train))[at])

    now, averaged = parts(arrays), parts(averages)  # these arrays are changed in place
    shared = {"densities": densities, "worth": worth, "best_densities": densities.copy()}  # changed in place too
    losses, best, done = _resume(file, adam, averages, shared, network) if file.exists() else ([], arrays, 0)
    best = [network.to_numpy(array) for array in best]
    looks = {steps * (look + 1) // LOOKS for look in range(LOOKS)}
    if not losses:
        losses.append(_held_loss(network, held, averaged, keep(least)))
    for step in range(done, steps):
        density = np.random.default_rng([seed, step]).uniform(least, (1 + least) / 2)
        ids = train[[order(p) for p in range(step * tuning.prompts, (step + 1) * tuning.prompts)]]
        total: list[Any] = [array * 0 for array in arrays]
        found = densities * 0
        for some in _split(ids, network.together):
            _, gradient = network.slope(some, now, keep(density))
            for place in range(len(total)):
                total[place] += gradient[place // len(names)][names[place % len(names)]] * (len(some) / len(ids))
            found -= [float(one["keep"]) * (len(some) / len(ids)) for one in gradient]
        rate = tuning.rate * min((step + 1) / steps * WARM, 1 - step / steps)
        adam.step(total, [rate * size for size in sizes])
        average_in(averages, arrays, step + 1)
        worth += (0.1 if step else 1) * (found - worth)
        densities[:] = share_out(densities, worth, rate * DENSITY_RATE)
        if step + 1 in looks:
            losses.append(_held_loss(network, held, averaged, keep(least)))
            if losses[-1] == min(losses):
                best = [network.to_numpy(array) for array in averages]
                shared["best_densities"][:] = densities
            _save(file, adam, averages, shared, network, best, losses, step + 1)
        if progress is not None:
            progress((step + 1) * per_step, steps * per_step, losses[-1])
    for place, array in enumerate(best):
        fixed[place // len(names)][names[place % len(names)]] = array
    return [_layer(one, float(b)) for one, b in zip(fixed, shared["best_densities"], strict=True)], losses


def _layer(arrays: dict[str, Any], density: float) -> FastForwardLayer:
    return FastForwardLayer(
        Predictor(*(arrays[name] for name in ("q_pred", "w1", "w2"))), Compensator(arrays["c1"], arrays["c2"]), density
    )


def _held_loss(network: Network, held: np.ndarray, parts: Sequence[Any], keep: Sequence[int]) -> float:
    """The mean divergence over held-out prompts."""
    found = [float(network.divergence(ids, parts, keep)[0]) * len(ids) for ids in _split(held, network.together)]
    return sum(found) / len(held)


def _split(prompts: np.ndarray, most: int) -> list[np.ndarray]:
    """Prompts (P, T) in parts of at most so many."""
    return [prompts[at : at + most] for at in range(0, len(prompts), most)]


def _kept(adam: Adam, averages: Sequence[Any]) -> dict[str, Sequence[Any]]:
    """What a run goes on with, by the name it has in the file."""
    return {"now": adam.arrays, "average": averages, "first": adam.first, "second": adam.second}


def _save(
    file: Path,
    adam: Adam,
    averages: Sequence[Any],
    shared: dict[str, np.ndarray],
    network: Network,
    best: Sequence[np.ndarray],
    losses: list[float],
    done: int,
) -> None:
    kinds = {**_kept(adam, averages), "best": best}
    arrays = {f"{kind}.{n}": network.to_numpy(one) for kind, each in kinds.items() for n, one in enumerate(each)}
    arrays |= shared
    told = {"format": FORMAT, "losses": json.dumps(losses), "done": str(done)}
    write_atomically(file, lambda path: write_tensors(path, arrays, told))


def _resume(
    file: Path, adam: Adam, averages: Sequence[Any], shared: dict[str, np.ndarray], network: Network
) -> tuple[list[float], list[np.ndarray], int]:
    """Fill what it goes on with from the file: the losses so far, the best arrays, and how many steps are done."""
    found = TensorFile(file)
    arrays = found.arrays(FORMAT)
    for kind, each in _kept(adam, averages).items():
        for n, one in enumerate(each):
            one[...] = network.to_array(np.asarray(arrays[f"{kind}.{n}"]))
    for name, array in shared.items():
        array[:] = arrays[name]
    adam.steps = int(found.metadata["done"])
    best = [np.array(arrays[f"best.{n}"]) for n in range(len(adam.arrays))]
    return json.loads(found.metadata["losses"]), best, adam.steps
