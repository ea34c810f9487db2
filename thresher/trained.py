"""Trained FastForward weights for a model: from the file that the user names, or one that comes with the package."""

from __future__ import annotations

import os
from functools import cache
from importlib.resources import as_file, files
from pathlib import Path

from loaders.fastforward import fingerprint, load_fastforward
from loaders.source import Source
from loaders.tensors import TensorFile
from reference.checks import require
from reference.fastforward import FastForward
from reference.predictor import FastForwardWeights

SUFFIX = ".fastforward.safetensors"  # of the files in thresher/data


def weights_for(source: Source, ffn: FastForward) -> FastForwardWeights | None:
    """What `ffn` is to run with on this model, or None where it needs nothing trained.

    ValueError for a file that was trained for another model, and where there is none for this one.
    """
    needed = ffn.neurons == "predictor" or ffn.schedule == "layerwise"
    if ffn.weights is None and not needed:
        return None
    own = fingerprint(source)
    if ffn.weights is not None:
        path = os.path.abspath(str(ffn.weights))  # a saved state may move
        weights = load_fastforward(path)
        base = weights.metadata.get("base_sha256", own)  # a file of random weights has none
        require(
            base == own,
            f"{path}: got weights trained for {weights.metadata.get('base_model')}, wanted some for {source.path}",
        )
        return weights
    found = _packaged().get(own)
    require(
        found is not None,
        f"weights: got none, and none come along for {source.path}: train them with "
        f"`thresher fit fastforward {source.path} --out FILE`, and name the file with weights=FILE",
    )
    return load_fastforward(str(found))


@cache
def _packaged() -> dict[str, Path]:
    """The files that come with the package, by the fingerprint of their model."""
    with as_file(files("thresher") / "data") as folder:
        paths = sorted(folder.glob(f"*{SUFFIX}"))
        return {TensorFile(path).metadata["base_sha256"]: path for path in paths}
