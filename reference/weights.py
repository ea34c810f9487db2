"""The arrays of a model under the names that the forward pass uses, and the shapes that they must have.

Layouts are settled when a checkpoint is loaded, so that the forward pass has one convention: matrices are (out, in),
norm weights are plain factors (a family whose file stores w for 1 + w gets 1 + w here), and an optional weight is None
where the family has none.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from math import prod
from typing import Any

from reference.checks import require
from reference.config import ModelConfig
from reference.experts import Expert, Experts, StoredExperts
from reference.parts import Latent

EXPERTS = "experts."


@dataclass(frozen=True)
class LayerWeights:
    """One block. H·D is heads · head_dim, KV·D is kv_heads · head_dim.

    A mixture of experts has a router and its experts; its w_gate, w_up and w_down are those of the expert that all
    tokens share, where it has one.
    """

    w_q: Any  # (H·D, E)   with latent attention (reference/latent.py) these three read a latent
    w_k: Any  # (KV·D, E)
    w_v: Any  # (KV·D, E)
    w_o: Any  # (E, H·D)
    w_gate: Any = None  # (F, E)
    w_up: Any = None  # (F, E)
    w_down: Any = None  # (E, F)
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
    router: Any = None  # (X, E)
    router_bias: Any = None  # (X,)   added to scores where experts are chosen
    experts: Experts | None = None  # X of them
    w_kv_down: Any = None  # (rank, E)   of latent attention, from here on
    kv_down_norm: Any = None  # (rank,)
    w_k_rotated: Any = None  # (R, E)   R the rotated dimensions of a head
    w_q_down: Any = None  # (query rank, E)
    q_down_norm: Any = None  # (query rank,)
    w_q_rotated: Any = None  # (H·R, query rank or E)
    b_kv_down: Any = None  # (rank,)
    b_k_rotated: Any = None  # (R,)
    b_q_down: Any = None  # (query rank,)

    @classmethod
    def of(cls, arrays: Mapping[str, Any], others: Experts | None = None) -> LayerWeights:
        """The block of these arrays, named as `arrays` names them, and perhaps of experts that are not among them."""
        own, experts = {}, defaultdict[int, dict[str, Any]](dict)
        for name, array in arrays.items():
            if name.startswith(EXPERTS):
                number, _, matrix = name.removeprefix(EXPERTS).partition(".")
                experts[int(number)][matrix] = array
            else:
                own[name] = array
        listed = tuple(Expert(**experts[n]) for n in range(len(experts)))
        return cls(**own, experts=listed or others)

    @property
    def stored(self) -> StoredExperts | None:
        """The experts, where they are not in memory."""
        return self.experts if isinstance(self.experts, StoredExperts) else None

    def arrays(self) -> dict[str, Any]:
        """Every array of the block in memory by its name; those of expert 3 are called "experts.3.w_gate" and so on."""
        named = {f.name: getattr(self, f.name) for f in fields(self) if f.name != "experts"}
        named |= _named(() if self.stored or self.experts is None else self.experts)  # type: ignore[arg-type]
        return {name: array for name, array in named.items() if array is not None}

    def alike(self) -> dict[str, Any]:
        """`arrays`, and for experts that are not in memory arrays of their shapes."""
        stored = self.stored
        return self.arrays() | _named([stored.alike] * len(stored) if stored else ())


def _named(experts: Sequence[Expert]) -> dict[str, Any]:
    """The arrays of a layer's experts by their names."""
    each = enumerate(experts)
    return {f"{EXPERTS}{n}.{name}": array for n, expert in each for name, array in vars(expert).items()}


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
        """Bytes of all arrays in memory, or that come there when they are prepared; the embedding counts once where it
        is the output matrix too."""
        layers = [array for layer in self.layers for array in layer.arrays().values()]
        layers += [layer.stored for layer in self.layers if layer.stored and not layer.stored.stay]
        arrays = {id(array): array for array in (self.embedding, self.final_norm, self.output, *layers)}
        return sum(array.nbytes for array in arrays.values() if array is not None)


