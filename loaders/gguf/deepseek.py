"""What a GGUF of architecture deepseek2 has otherwise: latent attention, and a mixture with sigmoid scores.

W_k and W_v stand apart, head by head, and W_k turned: attn_k_b (H, rank, unrotated), attn_v_b (H, v, rank). In a
Hugging Face checkpoint one tensor has both, kv_b_proj (H · (unrotated + v), rank), a head's rows of W_k above those of
its W_v. Older files have that one, as attn_kv_b, and a head's widths under keys that are the latent's in newer ones.
Rows that are rotated stand as in Hugging Face checkpoints, neighbours turned together.

Sources: gguf-py/gguf/constants.py, the converter of DeepSeek's models, and src/llama-context.cpp and
src/models/deepseek2.cpp of github.com/ggml-org/llama.cpp.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from gguf import ExpertGatingFuncType, Keys

from loaders.gguf.decimal import decimal
from loaders.settings import Settings

KEYS = {
    Keys.LLM.LEADING_DENSE_BLOCK_COUNT,
    Keys.LLM.EXPERT_COUNT,
    Keys.LLM.EXPERT_USED_COUNT,
    Keys.LLM.EXPERT_SHARED_COUNT,
    Keys.LLM.EXPERT_FEED_FORWARD_LENGTH,
    Keys.LLM.EXPERT_WEIGHTS_SCALE,
    Keys.LLM.EXPERT_WEIGHTS_NORM,
    Keys.LLM.EXPERT_GATING_FUNC,
    Keys.LLM.EXPERT_GROUP_COUNT,
    Keys.LLM.EXPERT_GROUP_USED_COUNT,
    Keys.Attention.Q_LORA_RANK,
    Keys.Attention.KV_LORA_RANK,
    Keys.Attention.KEY_LENGTH_MLA,
    Keys.Attention.VALUE_LENGTH_MLA,
    Keys.Rope.SCALING_YARN_LOG_MUL,
}
LOG_MULTIPLIER = 0.1  # that the converter has put into yarn_log_multiplier


def deepseek2(config: dict[str, Any], metadata: Settings) -> dict[str, Any]:
    """What the config says besides. ValueError for scores that are no sigmoids (DeepSeek-V2), and for YaRN without its
    multiplier, which llama.cpp reads as no other program does."""

    def at(key: str) -> str:
        return key.format(arch="deepseek2")

    def whole(key: str, default: int | None = None) -> int:
        """A whole number, where there is a default perhaps 0 or left out."""
        return metadata.whole(at(key)) if default is None or metadata.get(at(key)) else default

    gating = at(Keys.LLM.EXPERT_GATING_FUNC)
    sigmoid = ExpertGatingFuncType.SIGMOID
    metadata.require(gating, metadata.get(gating) == sigmoid, f"{sigmoid:d}: sigmoid scores")
    rotated = whole(Keys.Rope.DIMENSION_COUNT)
    key = whole(Keys.Attention.KEY_LENGTH_MLA, whole(Keys.Attention.KEY_LENGTH))
    metadata.require(at(Keys.Rope.DIMENSION_COUNT), rotated < key, f"fewer than the {key} dimensions of a key")
    return {
        "head_dim": None,
        "num_key_value_heads": config["num_attention_heads"],
        "kv_lora_rank": whole(Keys.Attention.KV_LORA_RANK),
        "q_lora_rank": whole(Keys.Attention.Q_LORA_RANK, 0) or None,
        "qk_nope_head_dim": key - rotated,
        "qk_rope_head_dim": rotated,
        "v_head_dim": whole(Keys.Attention.VALUE_LENGTH_MLA, whole(Keys.Attention.VALUE_LENGTH)),
        "rope_interleave": True,
        "rope_scaling": _with_multiplier(config["rope_scaling"], metadata, at(Keys.Rope.SCALING_YARN_LOG_MUL)),
        "first_k_dense_replace": whole(Keys.LLM.LEADING_DENSE_BLOCK_COUNT, 0),
        "n_routed_experts": whole(Keys.LLM.EXPERT_COUNT),
        "num_experts_per_tok": whole(Keys.LLM.EXPERT_USED_COUNT),
        "n_shared_experts": whole(Keys.LLM.EXPERT_SHARED_COUNT, 0),
        "moe_intermediate_size": whole(Keys.LLM.EXPERT_FEED_FORWARD_LENGTH),
        "routed_scaling_factor": decimal(metadata.number(at(Keys.LLM.EXPERT_WEIGHTS_SCALE), 0)) or 1.0,
        "norm_topk_prob": metadata.flag(at(Keys.LLM.EXPERT_WEIGHTS_NORM)),
        "n_group": whole(Keys.LLM.EXPERT_GROUP_COUNT, 1),
        "topk_group": whole(Keys.LLM.EXPERT_GROUP_USED_COUNT, 1),
    }


def joined(k: np.ndarray, v: np.ndarray) -> np.ndarray:
    """kv_b_proj (H · (unrotated + v), rank) of k (H, rank, unrotated) and v (H, v, rank)."""
    return np.concatenate([k.swapaxes(1, 2), v], axis=1).reshape(-1, v.shape[2])


def _with_multiplier(scaling: dict[str, Any] | None, metadata: Settings, key: str) -> dict[str, Any] | None:
    """YaRN's scaling with `mscale_all_dim`, which sharpens the scores; llama.cpp takes `mscale` to be the same."""
    if scaling is None or scaling["rope_type"] != "yarn":
        return scaling
    multiplier = metadata.number(key, 0)
    metadata.require(key, multiplier > 0, "a positive number beside a scaling of type yarn")
    m = decimal(multiplier / LOG_MULTIPLIER)
    return {**scaling, "mscale": m, "mscale_all_dim": m}
