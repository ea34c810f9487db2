"""Small models with random weights: the real architecture in a size at which everything can be looked at.

A toy model answers nothing sensible, since nothing was trained. It shows shapes, caches and what a method chooses, and
it runs in milliseconds. The chapters in docs/ and the tests use it.
"""

from __future__ import annotations

import sys
from types import ModuleType
from typing import Any

import numpy as np

from reference.config import ModelConfig, Rope
from reference.model import Model
from reference.weights import OPTIONAL, USUAL, LayerWeights, Weights, layer_shapes, model_shapes

BIASES = ("b_q", "b_k", "b_v", "q_norm", "k_norm", "router_bias", "b_kv_down", "b_k_rotated", "b_q_down")


def toy_model(
    *,
    seed: int = 0,
    dtype: str = "float64",
    biases: bool = False,
    backend: ModuleType | None = None,
    **fields: Any,
) -> Model:
    """A model whose weights are drawn with `seed`: 2 layers, V = 50, E = 32, H = 4, KV = 2, D = 8, F = 64.

    `fields` are those of `toy_config` and change its shape; `dtype` and `biases` are those of `random_weights`. It
    computes with `backend`, by default `reference` itself.
    """
    backend = backend or sys.modules["reference"]  # the package itself, which a file inside it does not import
    config = toy_config(**fields)
    return Model(config, random_weights(config, seed=seed, dtype=dtype, biases=biases), backend)


def toy_config(
    *,
    layers: int = 2,
    width: int = 32,
    heads: int = 4,
    kv_heads: int = 2,
    head_dim: int = 8,
    ffn_width: int = 64,
    vocab_size: int = 50,
    max_positions: int = 4096,
    window: int | None = None,
    **fields: Any,
) -> ModelConfig:
    """The shape of a small Llama; `fields` replace any other field of `ModelConfig`. ValueError as there."""
    shape: dict[str, Any] = {
        "family": "llama",
        "layers": layers,
        "width": width,
        "heads": heads,
        "kv_heads": kv_heads,
        "head_dim": head_dim,
        "ffn_width": ffn_width,
        "vocab_size": vocab_size,
        "max_positions": max_positions,
        "ropes": (Rope(10_000.0),) * layers,
        "windows": (window,) * layers,
        "attention_scale": head_dim**-0.5,
    }
    return ModelConfig(**(shape | fields))


def random_weights(config: ModelConfig, *, seed: int = 0, dtype: str = "float64", biases: bool = False) -> Weights:
    """Weights that keep activations near 1; `biases` also draws the optional biases and q/k norms.

    A matrix (out, in) is normal with variance 1/in, so that a linear map keeps the size of what it is given.
    """
    rng = np.random.default_rng(seed)

    def draw(name: str, shape: tuple[int, ...]) -> np.ndarray:
        if name.endswith("norm"):
            return (1 + 0.1 * rng.standard_normal(shape)).astype(dtype)
        return (rng.standard_normal(shape) / np.sqrt(shape[-1])).astype(dtype)

    optional = (*USUAL, *BIASES) if biases else USUAL
    layers = tuple(
        LayerWeights.of(
            {
                name: draw(name, shape)
                for name, shape in layer_shapes(config, n).items()
                if name not in OPTIONAL or name in optional
            }
        )
        for n in range(config.layers)
    )
    shapes = model_shapes(config)
    embedding = draw("embedding", shapes["embedding"])
    output = embedding if config.tied else draw("output", shapes["output"])
    return Weights(embedding, layers, draw("final_norm", shapes["final_norm"]), output)
