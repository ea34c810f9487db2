"""A GGUF's metadata as the content of a Hugging Face config.json.

    llama.block_count = 30, llama.context_length = 8192, …  ->  {"num_hidden_layers": 30, …}

Three things are not written as they are meant. Llama 3's frequency scaling is a tensor of the factors that it comes to,
and is recognised by computing them. Phi-3's two lists of factors are tensors too. The fixed values of Gemma 2 and 3
(their activation, the pattern of their layers, the 27B's attention scale) are left out, and stand here.

Every key of the architecture is used, known to change nothing, or refused: one that is passed over could be another
model's. A zero, an empty text and false switch off what a key stands for.

Source: gguf-py/gguf/constants.py, convert_hf_to_gguf.py and src/llama-model.cpp of github.com/ggml-org/llama.cpp.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from typing import Any

import numpy as np
from gguf import Keys

from loaders.family import MOST_LAYERS
from loaders.gguf import deepseek
from loaders.gguf.decimal import decimal
from loaders.gguf.file import GGUFFile
from loaders.gguf.special import special_ids
from loaders.settings import Settings
from reference.checks import require
from reference.config import Rope

MODEL_TYPES = {
    "llama": "llama",  # or mixtral, where it has experts
    "qwen2": "qwen2",
    "qwen3": "qwen3",
    "qwen3moe": "qwen3_moe",
    "gemma2": "gemma2",
    "gemma3": "gemma3_text",
    "granite": "granite",
    "olmo2": "olmo2",
    "phi3": "phi3",
    "deepseek2": "deepseek_v3",
}
SCALE_LINEAR = "{arch}.rope.scale_linear"  # until August 2023; gguf has forgotten it
USED = {
    Keys.LLM.BLOCK_COUNT,
    Keys.LLM.CONTEXT_LENGTH,
    Keys.LLM.EMBEDDING_LENGTH,
    Keys.LLM.FEED_FORWARD_LENGTH,
    Keys.Attention.HEAD_COUNT,
    Keys.Attention.HEAD_COUNT_KV,
    Keys.Attention.KEY_LENGTH,
    Keys.Attention.VALUE_LENGTH,
    Keys.Attention.LAYERNORM_RMS_EPS,
    Keys.Rope.DIMENSION_COUNT,
    Keys.Rope.FREQ_BASE,
    SCALE_LINEAR,
    Keys.Rope.SCALING_TYPE,
    Keys.Rope.SCALING_FACTOR,
    Keys.Rope.SCALING_ORIG_CTX_LEN,
    Keys.Rope.SCALING_ATTN_FACTOR,
    Keys.Rope.SCALING_YARN_BETA_FAST,
    Keys.Rope.SCALING_YARN_BETA_SLOW,
}
EXPERTS = {Keys.LLM.EXPERT_COUNT, Keys.LLM.EXPERT_USED_COUNT}
FACTORS = {  # of Granite, by what its config calls them
    "embedding_multiplier": Keys.LLM.EMBEDDING_SCALE,
    "attention_multiplier": Keys.Attention.SCALE,
    "residual_multiplier": Keys.LLM.RESIDUAL_SCALE,
    "logits_scaling": Keys.LLM.LOGIT_SCALE,
}
CAPS = {
    "attn_logit_softcapping": Keys.LLM.ATTN_LOGIT_SOFTCAPPING,
    "final_logit_softcapping": Keys.LLM.FINAL_LOGIT_SOFTCAPPING,
}
USED_BY = {
    "gemma2": {Keys.Attention.SLIDING_WINDOW, *CAPS.values()},
    "gemma3": {Keys.Attention.SLIDING_WINDOW, Keys.Attention.SLIDING_WINDOW_PATTERN, Keys.Rope.FREQ_BASE_SWA},
    "granite": {*FACTORS.values()},
    "llama": EXPERTS,
    "phi3": {Keys.Attention.SLIDING_WINDOW},
    "qwen3moe": EXPERTS | {Keys.LLM.EXPERT_FEED_FORWARD_LENGTH},
    "deepseek2": deepseek.KEYS,
}
CHANGES_NOTHING = {
    Keys.LLM.VOCAB_SIZE,  # the embedding has it
    Keys.LLM.TENSOR_DATA_LAYOUT,
    Keys.Attention.LAYERNORM_EPS,  # of a norm that these architectures do not have
    Keys.LLM.EXPERT_USED_COUNT,  # of experts that are refused
    Keys.Rope.SCALING_FINETUNED,
    Keys.LLM.POOLING_TYPE,  # for embeddings of whole texts
}
ONLY = {Keys.Attention.CAUSAL: True, Keys.Rope.SCALING_YARN_EXT_FACTOR: 1, Keys.Rope.SCALING_YARN_ATTN_FACTOR: 1}
BIASED = ("attn_q.bias", "attn_k.bias", "attn_v.bias", "attn_output.bias")
EMBEDDING, OUTPUT, ROPE_FACTORS = "token_embd.weight", "output.weight", "rope_freqs.weight"
LONGROPE_FACTORS = {"short_factor": "rope_factors_short.weight", "long_factor": "rope_factors_long.weight"}
LLAMA3 = {"low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}
GEMMA3_PERIOD = 6  # five local layers, then a global one
GEMMA_27B_LAYERS = {
    "gemma2": 46,
    "gemma3": 62,
}  # the one size that scales attention by the width per head, not head_dim


def hugging_face_config(arch: str, metadata: Settings, file: GGUFFile) -> dict[str, Any]:
    """The config.json of the model in a GGUF file. Raises ValueError naming the key that is missing or wrong."""
    require(EMBEDDING in file.shapes, f"{file.path}: tensor {EMBEDDING!r}: got no such tensor, wanted it here")
    metadata = _every_layer_alike(arch, metadata)
    _refuse_others(arch, metadata)
    at = _of(arch)
    heads, width = metadata.whole(at(Keys.Attention.HEAD_COUNT)), metadata.whole(at(Keys.LLM.EMBEDDING_LENGTH))
    head_dim = _whole(metadata, at(Keys.Attention.KEY_LENGTH), width // heads)
    alike = [(Keys.Attention.VALUE_LENGTH, "as wide as keys"), (Keys.Rope.DIMENSION_COUNT, "no partial rotation")]
    alike = alike[: {"deepseek2": 0, "phi3": 1}.get(arch)]
    for key, what in alike:
        metadata.require(at(key), metadata.get(at(key), head_dim) == head_dim, f"{head_dim}: {what}")
    config = {
        "model_type": MODEL_TYPES[arch],
        "vocab_size": file.shapes[EMBEDDING][0],
        "hidden_size": width,
        "intermediate_size": metadata.whole(at(Keys.LLM.FEED_FORWARD_LENGTH)),
        "num_hidden_layers": metadata.whole(at(Keys.LLM.BLOCK_COUNT), MOST_LAYERS),
        "num_attention_heads": heads,
        "num_key_value_heads": _whole(metadata, at(Keys.Attention.HEAD_COUNT_KV), heads),
        "head_dim": head_dim,
        "max_position_embeddings": metadata.whole(at(Keys.LLM.CONTEXT_LENGTH)),
        "rms_norm_eps": decimal(metadata.number(at(Keys.Attention.LAYERNORM_RMS_EPS))),
        "rope_theta": decimal(metadata.number(at(Keys.Rope.FREQ_BASE), 10_000.0)),
        "rope_scaling": _longrope(metadata, file) if arch == "phi3" else _rope_scaling(arch, metadata),
        "attention_bias": arch != "qwen2" and any(name.endswith(BIASED) for name in file.shapes),
        "tie_word_embeddings": OUTPUT not in file.shapes,
        "dtype": "float32",
        **special_ids(metadata),
    }
    if ROPE_FACTORS in file.shapes:
        alone = config["rope_scaling"] is None
        metadata.require(at(Keys.Rope.SCALING_TYPE), alone, f"no scaling beside the factors in {ROPE_FACTORS}")
        config["rope_scaling"] = _llama3(config["rope_theta"], head_dim, file)
    own = OWN.get(arch)
    config |= own(config, metadata) if own else {}
    config |= _experts(arch, metadata)
    return config if "hidden_activation" in config else config | {"hidden_act": "silu"}


def _of(arch: str) -> Callable[[str], str]:
    """How gguf's keys, such as "{arch}.block_count", read for an architecture."""
    return lambda key: key.format(arch=arch)


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
    known = USED | CHANGES_NOTHING | USED_BY.get(arch, set())
    for full, value in metadata.values.items():
        key = re.sub(rf"^{arch}\.", "{arch}.", full)
        if key == full or key in known:
            continue
        wanted = f"{ONLY[key]}" if key in ONLY else "it left out: the forward pass has no such part"
        metadata.require(full, value == ONLY[key] if key in ONLY else not value, wanted)


