"""The arrays of a model under the names that the forward pass uses, and the shapes that they must have.

Layouts are settled when a checkpoint is loaded, so that the forward pass has one convention: matrices are (out, in),
norm weights are plain factors (a family whose file stores w for 1 + w gets 1 + w here), and an optional weight is None
where the family has none.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

from reference.checks import require
from reference.config import ModelConfig


@dataclass(frozen=True)
class LayerWeights:
    """One block. H·D is heads · head_dim, KV·D is kv_heads · head_dim."""

    w_q: Any  # (H·D, E)
    w_k: Any  # (KV·D, E)
    w_v: Any  # (KV·D, E)
    w_o: Any  # (E, H·D)
    w_gate: Any  # (F, E)
    w_up: Any  # (F, E)
    w_down: Any  # (E, F)
    b_q: Any = None  # (H·D,)
    b_k: Any = None  # (KV·D,)
    b_v: Any = None  # (KV·D,)
    b_o: Any = None  # (E,)
    attention_norm: Any = None  # (E,)   norm of what attention reads
    q_norm: Any = None  # (D,)   norm of every query head before rotation, or (H·D,) of all of them together
    k_norm: Any = None  # (D,), or (KV·D,)
    post_attention_norm: Any = None  # (E,)   norm of the attention's output before the residual
    ffn_norm: Any = None  # (E,)   norm of what the FFN reads
    post_ffn_norm: Any = None  # (E,)   norm of the FFN's output before the residual


@dataclass(frozen=True)
class Weights:
    """A whole model: `output` is the embedding itself where the two are tied. Matrices are arrays, or `Int8`."""

    embedding: Any  # (V, E)
    layers: tuple[LayerWeights, ...]
    final_norm: Any  # (E,)
    output: Any  # (V, E)
    cache_dtype: Any = None  # what keys and values are stored in, where that is not the embedding's own

    @property
    def stored_cache(self) -> Any:
        """The dtype that keys and values are stored in."""
        return self.embedding.dtype if self.cache_dtype is None else self.cache_dtype

    @property
    def nbytes(self) -> int:
        """Bytes of all arrays; the embedding counts once where it is the output matrix too."""
        layers = (getattr(layer, field.name) for layer in self.layers for field in fields(layer))
        arrays = {id(array): array for array in (self.embedding, self.final_norm, self.output, *layers)}
        return sum(array.nbytes for array in arrays.values() if array is not None)


OPTIONAL = frozenset(f.name for f in fields(LayerWeights) if f.default is None)


def layer_shapes(config: ModelConfig) -> dict[str, tuple[int, ...]]:
    """Shape that every weight of a layer must have, optional ones included."""
    e, f, d = config.width, config.ffn_width, config.head_dim
    q, kv = config.heads * d, config.kv_heads * d
    return {
        "attention_norm": (e,),
        "w_q": (q, e),
        "w_k": (kv, e),
        "w_v": (kv, e),
        "w_o": (e, q),
        "ffn_norm": (e,),
        "w_gate": (f, e),
        "w_up": (f, e),
        "w_down": (e, f),
        "b_q": (q,),
        "b_k": (kv,),
        "b_v": (kv,),
        "b_o": (e,),
        "q_norm": (q if config.joint_qk_norm else d,),
        "k_norm": (kv if config.joint_qk_norm else d,),
        "post_attention_norm": (e,),
        "post_ffn_norm": (e,),
    }


def model_shapes(config: ModelConfig) -> dict[str, tuple[int, ...]]:
    """Shape that every weight outside the layers must have."""
    table = (config.vocab_size, config.width)
    return {"embedding": table, "final_norm": (config.width,), "output": table}


def check_weights(weights: Weights, config: ModelConfig) -> None:
    """Raise ValueError naming the first weight whose shape the config does not allow."""
    require(
        len(weights.layers) == config.layers,
        f"weights: got {len(weights.layers)} layers, wanted {config.layers}",
    )
    holders: list[tuple[str, Any, dict[str, tuple[int, ...]]]] = [("", weights, model_shapes(config))]
    holders += [(f"layers.{n}.", layer, layer_shapes(config)) for n, layer in enumerate(weights.layers)]
    for prefix, holder, shapes in holders:
        for name, wanted in shapes.items():
            array = getattr(holder, name)
            if array is None and name in OPTIONAL:
                continue
            got = None if array is None else tuple(array.shape)
            require(got == wanted, f"{prefix}{name}: got shape {got}, wanted {wanted}")
