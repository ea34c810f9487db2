"""Trained FastForward weights from their file: safetensors, beside the checkpoint that they were trained for.

Tensors `layers.{l}.q_pred`, `.w1`, `.w2`, `.density` and, with a compensator, `.c1`, `.c2`. The metadata say how the
file came to be. Whether it fits a model is seen when a policy with it is used: from the shapes, and from the
fingerprint of the model that it was trained for.
"""

from __future__ import annotations

import hashlib
import re
from pathlib import Path

import numpy as np

from loaders.source import Source
from loaders.tensors import TensorFile, write_tensors
from reference.checks import require
from reference.predictor import Compensator, FastForwardLayer, FastForwardWeights, Predictor

FORMAT = "thresher-fastforward-1"


def load_fastforward(path: str | Path) -> FastForwardWeights:
    """Predictors and compensators of all layers. ValueError naming file and tensor for what is not such a file."""
    file = TensorFile(Path(path))
    arrays = file.arrays(FORMAT)
    numbers = [int(match[1]) for name in arrays if (match := re.fullmatch(r"layers\.(\d+)\..+", name))]
    require(bool(numbers), f"{path}: got no layers, wanted layers.0 and so on")

    def take(layer: int, name: str) -> np.ndarray:
        full = f"layers.{layer}.{name}"
        require(full in arrays, f"{path}: tensor {full!r}: got no such tensor, wanted it here")
        require(bool(np.isfinite(arrays[full]).all()), f"{path}: tensor {full!r}: got NaN or infinity, wanted numbers")
        return arrays[full]

    layers = [
        FastForwardLayer(
            predictor=Predictor(take(n, "q_pred"), take(n, "w1"), take(n, "w2")),
            compensator=Compensator(take(n, "c1"), take(n, "c2")) if f"layers.{n}.c1" in arrays else None,
            density=float(take(n, "density")),
        )
        for n in range(max(numbers) + 1)
    ]
    return FastForwardWeights(layers, {**file.metadata, "path": str(path)})


def save_fastforward(path: Path, weights: FastForwardWeights) -> None:
    """Write what `load_fastforward` reads, matrices as float16: the same weights make the same bytes.

    ValueError naming the tensor whose numbers float16 cannot hold; OSError where the disk is full.
    """
    arrays: dict[str, np.ndarray] = {}
    for n, layer in enumerate(weights.layers):
        parts = {**vars(layer.predictor), **(vars(layer.compensator) if layer.compensator else {})}
        for name, array in parts.items():
            peak = float(np.abs(array).max(initial=0))
            require(
                peak <= float(np.finfo(np.float16).max),
                f"layers.{n}.{name}: got {peak:g}, wanted what float16 can hold",
            )
            arrays[f"layers.{n}.{name}"] = array.astype(np.float16)
        arrays[f"layers.{n}.density"] = np.array(layer.density, np.float32)
    write_tensors(path, arrays, {"format": FORMAT, **weights.metadata})


def fingerprint(source: Source) -> str:
    """What a checkpoint is known by, whatever format and dtype it is stored in: sha256 over the names, shapes and
    float32 values of its vectors. Training moves every norm, so that no two models share all of theirs."""
    digest = hashlib.sha256()
    for name in sorted(source.names()):
        if len(source.shape(name)) == 1:
            digest.update(f"{name} {source.shape(name)} ".encode())
            digest.update(np.ascontiguousarray(source.tensor(name), np.float32).tobytes())
    return digest.hexdigest()
