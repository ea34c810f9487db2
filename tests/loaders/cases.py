"""Small models of every family, as arguments of transformers' config classes: the ones that both engines must agree on.

Each family has a few shapes, and one in which every rotation is tried. The prompt is longer than all windows and than
the positions that a scaled rotation was trained on.
"""

from __future__ import annotations

from copy import deepcopy
from typing import Any

import numpy as np

PROMPT, NEW = 80, 64  # tokens read, tokens then generated greedily
ROWS = np.arange(7, PROMPT, 24)  # of the prompt's tokens, those whose logits are recorded, the last among them
TRAINED = 48  # positions that scaled rotations were trained on

SIZE = {"hidden_size": 24, "intermediate_size": 40, "vocab_size": 61, "max_position_embeddings": 256}
IDS = {"pad_token_id": None, "bos_token_id": None, "eos_token_id": None}


def shape(layers: int, heads: int, kv_heads: int, head_dim: int | None, **more: Any) -> dict[str, Any]:
    dims = {"num_hidden_layers": layers, "num_attention_heads": heads, "num_key_value_heads": kv_heads}
    config = {**SIZE, **IDS, **dims, **({} if head_dim is None else {"head_dim": head_dim}), **more}
    return deepcopy(config)  # config classes write into what they are given


LONG = {"short_factor": [1.0, 1.1, 1.3, 2.0], "long_factor": [1.2, 3.0, 5.0, 7.5]}
LONGROPE = {"rope_scaling": {"rope_type": "longrope", **LONG}, "original_max_position_embeddings": TRAINED}
SU = {"rope_scaling": {"type": "su", **LONG, "original_max_position_embeddings": TRAINED}}
SU["original_max_position_embeddings"] = TRAINED  # transformers wants it in both places
SHAPES: dict[str, dict[str, dict[str, Any]]] = {
    "llama": {
        "tied": shape(2, 4, 4, None, tie_word_embeddings=True),
        "untied": shape(2, 6, 2, 10, tie_word_embeddings=False),
        "biases": shape(3, 8, 1, 14, attention_bias=True, rms_norm_eps=1e-5, rope_theta=500.0),
    },
    "mistral": {
        "window": shape(2, 4, 2, None, sliding_window=7),
        "no-window": shape(2, 4, 1, 18, sliding_window=None, tie_word_embeddings=True),
    },
    "ministral": {
        "windows": shape(3, 4, 2, 10, sliding_window=7, layer_types=["full_attention"] + ["sliding_attention"] * 2),
        "all-windows": shape(2, 3, 1, 8, sliding_window=5),
    },
    "qwen2": {
        "tied": shape(2, 4, 2, None, tie_word_embeddings=True, rope_theta=1e6),
        "untied": shape(2, 6, 1, None, tie_word_embeddings=False),
        "windows": shape(3, 3, 3, None, use_sliding_window=True, sliding_window=9, max_window_layers=1),
    },
    "qwen3": {
        "tied": shape(2, 4, 2, 14, tie_word_embeddings=True),
        "biases": shape(2, 8, 1, 6, tie_word_embeddings=False, attention_bias=True),
        "windows": shape(3, 3, 1, 20, use_sliding_window=True, sliding_window=9, max_window_layers=2),
    },
    "gemma3_text": {
        "pattern": shape(7, 4, 2, 10, sliding_window=11, query_pre_attn_scalar=17),
        "untied": shape(3, 3, 1, 8, sliding_window=5, sliding_window_pattern=2, tie_word_embeddings=False),
        "cap": shape(2, 3, 1, 8, sliding_window=5, final_logit_softcapping=1.5),
        "biases": shape(
            2,
            4,
            4,
            12,
            sliding_window=6,
            attention_bias=True,
            layer_types=["full_attention", "sliding_attention"],
            rope_theta=5e4,
            rope_local_base_freq=500.0,
        ),
    },
    "olmo2": {
        "tied": shape(2, 4, 2, None, tie_word_embeddings=True),
        "biases": shape(3, 6, 1, None, attention_bias=True, rms_norm_eps=1e-3),
    },
    "granite": {
        "factors": shape(
            2,
            4,
            2,
            None,
            embedding_multiplier=6.0,
            attention_multiplier=0.3,
            residual_multiplier=0.22,
            logits_scaling=4.0,
            tie_word_embeddings=True,
        ),
        "biases": shape(3, 6, 3, None, attention_bias=True, residual_multiplier=1.5, logits_scaling=0.5),
    },
    "phi3": {
        "window": shape(2, 4, 2, None, sliding_window=7, tie_word_embeddings=True),
        "part-of-a-head": shape(3, 3, 1, None, partial_rotary_factor=0.5, rope_theta=500.0),
        "longrope": shape(2, 2, 2, None, **LONGROPE, hidden_size=32, partial_rotary_factor=0.5),
        # While tokens are generated the text grows beyond what it was trained on.
        "longrope-while-decoding": shape(2, 3, 1, None, **LONGROPE | {"original_max_position_embeddings": 96}),
        "su": shape(2, 3, 1, None, **SU),
    },
    "gemma2": {
        # Caps that bend most scores and logits, so that leaving one out shows.
        "caps": shape(3, 4, 2, 10, sliding_window=11, attn_logit_softcapping=0.5, final_logit_softcapping=1.5),
        "no-caps": shape(2, 3, 1, 8, sliding_window=5, attn_logit_softcapping=None, final_logit_softcapping=None),
        "untied": shape(
            3,
            6,
            2,
            8,
            attention_bias=True,
            tie_word_embeddings=False,
            query_pre_attn_scalar=3,
            attn_logit_softcapping=2.0,
        ),
    },
    "smollm3": {
        "tied": shape(4, 4, 2, None),
        "biases": shape(3, 6, 2, None, tie_word_embeddings=False, attention_bias=True, no_rope_layers=[0, 1, 1]),
        "windows": shape(4, 2, 1, None, use_sliding_window=True, sliding_window=8, no_rope_layer_interval=2),
    },
    "mixtral": {
        "two-of-five": shape(2, 4, 2, None, num_local_experts=5, num_experts_per_tok=2),
        "window": shape(2, 4, 1, 10, num_local_experts=3, num_experts_per_tok=3, sliding_window=7),
    },
    "qwen3_moe": {
        "some-dense": shape(
            3, 4, 2, 8, num_experts=6, num_experts_per_tok=3, moe_intermediate_size=12, mlp_only_layers=[1]
        ),
        "normalised": shape(
            2,
            4,
            1,
            6,
            num_experts=9,
            moe_intermediate_size=10,
            norm_topk_prob=True,
            attention_bias=True,
            use_sliding_window=True,
            sliding_window=9,
            tie_word_embeddings=True,
        ),
        "every-second": shape(2, 2, 2, 8, num_experts=8, num_experts_per_tok=2, decoder_sparse_step=2),
    },
}

