"""axk1 (A.X K1; older files say AXK1): deepseek_v3 with a norm of what a mixture gives, shared expert included, before
the residual. Its files have that norm for dense layers too, which do not use it, and may lack the router's bias."""

from typing import Any

from loaders.families import deepseek_v3
from loaders.family import Family
from loaders.settings import Settings


def differences(settings: Settings) -> dict[str, Any]:
    """Latent attention, and experts in the layers that `mlp_layer_types` calls sparse."""
    layers, kinds = settings.whole("num_hidden_layers"), settings.get("mlp_layer_types")
    if kinds is None:
        first, step = settings.number("first_k_dense_replace"), settings.whole("moe_layer_freq")
        kinds = ["sparse" if n >= first and n % step == 0 else "dense" for n in range(layers)]
    good = isinstance(kinds, list) and len(kinds) == layers and all(kind in ("sparse", "dense") for kind in kinds)
    settings.require("mlp_layer_types", good, f"a list of sparse or dense for each of {layers} layers")
    mixture = deepseek_v3.mixture(settings, tuple(kind == "sparse" for kind in kinds))
    return {**deepseek_v3.attention(settings), "mixture": mixture}


DEFAULTS = {
    **deepseek_v3.DEFAULTS,
    "vocab_size": 163_840,
    "hidden_size": 7168,
    "intermediate_size": 18_432,
    "num_hidden_layers": 61,
    "num_attention_heads": 64,
    "n_routed_experts": 192,
    "max_position_embeddings": 32_768,
    "first_k_dense_replace": 1,
    "moe_layer_freq": 1,
}
FAMILIES = tuple(
    Family(
        model_type,
        DEFAULTS,
        differences,
        deepseek_v3.NAMES,
        deepseek_v3.BIASES,
        mixture_names={**deepseek_v3.MIXTURE_NAMES, "post_ffn_norm": "post_mlp_layernorm.weight"},
        made=deepseek_v3.made,
        may_lack=("router_bias",),
        unread=("post_mlp_layernorm.weight",),
        parts=("num_experts", "num_local_experts"),
    )
    for model_type in ("axk1", "AXK1")
)