def _rope_scaling(arch: str, metadata: Settings) -> dict[str, Any] | None:
    """Hugging Face's rope_scaling, where the metadata ask for one.

    A type that is left out is linear, a factor that is left out or 0 is 1. In files from before August 2023 the factor
    is called rope.scale_linear. With YaRN, `attn_factor` multiplies what the factor comes to.
    """
    at = _of(arch)
    kind = metadata.get(at(Keys.Rope.SCALING_TYPE), "linear")
    metadata.require(at(Keys.Rope.SCALING_TYPE), kind in ("none", "linear", "yarn"), "none, linear or yarn")
    factor = metadata.number(at(Keys.Rope.SCALING_FACTOR), metadata.number(at(SCALE_LINEAR), 0)) or 1.0
    scale = at(Keys.Rope.SCALING_ATTN_FACTOR)
    attention = decimal(metadata.number(scale, 1.0))
    metadata.require(scale, kind == "yarn" or attention == 1, f"1 with a scaling of type {kind}")
    if kind == "none" or (kind == "linear" and factor == 1):
        return None
    scaling: dict[str, Any] = {"rope_type": kind, "factor": decimal(factor)}
    if kind == "yarn":
        trained = at(Keys.Rope.SCALING_ORIG_CTX_LEN)
        length = metadata.whole(at(Keys.LLM.CONTEXT_LENGTH))
        scaling["original_max_position_embeddings"] = _whole(metadata, trained, length)
        betas = {"beta_fast": Keys.Rope.SCALING_YARN_BETA_FAST, "beta_slow": Keys.Rope.SCALING_YARN_BETA_SLOW}
        for name, key in betas.items():
            if metadata.get(at(key)) is not None:
                scaling[name] = decimal(metadata.number(at(key)))
        if attention != 1:
            scaling["attention_factor"] = attention * (0.1 * math.log(max(factor, 1)) + 1)
    return scaling


