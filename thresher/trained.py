"""Trained FastForward weights for a model: from the file that the user names, or one that comes with the package."""

from __future__ import annotations

import os
from dataclasses import replace
from functools import cache
from importlib.resources import as_file, files

from loaders.fastforward import load_fastforward
from loaders.tensors import TensorFile
from reference.checks import require
from reference.fastforward import FastForward
from reference.predictor import FastForwardWeights

SUFFIX = ".fastforward.safetensors"  # of the files in thresher/data


def weights_for(ffn: FastForward, fingerprint: str, model: object) -> FastForwardWeights | None:
    """What `ffn` is to run with on the model of this fingerprint, or None where it needs nothing trained.

    ValueError for weights that were trained for another model, and where there are none for this one.
    """
    weights = ffn.weights
    if weights is None:
        needed = ffn.neurons == "predictor" or ffn.schedule == "layerwise"
        return _packaged(fingerprint, str(model)) if needed else None
    if isinstance(weights, str):
        weights = load_fastforward(os.path.abspath(weights))  # a saved state may move
    told = weights.metadata
    require(
        told.get("base_sha256", fingerprint) == fingerprint,
        f"{told.get('path', 'weights')}: got weights trained for {told.get('base_model')}, wanted some for {model}",
    )
    return weights


@cache
def _packaged(fingerprint: str, model: str) -> FastForwardWeights:
    """Those that come with the package. Their path is empty: a saved state finds them wherever it is taken up."""
    with as_file(files("thresher") / "data") as folder:
        for file in sorted(folder.glob(f"*{SUFFIX}")):
            if TensorFile(file).metadata.get("base_sha256") == fingerprint:
                weights = load_fastforward(file)
                return replace(weights, metadata={**weights.metadata, "path": ""})
    raise ValueError(
        f"weights: got none, and none come along for {model}: train them with "
        f"`thresher fit fastforward {model} --out FILE`, and name the file with weights=FILE"
    )
