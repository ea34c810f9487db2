"""The facts of a model, for `thresher info`."""

from __future__ import annotations

from math import prod
from typing import Any

import accel
from loaders import load_checkpoint
from loaders.catalogue import find
from reference.weights import EXPERTS, FFN


def describe(model: str, dtype: str = "float32") -> dict[str, Any]:
    """Family, shapes, parameters, bytes per part when loaded as `dtype`, cache bytes per token, positions."""
    checkpoint = load_checkpoint(find(model), dtype=dtype, stored_experts=True)
    config, weights = checkpoint.config, checkpoint.weights
    parts: dict[str, list[Any]] = {"embedding": [weights.embedding], "attention": [], "ffn": [], "norms": []}
    if weights.output is not weights.embedding:
        parts["output"] = [weights.output]
    parts["norms"].append(weights.final_norm)
    for layer in weights.layers:
        for name, array in layer.alike().items():
            parts.setdefault(_part(name), []).append(array)
    windows = [window for window in config.windows if window is not None]
    return {
        "path": str(checkpoint.path),
        "family": config.family,
        "layers": config.layers,
        "width": config.width,
        "heads": config.heads,
        "kv_heads": config.kv_heads,
        "head_dim": config.head_dim,
        "ffn_width": config.ffn_width,
        "vocab_size": config.vocab_size,
        "positions": config.max_positions,
        "tied": config.tied,
        "sliding_window_layers": len(windows),
        "window": max(windows, default=None),
        "parameters": sum(prod(array.shape) for arrays in parts.values() for array in arrays),
        "dtype": dtype,
        "gpu": accel.gpu(),
        "cache_bytes_per_token": config.cache_bytes_per_token(weights.stored_cache.itemsize),
        "bytes": {part: sum(array.nbytes for array in arrays) for part, arrays in parts.items()},
    }


def _part(name: str) -> str:
    if name.endswith("norm"):
        return "norms"
    if name.startswith((EXPERTS, "router")):
        return "experts"
    return "ffn" if name in FFN else "attention"
