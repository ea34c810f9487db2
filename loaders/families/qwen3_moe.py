"""qwen3_moe: Qwen3 in which layers are mixtures of experts, but for those that the config names."""

from typing import Any

from loaders.family import EXPERT_NAMES, LLAMA_NAMES, QK_NORMS, Family, windows_of
from loaders.settings import Settings
from reference import Mixture


def differences(settings: Settings) -> dict[str, Any]:
    """The experts, and where switched on a window in every layer."""
    layers, step = settings.whole("num_hidden_layers"), settings.whole("decoder_sparse_step")
    dense = settings.get("mlp_only_layers", [])
    good = isinstance(dense, list) and all(type(n) is int for n in dense)
    settings.require("mlp_only_layers", good, "a list of layers")
    slides = settings.flag("use_sliding_window") and settings.get("sliding_window") is not None
    mixed = tuple(n not in dense and (n + 1) % step == 0 for n in range(layers))
    mixture = Mixture(
        layers=mixed,
        experts=settings.whole("num_experts" if settings.get("num_experts") is not None else "num_local_experts"),
        chosen=settings.whole("num_experts_per_tok"),
        width=settings.whole("moe_intermediate_size"),
        normalised=settings.flag("norm_topk_prob"),
    )
    return {"windows": windows_of(settings, [slides] * layers), "mixture": mixture if any(mixed) else None}


DEFAULTS = {
    "num_key_value_heads": 4,
    "max_position_embeddings": 32_768,
    "sliding_window": 4096,
    "decoder_sparse_step": 1,
    "moe_intermediate_size": 768,
    "num_experts_per_tok": 8,
    "num_local_experts": 128,
}
FAMILIES = (
    Family(
        "qwen3_moe",
        DEFAULTS,
        differences,
        {**LLAMA_NAMES, **QK_NORMS},
        mixture_names=EXPERT_NAMES,
        parts=("num_experts", "num_local_experts"),
    ),
)
