"""Trained FastForward weights from their file: safetensors, beside the checkpoint that they were trained for.

Tensors `layers.{l}.q_pred`, `.w1`, `.w2`, `.density` and, with a compensator, `.c1`, `.c2`. The metadata say how the
file came to be; whether it fits a model is seen from the shapes when a policy with it is used.
"""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np

from loaders.tensors import TensorFile
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