LATENT: dict[str, Any] = {
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "n_routed_experts": 8,
    "num_experts_per_tok": 3,
    "moe_intermediate_size": 12,
    "n_group": 4,
    "topk_group": 2,
    "first_k_dense_replace": 1,
    "q_lora_rank": 10,
    "kv_lora_rank": 14,
    "qk_rope_head_dim": 4,
    "qk_nope_head_dim": 6,
    "v_head_dim": 8,
}
MSCALE = {
    "rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": TRAINED, "mscale": 1.0,
    "mscale_all_dim": 0.8, "rope_theta": 3e4,
}  # fmt: skip
SHAPES["deepseek_v3"] = {
    "latents": {**SIZE, **IDS, **LATENT},
    "no-query-latent": {**SIZE, **IDS, **LATENT, "q_lora_rank": None, "rope_interleave": False, "v_head_dim": 14},
    "two-shared": {
        **SIZE, **IDS, **LATENT, "n_shared_experts": 2, "norm_topk_prob": False, "attention_bias": True, "n_group": 1,
        "topk_group": 1, "rope_parameters": MSCALE, "hidden_size": 26, "rms_norm_eps": 1e-3,
    },
}  # fmt: skip
SHAPES["axk1"] = {
    "latents": {**SIZE, **IDS, **LATENT},
    "three-layers": {
        **SIZE, **IDS, **LATENT, "num_hidden_layers": 3, "mlp_layer_types": ["sparse", "dense", "sparse"],
        "attention_bias": True, "v_head_dim": 6,
    },
}  # fmt: skip
FEW_EXPERTS: dict[str, dict[str, Any]] = {  # besides, for a small model in which something else is tried
    "mixtral": {"num_local_experts": 3},
    "qwen3_moe": {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 12},
    "deepseek_v3": LATENT,
    "axk1": LATENT,
}
SCALINGS: dict[str, dict[str, Any]] = {
    "linear": {"rope_type": "linear", "factor": 3.0},
    "dynamic": {"rope_type": "dynamic", "factor": 4.0},
    "llama3": {
        "rope_type": "llama3",
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": TRAINED,
    },
    "yarn": {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": TRAINED},
}
SCALED = tuple(family for family in SHAPES if family != "phi3")  # whose config class takes none but longrope
VARIANTS: dict[str, dict[str, Any]] = {  # tried in llama only
    "yarn-ramp": SCALINGS["yarn"] | {"beta_fast": 5.0, "beta_slow": 0.5, "truncate": False},
    "yarn-attention-factor": SCALINGS["yarn"] | {"attention_factor": 0.9},
    "yarn-mscale": SCALINGS["yarn"] | {"mscale": 1.2, "mscale_all_dim": 0.7},
    "longrope": {"rope_type": "longrope", "factor": 4.0, "original_max_position_embeddings": TRAINED}
    | {"short_factor": [1.0, 1.1, 1.3, 2.0, 2.5], "long_factor": [1.2, 3.0, 5.0, 7.5, 9.0]},
    "dynamic-original": SCALINGS["dynamic"]
    | {"original_max_position_embeddings": 16},  # which transformers passes over
}


def scaled(family: str, scaling: dict[str, Any], *, newer: bool) -> dict[str, Any]:
    """The shape that rotations are tried in, with this one in the newer or the older layout of config.json."""
    few = FEW_EXPERTS.get(family, {})
    config = {**SIZE, **IDS, **few} if few is LATENT else shape(2, 6, 2, 10, **few)
    if scaling["rope_type"] == "dynamic":
        config["max_position_embeddings"] = TRAINED
    if family == "gemma2":
        config["sliding_window"] = 9
    if family == "gemma3_text":
        config |= {"sliding_window": 9, "sliding_window_pattern": 2}
        if newer:
            local = {"rope_type": "default", "rope_theta": 100.0}
            return config | {
                "rope_parameters": {"full_attention": {**scaling, "rope_theta": 3e4}, "sliding_attention": local}
            }
        return config | {"rope_scaling": scaling, "rope_theta": 3e4, "rope_local_base_freq": 100.0}
    if newer:
        return config | {"rope_parameters": {**scaling, "rope_theta": 3e4}}
    return config | {"rope_scaling": scaling, "rope_theta": 3e4}


def with_images(text: dict[str, Any]) -> dict[str, Any]:
    """The config of a model that also sees, around that of its language model."""
    vision = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1}
    vision |= {"image_size": 4, "patch_size": 2}
    return {"text_config": text, "vision_config": vision, "mm_tokens_per_image": 4}


def all_cases() -> dict[str, tuple[str, dict[str, Any]]]:
    """Family and config of every case by name."""
    cases = {
        f"{family}-{name}": (family, config) for family, shapes in SHAPES.items() for name, config in shapes.items()
    }
    for n, family in enumerate(SCALED):
        for m, (name, scaling) in enumerate(SCALINGS.items()):
            cases[f"{family}-{name}"] = family, scaled(family, scaling, newer=(n + m) % 2 == 0)
    for name, scaling in VARIANTS.items():
        cases[f"llama-{name}"] = "llama", scaled("llama", scaling, newer=False)
    cases["gemma3-images"] = "gemma3", with_images(SHAPES["gemma3_text"]["pattern"])
    return cases


CASES = all_cases()


def prompt(config: dict[str, Any]) -> np.ndarray:
    """A case's prompt, (PROMPT,)."""
    return np.random.default_rng(7).integers(0, config.get("text_config", config)["vocab_size"], PROMPT)


def norm_offset(family: str) -> float:
    """What the family adds to the weight of a norm when it uses it."""
    return 1.0 if family.startswith("gemma") else 0.0