def _llama3(theta: float, head_dim: int, file: GGUFFile) -> dict[str, Any]:
    """The scaling whose frequencies are the plain ones divided by the stored factors (D/2,)."""
    factors = file.tensor(ROPE_FACTORS)
    factor = decimal(factors.max())
    scaled = Rope(theta, "llama3", factor, original_positions=8192, low_freq_factor=1.0, high_freq_factor=4.0)
    wanted = Rope(theta).frequencies(head_dim, 0) / scaled.frequencies(head_dim, 0)  # (D/2,)
    require(
        factors.shape == wanted.shape and np.allclose(factors, wanted, rtol=1e-4),
        f"{file.path}: tensor {ROPE_FACTORS!r}: got factors of shape {factors.shape} up to {factor}, "
        f"wanted Llama 3's {head_dim // 2} for that factor: no other scaling by frequency is supported",
    )
    return {"rope_type": "llama3", "factor": factor, **LLAMA3}


def _experts(arch: str, metadata: Settings) -> dict[str, Any]:
    """What a mixture's config says besides. llama.cpp lets the shares of Qwen3's experts add up to 1."""
    at = _of(arch)
    if arch not in ("llama", "qwen3moe") or not metadata.get(at(Keys.LLM.EXPERT_COUNT)):
        return {}
    config: dict[str, Any] = {
        "num_local_experts": metadata.whole(at(Keys.LLM.EXPERT_COUNT)),
        "num_experts_per_tok": metadata.whole(at(Keys.LLM.EXPERT_USED_COUNT)),
    }
    if arch == "llama":
        return config | {"model_type": "mixtral"}
    width = metadata.whole(at(Keys.LLM.EXPERT_FEED_FORWARD_LENGTH))
    return config | {"moe_intermediate_size": width, "norm_topk_prob": True}


