"""olmo2: the norms stand after attention and FFN and not before them, and queries and keys are normed over all heads
together, before they are split."""

from typing import Any

from loaders.family import LLAMA_NAMES, QK_NORMS, Family
from loaders.settings import Settings

NAMES = {
    **{weight: name for weight, name in LLAMA_NAMES.items() if not weight.endswith("norm")},
    **QK_NORMS,
    "post_attention_norm": "post_attention_layernorm.weight",
    "post_ffn_norm": "post_feedforward_layernorm.weight",
}


def differences(settings: Settings) -> dict[str, Any]:
    """Norms of queries and keys over all heads."""
    return {"joint_qk_norm": True}


FAMILIES = (Family("olmo2", {"rms_norm_eps": 1e-5, "max_position_embeddings": 2048}, differences, NAMES),)