FFN = ("w_gate", "w_up", "w_down")
OPTIONAL = frozenset(f.name for f in fields(LayerWeights) if f.default is None) - {
    *FFN,
    *("router", "w_kv_down", "kv_down_norm", "w_k_rotated", "w_q_down", "q_down_norm", "w_q_rotated"),
}
USUAL = ("attention_norm", "ffn_norm")  # which most families have, and OLMo 2 has not
WITHOUT_LATENT = ("b_q", "b_k", "b_v", "q_norm", "k_norm")  # what latent attention has nothing like


def layer_shapes(config: ModelConfig, layer: int = 0) -> dict[str, tuple[int, ...]]:
    """Shape that every weight of a layer must have, optional ones included."""
    e, d, mixture = config.width, config.head_dim, config.mixture if config.is_mixture(layer) else None
    neurons = config.ffn_width if mixture is None else mixture.shared_width
    q, kv = config.heads * d, config.kv_heads * d
    shapes = {
        "attention_norm": (e,),
        "w_q": (q, e),
        "w_k": (kv, e),
        "w_v": (kv, e),
        "w_o": (e, q),
        "ffn_norm": (e,),
        **(ffn_shapes("", e, neurons) if neurons else {}),
        "b_q": (q,),
        "b_k": (kv,),
        "b_v": (kv,),
        "b_o": (e,),
        "q_norm": (q if config.joint_qk_norm else d,),
        "k_norm": (kv if config.joint_qk_norm else d,),
        "post_attention_norm": (e,),
        "post_ffn_norm": (e,),
    }
    if config.latent is not None:
        shapes = {name: shape for name, shape in shapes.items() if name not in WITHOUT_LATENT}
        shapes |= latent_shapes(config.latent, config.heads, e)
    if mixture is not None:
        shapes |= {"router": (mixture.experts, e), "router_bias": (mixture.experts,)}
        for n in range(mixture.experts):
            shapes |= ffn_shapes(f"experts.{n}.", e, mixture.width)
    return shapes


def latent_shapes(latent: Latent, heads: int, width: int) -> dict[str, tuple[int, ...]]:
    """The shapes of latent attention's weights before w_o. Rows of zeros in w_v fill D where values are narrower."""
    query = width if latent.query_rank is None else latent.query_rank
    shapes = {
        "w_kv_down": (latent.rank, width),
        "kv_down_norm": (latent.rank,),
        "w_k_rotated": (latent.rotated, width),
        "w_k": (heads * latent.unrotated, latent.rank),
        "w_v": (heads * latent.head_dim, latent.rank),
        "w_q": (heads * latent.unrotated, query),
        "w_q_rotated": (heads * latent.rotated, query),
        "b_kv_down": (latent.rank,),
        "b_k_rotated": (latent.rotated,),
    }
    if latent.query_rank is not None:
        shapes |= {"w_q_down": (query, width), "q_down_norm": (query,), "b_q_down": (query,)}
    return shapes


def parameters(config: ModelConfig) -> int:
    """The numbers that a model of this shape has been trained with. The usual norms count; other optional weights, of
    which a shape does not tell, and zeros that only fill do not."""
    shapes = [shape for name, shape in model_shapes(config).items() if not (config.tied and name == "output")]
    for n in range(config.layers):
        named = layer_shapes(config, n).items()
        shapes += [shape for name, shape in named if name not in OPTIONAL or name in USUAL]
    filled = 0
    if config.latent is not None:
        per_head = config.head_dim - config.latent.value_dim
        filled = config.layers * config.heads * per_head * (config.latent.rank + config.width)
    return sum(prod(shape) for shape in shapes) - filled


def ffn_shapes(prefix: str, width: int, neurons: int) -> dict[str, tuple[int, ...]]:
    """The shapes of one FFN's matrices, under names that begin with `prefix`."""
    return {prefix + name: (width, neurons) if name == "w_down" else (neurons, width) for name in FFN}


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
    outer = {name: getattr(weights, name) for name in model_shapes(config)}
    holders = [("", outer, model_shapes(config))]
    holders += [(f"layers.{n}.", layer.alike(), layer_shapes(config, n)) for n, layer in enumerate(weights.layers)]
    for prefix, arrays, shapes in holders:
        for name in {**shapes, **arrays}:
            array, wanted = arrays.get(name), shapes.get(name)
            got = None if array is None else tuple(array.shape)
            require(
                got == wanted or (got is None and name in OPTIONAL),
                f"{prefix}{name}: got {'none' if got is None else f'shape {got}'}, wanted {wanted or 'none'}",
            )
