"""A GGUF's metadata as the content of a Hugging Face config.json.

    llama.block_count = 30, llama.context_length = 8192, …  ->  {"num_hidden_layers": 30, …}

Two things are not written as they are meant. Llama 3's frequency scaling is a tensor of the factors that it comes to,
and is recognised by computing them. Gemma 3's fixed values (its activation, the pattern of its layers, the 27B's
attention scale) are left out, and stand here.

Every key of the architecture is used, known to change nothing, or refused: one that is passed over could be another
model's. A zero, an empty text and false switch off what a key stands for.

Source: gguf-py/gguf/constants.py, convert_hf_to_gguf.py and src/llama-model.cpp of github.com/ggml-org/llama.cpp.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from loaders.family import MOST_LAYERS
from loaders.gguf.file import GGUFFile
from loaders.gguf.special import special_ids
from loaders.settings import Settings
from reference.checks import require
from reference.config import Rope

MODEL_TYPES = {"llama": "llama", "qwen2": "qwen2", "qwen3": "qwen3", "gemma3": "gemma3_text"}
USED = {
    "block_count",
    "context_length",
    "embedding_length",
    "feed_forward_length",
    "attention.head_count",
    "attention.head_count_kv",
    "attention.key_length",
    "attention.value_length",
    "attention.layer_norm_rms_epsilon",
    "rope.dimension_count",
    "rope.freq_base",
    "rope.scale_linear",
    "rope.scaling.type",
    "rope.scaling.factor",
    "rope.scaling.original_context_length",
    "rope.scaling.attn_factor",
    "rope.scaling.yarn_beta_fast",
    "rope.scaling.yarn_beta_slow",
}
USED_BY_GEMMA3 = {"attention.sliding_window", "attention.sliding_window_pattern", "rope.freq_base_swa"}
CHANGES_NOTHING = {
    "vocab_size",  # the embedding has it
    "tensor_data_layout",
    "attention.layer_norm_epsilon",  # of a norm that these architectures do not have
    "expert_used_count",  # of experts that are refused
    "rope.scaling.finetuned",
    "pooling_type",  # for embeddings of whole texts
}
ONLY = {"attention.causal": True, "rope.scaling.yarn_ext_factor": 1, "rope.scaling.yarn_attn_factor": 1}
BIASED = ("attn_q.bias", "attn_k.bias", "attn_v.bias", "attn_output.bias")
EMBEDDING, OUTPUT, ROPE_FACTORS = "token_embd.weight", "output.weight", "rope_freqs.weight"
LLAMA3 = {"low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}
GEMMA3_PERIOD = 6  # five local layers, then a global one
GEMMA3_27B_LAYERS = 62  # the one size that scales attention by the width per head instead of head_dim


def hugging_face_config(arch: str, metadata: Settings, file: GGUFFile) -> dict[str, Any]:
    """The config.json of the model in a GGUF file. Raises ValueError naming the key that is missing or wrong."""
    require(EMBEDDING in file.shapes, f"{file.path}: tensor {EMBEDDING!r}: got no such tensor, wanted it here")
    metadata = _every_layer_alike(arch, metadata)
    _refuse_others(arch, metadata)
    heads, width = metadata.whole(f"{arch}.attention.head_count"), metadata.whole(f"{arch}.embedding_length")
    head_dim = _whole(metadata, f"{arch}.attention.key_length", width // heads)
    for key, what in (("attention.value_length", "as wide as keys"), ("rope.dimension_count", "no partial rotation")):
        metadata.require(f"{arch}.{key}", metadata.get(f"{arch}.{key}", head_dim) == head_dim, f"{head_dim}: {what}")
    config = {
        "model_type": MODEL_TYPES[arch],
        "vocab_size": file.shapes[EMBEDDING][0],
        "hidden_size": width,
        "intermediate_size": metadata.whole(f"{arch}.feed_forward_length"),
        "num_hidden_layers": metadata.whole(f"{arch}.block_count", MOST_LAYERS),
        "num_attention_heads": heads,
        "num_key_value_heads": _whole(metadata, f"{arch}.attention.head_count_kv", heads),
        "head_dim": head_dim,
        "max_position_embeddings": metadata.whole(f"{arch}.context_length"),
        "rms_norm_eps": _decimal(metadata.number(f"{arch}.attention.layer_norm_rms_epsilon")),
        "rope_theta": _decimal(metadata.number(f"{arch}.rope.freq_base", 10_000.0)),
        "rope_scaling": _rope_scaling(arch, metadata),
        "attention_bias": arch != "qwen2" and any(name.endswith(BIASED) for name in file.shapes),
        "tie_word_embeddings": OUTPUT not in file.shapes,
        "dtype": "float32",
        **special_ids(metadata),
    }
    if ROPE_FACTORS in file.shapes:
        alone = config["rope_scaling"] is None
        metadata.require(f"{arch}.rope.scaling.type", alone, f"no scaling beside the factors in {ROPE_FACTORS}")
        config["rope_scaling"] = _llama3(config["rope_theta"], head_dim, file)
    return config | (_gemma3(config, metadata) if arch == "gemma3" else {"hidden_act": "silu"})


def _whole(metadata: Settings, key: str, default: int) -> int:
    """A whole number that may be left out."""
    return metadata.whole(key) if metadata.get(key) is not None else default


def _every_layer_alike(arch: str, metadata: Settings) -> Settings:
    """The metadata with one number where a key of the architecture lists the same one for every layer."""
    alike = {
        key: value[0]
        for key, value in metadata.values.items()
        if key.startswith(f"{arch}.") and isinstance(value, list) and value and all(v == value[0] for v in value)
    }
    return Settings({**metadata.values, **alike}, metadata.where)


def _refuse_others(arch: str, metadata: Settings) -> None:
    """ValueError for a key of the architecture that is neither used nor known to change nothing, unless it is off."""
    known = USED | CHANGES_NOTHING | (USED_BY_GEMMA3 if arch == "gemma3" else set())
    for full, value in metadata.values.items():
        key = full.removeprefix(f"{arch}.")
        if key == full or key in known:
            continue
        wanted = f"{ONLY[key]}" if key in ONLY else "it left out: the forward pass has no such part"
        metadata.require(full, value == ONLY[key] if key in ONLY else not value, wanted)


def _rope_scaling(arch: str, metadata: Settings) -> dict[str, Any] | None:
    """Hugging Face's rope_scaling, where the metadata ask for one.

    A type that is left out is linear, a factor that is left out or 0 is 1. In files from before August 2023 the factor
    is called rope.scale_linear. With YaRN, `attn_factor` multiplies what the factor comes to.
    """
    prefix = f"{arch}.rope.scaling"
    kind = metadata.get(f"{prefix}.type", "linear")
    metadata.require(f"{prefix}.type", kind in ("none", "linear", "yarn"), "none, linear or yarn")
    factor = metadata.number(f"{prefix}.factor", metadata.number(f"{arch}.rope.scale_linear", 0)) or 1.0
    attention = _decimal(metadata.number(f"{prefix}.attn_factor", 1.0))
    metadata.require(f"{prefix}.attn_factor", kind == "yarn" or attention == 1, f"1 with a scaling of type {kind}")
    if kind == "none" or (kind == "linear" and factor == 1):
        return None
    scaling: dict[str, Any] = {"rope_type": kind, "factor": _decimal(factor)}
    if kind == "yarn":
        trained = f"{prefix}.original_context_length"
        length = metadata.whole(f"{arch}.context_length")
        scaling["original_max_position_embeddings"] = _whole(metadata, trained, length)
        for name in ("beta_fast", "beta_slow"):
            if metadata.get(f"{prefix}.yarn_{name}") is not None:
                scaling[name] = _decimal(metadata.number(f"{prefix}.yarn_{name}"))
        if attention != 1:
            scaling["attention_factor"] = attention * (0.1 * math.log(max(factor, 1)) + 1)
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
    period = _whole(metadata, "gemma3.attention.sliding_window_pattern", GEMMA3_PERIOD)
    return {
        "hidden_activation": "gelu_pytorch_tanh",
        "query_pre_attn_scalar": per_head if layers == GEMMA3_27B_LAYERS else config["head_dim"],
        "rope_local_base_freq": _decimal(metadata.number("gemma3.rope.freq_base_swa", 10_000.0)),
        "sliding_window": metadata.whole("gemma3.attention.sliding_window"),
        "layer_types": ["sliding_attention" if (n + 1) % period else "full_attention" for n in range(layers)],
    }


def _decimal(value: float) -> float:
    """The shortest decimal that is this float32: 1e-05, where the metadata give 9.999999747378752e-06."""
    return float(str(np.float32(value)))
