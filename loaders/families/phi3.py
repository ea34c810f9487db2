"""phi3 (Phi-3, Phi-4-mini): Llama whose queries, keys and values are one tensor, and gate and up another; a head may
rotate in part, and long texts by factors of their own (LongRoPE)."""

from typing import Any

from loaders.family import LLAMA_NAMES, Family
from loaders.rope import read_rope
from loaders.settings import Settings

QKV, GATE_UP = "self_attn.qkv_proj.weight", "mlp.gate_up_proj.weight"
NAMES = {**LLAMA_NAMES, **dict.fromkeys(("w_q", "w_k", "w_v"), QKV), **dict.fromkeys(("w_gate", "w_up"), GATE_UP)}
SCALINGS = {"default": "none", **dict.fromkeys(("longrope", "su", "yarn"), "longrope")}  # the older names of it


def differences(settings: Settings) -> dict[str, Any]:
    """The rotation, and one window in all layers where the config sets one."""
    layers = settings.whole("num_hidden_layers")
    window = None if settings.get("sliding_window") is None else settings.whole("sliding_window")
    return {"ropes": (read_rope(settings, SCALINGS, partial=True),) * layers, "windows": (window,) * layers}


DEFAULTS = {"rms_norm_eps": 1e-5, "max_position_embeddings": 4096, "original_max_position_embeddings": 4096}
FAMILIES = (Family("phi3", DEFAULTS, differences, NAMES, biases={}),)
