"""The tests' small models are the toy models of `reference`."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from reference import LayerWeights, Model
from reference.toy import random_weights
from reference.toy import toy_config as small_config
from reference.toy import toy_model as small_model

__all__ = ["random_weights", "small_config", "small_model", "with_norms"]


def with_norms(model: Model, before: bool) -> Model:
    """The model with norms after both halves of a block, and before them or not."""
    rng = np.random.default_rng(3)

    def normed(layer: LayerWeights) -> LayerWeights:
        after = {name: rng.standard_normal(model.config.width) for name in ("post_attention_norm", "post_ffn_norm")}
        return replace(layer, **after, **({} if before else {"attention_norm": None, "ffn_norm": None}))

    layers = tuple(normed(layer) for layer in model.weights.layers)
    return replace(model, weights=replace(model.weights, layers=layers))
