"""`fastforward`: from a checkpoint and text to one file of trained weights, through a folder that remembers every step.

WORK/run.json           what the run was asked for: another run must ask for the same to go on with it
WORK/inputs …           what `activations` recorded
WORK/damage.json        what `damage` measured
WORK/layers/NNN.*       what was trained, layer by layer
WORK/tuning.*           what `tune` has reached
OUT                     written last, whole, and WORK is then deleted
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

import joblib
import numpy as np
from threadpoolctl import threadpool_limits

import accel
from loaders import Checkpoint, load_checkpoint
from loaders.catalogue import find
from loaders.fastforward import fingerprint, save_fastforward
from loaders.tensors import TensorFile, write_tensors
from reference import Compensator, FastForwardLayer, FastForwardWeights, Model, Predictor, layer_densities
from reference.checks import one_of, require, whole
from reference.fastforward import FastForward, check_dense
from reference.fitting import densities_by_damage
from reference.neurons import check_density
from thresher.fit import activations, corpus, damage
from thresher.fit.layer import Layer, Recipe
from thresher.fit.network import Network, device_for
from thresher.fit.text import held_out, make_prompts, read_documents
from thresher.fit.tune import Tuning
from thresher.fit.tune import tune as tune_layers
from thresher.model import LanguageModel
from thresher.state import write_atomically
from thresher.trained import weights_for
from thresher.workers import check_backend, workers

FORMAT = "thresher-fit-layer-1"
SCHEDULES = ("attention", "damage")
# What weights that are tuned on keep of their metadata, and what stays beside the new.
OF_THE_LAYERS = ("recipe", "schedule", "importance", "held_out")
OF_THE_TUNING = ("tokens", "data_sha256", "tuning", "tuning_held_out", "start")
HELD = 16  # held-out prompts that the tuning looks at, where a tenth of the text has so many
SPARE = 1 << 28  # bytes that must stay free beside the recorded inputs


@dataclass(frozen=True)
class Progress:
    """What to call while it works; by default, nothing."""

    download: Callable[[int, int, str], None] = lambda done, total, what: None
    disk: Callable[[int, Path], None] = lambda size, folder: None  # before anything is recorded
    tokens: Callable[[int, int], None] = lambda done, total: None
    damage: Callable[[int, int], None] = lambda done, total: None  # layers whose damage is measured
    layer: Callable[[int, int, dict[str, Any]], None] = lambda done, total, told: None
    tuned: Callable[[int, int, float], None] = lambda done, total, divergence: None  # tokens


def fastforward(
    model: str | os.PathLike[str],
    data: Sequence[str | os.PathLike[str]] = (),
    *,
    out: str | os.PathLike[str],
    density: float = 0.5,
    tokens: int = 60_000,
    context: int = 2048,
    block: int = 128,
    steps: int = 400,
    schedule: str = "attention",
    tune: int = 0,
    tune_rate: float = Tuning.rate,
    tune_predictors: bool = Tuning.predictors,
    start: str | os.PathLike[str] | None = None,
    seed: int = 0,
    backend: str = "auto",
    jobs: int = -1,
    joblib_backend: str = "loky",
    progress: Progress | None = None,
) -> Path:
    """Train FastForward's predictors and compensators for a model, and write them to `out`, a safetensors file.

    model: as `thresher.load` takes it. data: text files, folders, JSON Lines; by default prose and plays from the
    package index. density: share of the neurons that is trained for. tokens: how much text is read, in prompts of
    `context` tokens, a tenth of which is held out. steps: of Adam, for each of three trainings in each layer. schedule:
    by what layers share the density, the reach of their "attention" as in the paper or the "damage" that is measured.
    tune: tokens of text, read again where it ends, that all layers are then tuned on together by what the whole model
    says (`thresher.fit.tune`): on a GPU where torch is installed. tune_rate, tune_predictors: as in its `Tuning`.
    start: weights of this model that are tuned on, from their own densities, instead of layers that are trained first;
    with the same data, tokens and seed, what was held out from them stays held out.
    backend: what runs the model. jobs: layers trained at a time; -1 for one per core. joblib_backend: loky, or dask or
    ray on a cluster whose machines share the folder of `out`.

    A run that is killed goes on where it was when it is started again, and the same seed gives the same file. Raises
    ValueError for text that is too short, for a start that belongs to another model or is not to be tuned, and for an
    unfinished run with other settings; OSError for a full disk.
    """
    check_density(density)
    for name, value in {"block": block, "steps": steps, "tokens": tokens}.items():
        whole(name, value)
    whole("tune", tune, least=0)
    whole("context", context, least=3 * block)
    require(context % block == 0, f"context: got {context}, wanted a multiple of the block, {block}")
    one_of("schedule", schedule, SCHEDULES)
    check_backend(joblib_backend)
    told, out = progress or Progress(), Path(out)
    checkpoint = load_checkpoint(find(os.fspath(model)))
    check_dense(checkpoint.config)
    positions = checkpoint.config.max_positions
    require(context <= positions, f"context: got {context}, wanted at most the model's {positions} positions")
    base = fingerprint(checkpoint.source)
    begun = None if start is None else _started(start, checkpoint, base, tune)
    documents = read_documents(data) if data else corpus.documents(told.download)
    texts = make_prompts(documents, checkpoint.tokenizer, tokens=max(tokens, tune), context=context, seed=seed)
    prompts = texts[: max(2, tokens // context)]
    tuning = Tuning(tune, rate=tune_rate, predictors=tune_predictors)
    recipe = Recipe(density=density, block=block, steps=steps, seed=seed)
    asked = {
        "base_sha256": base,
        "data": " ".join(Path(path).name for path in data) or f"{corpus.PROSE} {corpus.PLAYS}",
        "data_sha256": hashlib.sha256(texts.tobytes()).hexdigest(),
        "tokens": str(prompts.size),
        "context": str(context),
        "recipe": json.dumps(asdict(recipe)),
        "schedule": schedule,
        "tuning": json.dumps(asdict(tuning)),
        "start_sha256": "" if start is None else hashlib.sha256(Path(start).read_bytes()).hexdigest(),
    }
    work = out.with_name(f"{out.name}.work")
    _begin(work, asked)

    if begun is None:
        layers, learned = _layer_by_layer(
            checkpoint, prompts, work, recipe, schedule, backend, jobs, joblib_backend, told
        )
    else:
        layers = [*begun.layers]
        learned = {name: begun.metadata[name] for name in OF_THE_LAYERS if name in begun.metadata}
        learned["start"] = json.dumps({name: begun.metadata[name] for name in OF_THE_TUNING if name in begun.metadata})
    losses: list[float] = []
    if tune:
        network = Network(checkpoint.config, checkpoint.weights, context, block, device_for(backend))
        train, held = _for_tuning(texts, len(prompts))
        layers, losses = tune_layers(network, layers, train, held, work, tuning=tuning, seed=seed, progress=told.tuned)
    metadata = {
        "base_model": Path(os.fspath(model)).name,
        **asked,
        **learned,
        "tuning_held_out": json.dumps([round(loss, 5) for loss in losses]),
        "optimiser": "Adam, linear decay, best of ten looks by held-out loss",
        "version": version("thresher"),
    }
    write_atomically(out, lambda path: save_fastforward(path, FastForwardWeights(layers, metadata)))
    shutil.rmtree(work)
    return out


def _for_tuning(texts: np.ndarray, trained: int) -> tuple[np.ndarray, np.ndarray]:
    """The prompts to tune on and the ones to look at: those that were held out when the layers were trained on the
    first so many, and as many of the next as make HELD."""
    first, own = trained - held_out(trained), held_out(trained)
    behind = first + max(own, min(HELD, held_out(len(texts))))
    return np.concatenate([texts[:first], texts[behind:]]), texts[first:behind][:HELD]


def _started(start: str | os.PathLike[str], checkpoint: Checkpoint, base: str, tune: int) -> FastForwardWeights:
    """The weights to tune on, which must belong to the model of this fingerprint."""
    weights = weights_for(FastForward(weights=os.fspath(start)), base, checkpoint.source.path)
    assert weights is not None
    weights.check(checkpoint.config)
    require(tune > 0, f"tune: got 0 tokens, wanted some to tune {start} on")
    whole = all(layer.compensator is not None for layer in weights.layers)
    require(whole, f"{start}: got a layer without compensator, wanted one in each to tune on")
    return weights


def _layer_by_layer(
    checkpoint: Checkpoint,
    prompts: np.ndarray,
    work: Path,
    recipe: Recipe,
    schedule: str,
    backend: str,
    jobs: int,
    joblib_backend: str,
    told: Progress,
) -> tuple[list[FastForwardLayer], dict[str, str]]:
    """Inputs, densities, and every layer trained on its own; beside the layers, what the file says of them."""

    @cache
    def dense() -> Model:  # prepared where it is needed, and once
        return LanguageModel(checkpoint, accel.backend(backend)).model

    _record(dense, prompts, work, recipe.block, told)
    count, held = checkpoint.config.layers, prompts[-held_out(len(prompts)) :]
    if schedule == "damage":
        importance = damage.measure(
            dense, count, held, work, density=recipe.density, block=recipe.block, progress=told.damage
        )
        densities = densities_by_damage(importance, recipe.density)
    else:
        importance = activations.importance_of(work, count)
        densities = layer_densities(importance, recipe.density)
    fitted = _fit_layers(checkpoint, prompts, work, recipe, densities, jobs, joblib_backend, told)
    layers = [replace(layer, density=float(b)) for (_, layer), b in zip(fitted, densities, strict=True)]
    return layers, {
        "importance": json.dumps([round(float(s), 6) for s in importance]),
        "held_out": json.dumps([{key: one[key] for key in ("losses", "overlap")} for one, _ in fitted]),
    }


def _begin(work: Path, asked: dict[str, str]) -> None:
    """Make the folder, or go on with it. ValueError where its run was asked for something else."""
    work.mkdir(parents=True, exist_ok=True)
    note = work / "run.json"
    if not note.exists():
        write_atomically(note, lambda path: path.write_text(json.dumps(asked)))
        return
    found = json.loads(note.read_text())
    other = [name for name, value in asked.items() if found.get(name) != value]
    require(
        not other,
        f"{work}: got an unfinished run with another {', '.join(other)}, wanted the same, or the folder deleted",
    )


def _record(dense: Callable[[], Model], prompts: np.ndarray, work: Path, block: int, told: Progress) -> None:
    """Record what is not recorded yet; the disk that it takes is told, and checked, beforehand."""
    if activations.recorded(work) == len(prompts):
        return
    model = dense()
    size = activations.bytes_needed(model, prompts)
    told.disk(size, work)
    free = shutil.disk_usage(work).free + activations.bytes_held(work)
    if free < size + SPARE:
        raise OSError(f"{work}: got {free:,} bytes free, wanted {size + SPARE:,} for the inputs of all layers")
    done = 0

    def count(read: int) -> None:
        nonlocal done
        done += read
        told.tokens(done, prompts.size)

    activations.record(model, prompts, work, block=block, progress=count)


def _fit_layers(
    checkpoint: Checkpoint,
    prompts: np.ndarray,
    work: Path,
    recipe: Recipe,
    densities: np.ndarray,
    jobs: int,
    joblib_backend: str,
    told: Progress,
) -> list[tuple[dict[str, Any], FastForwardLayer]]:
    """Train the layers that are not trained yet, side by side, and read all of them."""
    config = checkpoint.config
    (work / "layers").mkdir(exist_ok=True)
    missing = [n for n in range(config.layers) if not _layer_file(work, n).exists()]
    if missing:
        with workers(joblib_backend, jobs) as parallel:
            for count, (n, told_of) in enumerate(
                parallel(_call(checkpoint, work, n, prompts.shape, recipe, float(densities[n])) for n in missing),
                config.layers - len(missing) + 1,
            ):
                told.layer(count, config.layers, {"layer": n, **told_of})
    return [_read_layer(_layer_file(work, n)) for n in range(config.layers)]


def _call(checkpoint: Checkpoint, work: Path, n: int, shape: tuple[int, ...], recipe: Recipe, density: float) -> Any:
    """The training of one layer, to be sent to a worker with the FFN that it needs."""
    w = checkpoint.weights.layers[n]
    ffn = tuple(np.asarray(matrix) for matrix in (w.w_gate, w.w_up, w.w_down))
    return joblib.delayed(_fit_layer)(work.absolute(), n, shape, ffn, checkpoint.config.activation, recipe, density)


def _fit_layer(
    work: Path,
    n: int,
    shape: tuple[int, ...],
    ffn: tuple[np.ndarray, ...],
    act: str,
    recipe: Recipe,
    density: float,
) -> tuple[int, dict[str, Any]]:
    """Train one layer and leave it in its file: in a process of its own, maybe on another machine."""
    # One thread, wherever: how a product is split among threads may change its last bits.
    with threadpool_limits(1):
        inputs = activations.inputs_of(work, n, *shape)
        held = held_out(shape[0])
        fitted = Layer(inputs, ffn, act, layer=n, held=held, recipe=recipe, density=density).fit()
    told = {"losses": fitted.losses, "overlap": fitted.overlap}
    arrays = {**vars(fitted.predictor), **vars(fitted.compensator)}
    metadata = {"format": FORMAT, "told": json.dumps(told)}
    write_atomically(_layer_file(work, n), lambda path: write_tensors(path, arrays, metadata))
    return n, told


def _read_layer(path: Path) -> tuple[dict[str, Any], FastForwardLayer]:
    file = TensorFile(path)
    arrays = file.arrays(FORMAT)
    predictor = Predictor(arrays["q_pred"], arrays["w1"], arrays["w2"])
    return json.loads(file.metadata["told"]), FastForwardLayer(predictor, Compensator(arrays["c1"], arrays["c2"]), 1.0)


def _layer_file(work: Path, n: int) -> Path:
    return work / "layers" / f"{n:03}.safetensors"
