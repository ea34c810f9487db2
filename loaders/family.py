"""What a family of checkpoints is: how its config becomes a ModelConfig, and which tensor is which weight.

Most families are Llama with a few differences, so a `Family` holds the differences: the values that its config may
leave out, the fields of ModelConfig that come out otherwise, and tensor names. One file in `loaders/families` defines
one family.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from loaders.rope import positions_reach, read_rope
from loaders.settings import Settings
from reference import ModelConfig, Rope
from reference.checks import require
from reference.weights import FFN, layer_shapes

ACTIVATIONS = {"silu": "silu", "swish": "silu", "gelu_pytorch_tanh": "gelu_tanh"}
LAYER_TYPES = {"full_attention": "full", "sliding_attention": "sliding"}

CAPS = ("attn_logit_softcapping", "final_logit_softcapping")

# Most families have no such part. A config that turns one on is refused, since leaving it out would be another model.
UNSUPPORTED = (
    *CAPS,
    "mlp_bias",
    "use_bidirectional_attention",
    "quantization_config",
    "num_experts",
    "num_local_experts",
)

LLAMA_NAMES = {
    "attention_norm": "input_layernorm.weight",
    "w_q": "self_attn.q_proj.weight",
    "w_k": "self_attn.k_proj.weight",
    "w_v": "self_attn.v_proj.weight",
    "w_o": "self_attn.o_proj.weight",
    "ffn_norm": "post_attention_layernorm.weight",
    "w_gate": "mlp.gate_proj.weight",
    "w_up": "mlp.up_proj.weight",
    "w_down": "mlp.down_proj.weight",
}
QKV_BIASES = {"b_q": "self_attn.q_proj.bias", "b_k": "self_attn.k_proj.bias", "b_v": "self_attn.v_proj.bias"}
BIASES = {**QKV_BIASES, "b_o": "self_attn.o_proj.bias"}
EXPERT_NAMES = {  # of a mixture, {} for the expert's number
    "router": "mlp.gate.weight",
    "experts.{}.w_gate": "mlp.experts.{}.gate_proj.weight",
    "experts.{}.w_up": "mlp.experts.{}.up_proj.weight",
    "experts.{}.w_down": "mlp.experts.{}.down_proj.weight",
}
QK_NORMS = {"q_norm": "self_attn.q_norm.weight", "k_norm": "self_attn.k_norm.weight"}

EMBEDDING, FINAL_NORM = "embed_tokens.weight", "norm.weight"
BESIDE = ("rotary_emb.inv_freq",)  # ends of tensors that older checkpoints stored and that are computed anew
MOST_LAYERS = 100_000  # far beyond any model, and no danger to memory before the file's tensors have been counted

# For these keys null is a value: no window, as many as heads, the width over the heads, no latent, no cap. For all
# others it means left out.
NULL_IS_A_VALUE = frozenset({"sliding_window", "num_key_value_heads", "head_dim", "q_lora_rank", *CAPS})

# What Hugging Face assumes where a config.json is silent, unless the family says otherwise.
DEFAULTS = {"hidden_act": "silu", "rms_norm_eps": 1e-6, "rope_theta": 10_000.0, "tie_word_embeddings": False}


MODEL = ("model.", "lm_head.weight")
BARE = ("", "lm_head.weight")  # as saved without the head's class


@dataclass(frozen=True)
class Made:
    """A weight that is a part of a file's tensor, or another arrangement of it: the tensor below "layers.N.", the shape
    that it must have, and what is taken of it."""

    tensor: str
    shape: tuple[int, ...]
    take: Callable[[np.ndarray], np.ndarray]


def nothing_made(settings: Settings) -> Mapping[str, Made]:
    """Of families whose tensors are weights as they stand."""
    return {}


def no_differences(settings: Settings) -> dict[str, Any]:
    """Llama's own answer to what differs from Llama."""
    return {}


def whole_config(config: Settings) -> Mapping[str, Any]:
    """The config of a model that only reads text: all of it."""
    return config.values


