"""gemma2: a norm on both sides of attention and of the FFN, a window in every other layer, and soft caps on attention's
scores and on the logits.

Embeddings are multiplied by √E and norm weights stored as w for 1 + w.
"""

from typing import Any

from loaders.family import ACTIVATIONS, CAPS, LLAMA_NAMES, Family, windows_of
from loaders.settings import Settings

NAMES = {
    **LLAMA_NAMES,
    "post_attention_norm": "post_attention_layernorm.weight",
    "ffn_norm": "pre_feedforward_layernorm.weight",
    "post_ffn_norm": "post_feedforward_layernorm.weight",
}


def differences(settings: Settings) -> dict[str, Any]:
    """Windows in the even layers, and Gemma's scales and caps."""
    even = [n % 2 == 0 for n in range(settings.whole("num_hidden_layers"))]
    return {"windows": windows_of(settings, even), **scales(settings)}


def scales(settings: Settings) -> dict[str, Any]:
    """What Gemma 2 and 3 multiply by, cap by and activate with."""
    scores, logits = (None if settings.get(key) is None else settings.number(key) for key in CAPS)
    return {
        "attention_scale": settings.number("query_pre_attn_scalar") ** -0.5,
        "activation": settings.choice("hidden_activation", ACTIVATIONS),
        "embedding_scale": settings.whole("hidden_size") ** 0.5,
        "score_cap": scores,
        "logit_cap": logits,
    }


DEFAULTS = {
    "vocab_size": 256_000,
    "hidden_size": 2304,
    "intermediate_size": 9216,
    "num_hidden_layers": 26,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "head_dim": 256,
    "max_position_embeddings": 8192,
    "hidden_activation": "gelu_pytorch_tanh",
    "query_pre_attn_scalar": 256,
    "sliding_window": 4096,
    "attn_logit_softcapping": 50.0,
    "final_logit_softcapping": 30.0,
    "tie_word_embeddings": True,
}
FAMILIES = (Family("gemma2", DEFAULTS, differences, NAMES, norm_offset=1.0, parts=CAPS),)
