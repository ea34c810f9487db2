"""A GGUF's metadata as the content of a Hugging Face config.json.

    llama.block_count = 30, llama.context_length = 8192, …  ->  {"num_hidden_layers": 30, …}

Two things are not written as they are meant. Llama 3's frequency scaling is a tensor of the factors that it comes to,
and is recognised by computing them. Gemma 3's fixed values (its activation, the pattern of its layers, the 27B's
attention scale) are left out, and stand here.

Source: gguf-py/gguf/constants.py, convert_hf_to_gguf.py and src/llama-model.cpp of github.com/ggml-org/llama.cpp.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from loaders.gguf.file import GGUFFile
from loaders.gguf.special import special_ids
from loaders.settings import Settings
from reference.checks import require
from reference.config import Rope

MODEL_TYPES = {"llama": "llama", "qwen2": "qwen2", "qwen3": "qwen3", "gemma3": "gemma3_text"}
EMBEDDING, OUTPUT, ROPE_FACTORS = "token_embd.weight", "output.weight", "rope_freqs.weight"
LLAMA3 = {"low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}
GEMMA3_PERIOD = 6  # five local layers, then a global one
GEMMA3_27B_LAYERS = 62  # the one size that scales attention by the width per head instead of head_dim


def hugging_face_config(arch: str, metadata: Settings, file: GGUFFile) -> dict[str, Any]:
    """The config.json of the model in a GGUF file. Raises ValueError naming the key that is missing or wrong."""
    require(EMBEDDING in file.shapes, f"{file.path}: tensor {EMBEDDING!r}: got no such tensor, wanted it here")
    heads, width = metadata.whole(f"{arch}.attention.head_count"), metadata.whole(f"{arch}.embedding_length")
    head_dim = _whole(metadata, f"{arch}.attention.key_length", width // heads)
    rotated = metadata.get(f"{arch}.rope.dimension_count", head_dim)
    metadata.require(f"{arch}.rope.dimension_count", rotated == head_dim, f"head_dim = {head_dim}, no partial rotation")
    metadata.require(f"{arch}.expert_count", not metadata.get(f"{arch}.expert_count"), "no mixture of experts")
    config = {
        "model_type": MODEL_TYPES[arch],
        "vocab_size": file.shapes[EMBEDDING][0],
        "hidden_size": width,
        "intermediate_size": metadata.whole(f"{arch}.feed_forward_length"),
        "num_hidden_layers": metadata.whole(f"{arch}.block_count"),
        "num_attention_heads": heads,
        "num_key_value_heads": _whole(metadata, f"{arch}.attention.head_count_kv", heads),
        "head_dim": head_dim,
        "max_position_embeddings": metadata.whole(f"{arch}.context_length"),
        "rms_norm_eps": _decimal(metadata.number(f"{arch}.attention.layer_norm_rms_epsilon")),
        "rope_theta": _decimal(metadata.number(f"{arch}.rope.freq_base", 10_000.0)),
        "rope_scaling": _rope_scaling(arch, metadata),
        "tie_word_embeddings": OUTPUT not in file.shapes,
        "dtype": "float32",
        **special_ids(metadata),
    }
    if ROPE_FACTORS in file.shapes:
        config["rope_scaling"] = _llama3(config["rope_theta"], head_dim, file)
    return config | (_gemma3(config, metadata) if arch == "gemma3" else {"hidden_act": "silu"})


def _whole(metadata: Settings, key: str, default: int) -> int:
    """A whole number that may be left out."""
    return metadata.whole(key) if metadata.get(key) is not None else default


def _rope_scaling(arch: str, metadata: Settings) -> dict[str, Any] | None:
    """Hugging Face's rope_scaling, where the metadata name one."""
    prefix = f"{arch}.rope.scaling"
    kind = metadata.get(f"{prefix}.type", "none")
    metadata.require(f"{prefix}.type", kind in ("none", "linear", "yarn"), "none, linear or yarn")
    if kind == "none":
        return None
    scaling = {"rope_type": kind, "factor": _decimal(metadata.number(f"{prefix}.factor"))}
    if kind == "yarn":
        scaling["original_max_position_embeddings"] = metadata.whole(f"{prefix}.original_context_length")
    return scaling


def _llama3(theta: float, head_dim: int, file: GGUFFile) -> dict[str, Any]:
    """The scaling whose frequencies are the plain ones divided by the stored factors (D/2,)."""
    factors = file.tensor(ROPE_FACTORS)
    factor = _decimal(factors.max())
    scaled = Rope(theta, "llama3", factor, original_positions=8192, low_freq_factor=1.0, high_freq_factor=4.0)
    wanted = Rope(theta).frequencies(head_dim, 0) / scaled.frequencies(head_dim, 0)  # (D/2,)
    require(
        factors.shape == wanted.shape and np.allclose(factors, wanted, rtol=1e-4),
        f"{file.path}: tensor {ROPE_FACTORS!r}: got factors of shape {factors.shape} up to {factor}, "
        f"wanted Llama 3's {head_dim // 2} for that factor: no other scaling by frequency is supported",
    )
    return {"rope_type": "llama3", "factor": factor, **LLAMA3}


def _gemma3(config: dict[str, Any], metadata: Settings) -> dict[str, Any]:
    """What a Gemma 3 config says otherwise or besides."""
    layers, per_head = config["num_hidden_layers"], config["hidden_size"] // config["num_attention_heads"]
    return {
        "hidden_activation": "gelu_pytorch_tanh",
        "query_pre_attn_scalar": per_head if layers == GEMMA3_27B_LAYERS else config["head_dim"],
        "rope_theta": _decimal(metadata.number("gemma3.rope.freq_base", 1_000_000.0)),
        "rope_local_base_freq": _decimal(metadata.number("gemma3.rope.freq_base_swa", 10_000.0)),
        "sliding_window": metadata.whole("gemma3.attention.sliding_window"),
        "layer_types": ["sliding_attention" if (n + 1) % GEMMA3_PERIOD else "full_attention" for n in range(layers)],
    }


def _decimal(value: float) -> float:
    """The shortest decimal that is this float32: 1e-05, where the metadata give 9.999999747378752e-06."""
    return float(str(np.float32(value)))