@dataclass(frozen=True)
class Family:
    """One `model_type`.

    `defaults` are config values that a file may leave out; `differences` gives the ModelConfig fields that are not as
    in Llama; `names` maps weights of a layer to tensors below "layers.N.", where several weights of one tensor are its
    rows in that order, and a config's `attention_bias` adds `biases`; norm weights are stored as w for `norm_offset` +
    w; `bodies` are the prefixes that embedding, layers and last norm may stand under, each with the name of the output
    matrix beside it; tensors that start with one of `other_parts` belong to parts of a larger model that are left out;
    `text_config` picks the language model's config out of a larger one. In a mixture of experts the names of the FFN
    are those of `mixture_names`; `made` gives the weights that are parts of a tensor; a file `may_lack` some weights,
    and have tensors that end in `unread` to no purpose; `parts` are keys of UNSUPPORTED that this family has a part
    for.
    """

    model_type: str
    defaults: Mapping[str, Any] = field(default_factory=dict)
    differences: Callable[[Settings], dict[str, Any]] = no_differences
    names: Mapping[str, str] = field(default_factory=lambda: LLAMA_NAMES)
    biases: Mapping[str, str] = field(default_factory=lambda: BIASES)
    norm_offset: float = 0.0
    bodies: tuple[tuple[str, str], ...] = (MODEL, BARE)
    other_parts: tuple[str, ...] = ()
    text_config: Callable[[Settings], Mapping[str, Any]] = whole_config
    mixture_names: Mapping[str, str] = field(default_factory=dict)
    made: Callable[[Settings], Mapping[str, Made]] = nothing_made
    may_lack: tuple[str, ...] = ()
    unread: tuple[str, ...] = ()
    parts: tuple[str, ...] = ()

    def settings(self, config: Mapping[str, Any], where: str) -> Settings:
        """The config with the family's defaults behind it."""
        given = self.text_config(Settings(config, where)).items()
        said = {key: value for key, value in given if value is not None or key in NULL_IS_A_VALUE}
        return Settings({**DEFAULTS, **self.defaults, **said}, where)

    def model_config(self, settings: Settings) -> ModelConfig:
        """The ModelConfig. Raises ValueError naming the first key that is missing, wrong or not supported."""
        for key in UNSUPPORTED:
            known = key in self.parts or not settings.get(key)
            settings.require(key, known, "false or null: the forward pass has no such part")
        layers, heads = settings.whole("num_hidden_layers", MOST_LAYERS), settings.whole("num_attention_heads")
        try:
            differences = self.differences(settings)
        except ValueError as error:
            raise _in(settings, error) from None
        head_dim = differences.pop("head_dim", None) or _head_dim(settings, heads)
        ropes: tuple[Rope | None, ...] = differences.pop("ropes", None) or (read_rope(settings),) * layers
        fields: dict[str, Any] = {
            "family": self.model_type,
            "layers": layers,
            "width": settings.whole("hidden_size"),
            "heads": heads,
            "kv_heads": heads if settings.get("num_key_value_heads") is None else settings.whole("num_key_value_heads"),
            "head_dim": head_dim,
            "ffn_width": settings.whole("intermediate_size"),
            "vocab_size": settings.whole("vocab_size"),
            "max_positions": max(positions_reach(settings, rope) for rope in ropes),
            "ropes": ropes,
            "windows": (None,) * layers,
            "attention_scale": head_dim**-0.5,
            "rms_eps": settings.number("rms_norm_eps"),
            "tied": settings.flag("tie_word_embeddings"),
        }
        if "activation" not in differences:
            fields["activation"] = settings.choice("hidden_act", ACTIVATIONS)
        try:
            return ModelConfig(**(fields | differences))
        except ValueError as error:
            raise _in(settings, error) from None

    def layer_names(self, settings: Settings) -> dict[str, str]:
        """Tensor below "layers.N." of every weight that a layer has."""
        return {**self.names, **(self.biases if self.biases and settings.flag("attention_bias") else {})}

    def tensors_of(self, settings: Settings, config: ModelConfig, layer: int) -> dict[str, str]:
        """Tensor below "layers.N." of every weight of one layer, which may be a mixture."""
        names = self.layer_names(settings) | {weight: part.tensor for weight, part in self.made(settings).items()}
        if config.mixture is not None and config.is_mixture(layer):
            names = {weight: tensor for weight, tensor in names.items() if weight not in FFN}
            for weight, tensor in self.mixture_names.items():
                each = range(config.mixture.experts) if "{}" in weight else range(1)
                names |= {weight.format(n): tensor.format(n) for n in each}
        shapes = layer_shapes(config, layer)
        return {weight: tensor for weight, tensor in names.items() if weight in shapes}

    def body(self, names: frozenset[str], where: str) -> tuple[str, str]:
        """The prefix that this checkpoint's tensors stand under, and the name of its output matrix. ValueError where
        there is no embedding, also under the output's name, or it stands under a prefix that no checkpoint has."""
        for end in (EMBEDDING, FINAL_NORM):
            for prefix, output in self.bodies:
                if prefix + end in names and (end == EMBEDDING or output in names):
                    return prefix, output
        wanted = " or ".join(repr(prefix + EMBEDDING) for prefix, _ in self.bodies)
        strange = next((repr(name) for name in sorted(names) if name.endswith(EMBEDDING)), "no embedding")
        raise ValueError(f"{where}: got {strange}, wanted tensor {wanted}")

    def spellings(self, name: str, body: str, output: str) -> Iterator[str]:
        """The names that a tensor may have in a checkpoint whose tensors stand under `body`, and whose output matrix is
        called `output`: another generation of the family's class may have put it elsewhere."""
        yield name
        for prefix, other in sorted(self.bodies, key=lambda place: -len(place[0])):
            if name == other:
                yield output
            if name.startswith(prefix):
                yield body + name.removeprefix(prefix)

    def has_no_use_for(self, name: str) -> bool:
        """Whether a tensor of this name may lie in the file and not be read."""
        return name.endswith(BESIDE + self.unread) or name.startswith(self.other_parts)


def _in(settings: Settings, error: ValueError) -> ValueError:
    """The error with the file that it is about."""
    told = str(error)
    return error if told.startswith(settings.where) else ValueError(f"{settings.where}: {told}")


def _head_dim(settings: Settings, heads: int) -> int:
    """D as written, or E / H."""
    if settings.get("head_dim") is not None:
        return settings.whole("head_dim")
    width = settings.whole("hidden_size")
    settings.require("hidden_size", width % heads == 0, f"a multiple of num_attention_heads = {heads}")
    return width // heads


def windows_of(settings: Settings, sliding: list[bool]) -> tuple[int | None, ...]:
    """A window of `sliding_window` tokens in the layers that are `sliding`; a config's `layer_types` overrides them."""
    types = settings.get("layer_types")
    if types is not None:
        good = isinstance(types, list) and all(isinstance(t, str) and t in LAYER_TYPES for t in types)
        settings.require("layer_types", good, f"a list of {' or '.join(LAYER_TYPES)}")
        sliding = [LAYER_TYPES[t] == "sliding" for t in types]
    layers = settings.whole("num_hidden_layers")
    require(
        len(sliding) == layers,
        f"{settings.where}: layer_types: got {len(sliding)} entries, wanted {layers}, one for each layer",
    )
    return tuple(settings.whole("sliding_window") if slides else None for slides in sliding)
