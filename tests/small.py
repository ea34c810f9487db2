"""Small random models for the tests: real architectures, weights that fit in a cache line's worth of patience."""

from __future__ import annotations

from dataclasses import replace
from types import ModuleType

import numpy as np

import reference
from reference import LayerWeights, Model, ModelConfig, Rope, Weights
from reference.weights import layer_shapes, model_shapes


def small_config(
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
    **fields: object,
) -> ModelConfig:
    config = ModelConfig(
        family="llama",
        layers=layers,
        width=width,
        heads=heads,
        kv_heads=kv_heads,
        head_dim=head_dim,
        ffn_width=ffn_width,
        vocab_size=vocab_size,
        max_positions=max_positions,
        ropes=(Rope(10_000.0),) * layers,
        windows=(window,) * layers,
        attention_scale=head_dim**-0.5,
    )
    return replace(config, **fields)  # type: ignore[arg-type]


def random_weights(config: ModelConfig, *, seed: int = 0, dtype: str = "float64", biases: bool = False) -> Weights:
    """Weights that keep activations near 1; `biases` also draws the optional biases and q/k norms."""
    rng = np.random.default_rng(seed)

    def draw(name: str, shape: tuple[int, ...]) -> np.ndarray:
        if name.endswith("norm"):
            return (1 + 0.1 * rng.standard_normal(shape)).astype(dtype)
        return (rng.standard_normal(shape) / np.sqrt(shape[-1])).astype(dtype)

    optional = ("b_q", "b_k", "b_v", "q_norm", "k_norm") if biases else ()
    layers = tuple(
        LayerWeights(
            **{
                name: draw(name, shape)
                for name, shape in layer_shapes(config).items()
                if name.startswith("w_") or name in ("attention_norm", "ffn_norm", *optional)
            }
        )
        for _ in range(config.layers)
    )
    shapes = model_shapes(config)
    embedding = draw("embedding", shapes["embedding"])
    output = embedding if config.tied else draw("output", shapes["output"])
    return Weights(embedding, layers, draw("final_norm", shapes["final_norm"]), output)


def small_model(
    *, seed: int = 0, dtype: str = "float64", biases: bool = False, backend: ModuleType = reference, **fields: object
) -> Model:
    config = small_config(**fields)  # type: ignore[arg-type]
    return Model(config, random_weights(config, seed=seed, dtype=dtype, biases=biases), backend)