def _longrope(metadata: Settings, file: GGUFFile) -> dict[str, Any] | None:
    """Phi-3's two lists of factors (R/2,), where the file has them, and the factor on what rotates."""
    at = _of("phi3")
    kind = metadata.get(at(Keys.Rope.SCALING_TYPE), "longrope")
    metadata.require(at(Keys.Rope.SCALING_TYPE), kind in ("none", "longrope"), "none or longrope")
    there = [name in file.shapes for name in LONGROPE_FACTORS.values()]
    if not any(there):
        return None
    require(
        all(there), f"{file.path}: got one list of rotation factors, wanted {' and '.join(LONGROPE_FACTORS.values())}"
    )
    scaling: dict[str, Any] = {"rope_type": "longrope"}
    for key, name in LONGROPE_FACTORS.items():
        scaling[key] = [decimal(x) for x in file.tensor(name).ravel()]
    if metadata.get(at(Keys.Rope.SCALING_ATTN_FACTOR)) is not None:
        scaling["attention_factor"] = decimal(metadata.number(at(Keys.Rope.SCALING_ATTN_FACTOR)))
    return scaling


def _phi3(config: dict[str, Any], metadata: Settings) -> dict[str, Any]:
    """What a Phi-3 config says besides. A window of 0 is none."""
    at = _of("phi3")
    window, length = at(Keys.Attention.SLIDING_WINDOW), at(Keys.Rope.SCALING_ORIG_CTX_LEN)
    return {
        "partial_rotary_factor": _whole(metadata, at(Keys.Rope.DIMENSION_COUNT), config["head_dim"])
        / config["head_dim"],
        "original_max_position_embeddings": _whole(metadata, length, config["max_position_embeddings"]),
        "sliding_window": metadata.whole(window) if metadata.get(window) else None,
    }


def _granite(config: dict[str, Any], metadata: Settings) -> dict[str, Any]:
    """The factors of a Granite config. One that is left out or 0 changes nothing, but that of scores is 1/√D then."""
    at = _of("granite")
    rotates = metadata.get(at(Keys.Rope.SCALING_FINETUNED), True)
    metadata.require(at(Keys.Rope.SCALING_FINETUNED), rotates is True, "true: without, llama.cpp would not rotate")
    found = {name: decimal(metadata.number(at(key), 0)) for name, key in FACTORS.items()}
    plain = {name: config["head_dim"] ** -0.5 if name == "attention_multiplier" else 1.0 for name in FACTORS}
    return {name: factor or plain[name] for name, factor in found.items()}


def _gemma2(config: dict[str, Any], metadata: Settings) -> dict[str, Any]:
    """What a Gemma 2 config says otherwise or besides."""
    at = _of("gemma2")
    caps = {name: decimal(metadata.number(at(key))) for name, key in CAPS.items() if metadata.get(at(key)) is not None}
    return {**_gemma("gemma2", config), "sliding_window": metadata.whole(at(Keys.Attention.SLIDING_WINDOW)), **caps}


def _gemma(arch: str, config: dict[str, Any]) -> dict[str, Any]:
    """What Gemma 2 and 3 leave out."""
    per_head = config["hidden_size"] // config["num_attention_heads"]
    largest = config["num_hidden_layers"] == GEMMA_27B_LAYERS[arch]
    return {
        "hidden_activation": "gelu_pytorch_tanh",
        "query_pre_attn_scalar": per_head if largest else config["head_dim"],
    }


def _gemma3(config: dict[str, Any], metadata: Settings) -> dict[str, Any]:
    """What a Gemma 3 config says otherwise or besides."""
    at, layers = _of("gemma3"), config["num_hidden_layers"]
    period = _whole(metadata, at(Keys.Attention.SLIDING_WINDOW_PATTERN), GEMMA3_PERIOD)
    return {
        **_gemma("gemma3", config),
        "rope_local_base_freq": decimal(metadata.number(at(Keys.Rope.FREQ_BASE_SWA), 10_000.0)),
        "sliding_window": metadata.whole(at(Keys.Attention.SLIDING_WINDOW)),
        "layer_types": ["sliding_attention" if (n + 1) % period else "full_attention" for n in range(layers)],
    }


OWN = {"deepseek2": deepseek.deepseek2, "gemma2": _gemma2, "gemma3": _gemma3, "granite": _granite, "phi3": _phi3}
