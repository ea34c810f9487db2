"""Small models of every family, as arguments of transformers' config classes: the ones that both engines must agree on.

Each family has a few shapes; its first shape is tried with every rotation too. The prompt is longer than all windows
and than the positions that a scaled rotation was trained on.
"""

from __future__ import annotations

from typing import Any

PROMPT, NEW = 80, 64  # tokens read, tokens then generated greedily
TRAINED = 48  # positions that scaled rotations were trained on

SIZE = {"hidden_size": 24, "intermediate_size": 40, "vocab_size": 61, "max_position_embeddings": 256}


def shape(layers: int, heads: int, kv_heads: int, head_dim: int | None, **more: Any) -> dict[str, Any]:
    dims = {"num_hidden_layers": layers, "num_attention_heads": heads, "num_key_value_heads": kv_heads}
    return {**SIZE, **dims, **({} if head_dim is None else {"head_dim": head_dim}), **more}


SHAPES: dict[str, dict[str, dict[str, Any]]] = {
    "llama": {
        "tied": shape(2, 4, 4, None, tie_word_embeddings=True),
        "untied-G3": shape(2, 6, 2, 10, tie_word_embeddings=False),
        "G8-biases": shape(3, 8, 1, 14, attention_bias=True, rms_norm_eps=1e-5),
    },
    "mistral": {
        "window": shape(2, 4, 2, None, sliding_window=7),
        "no-window": shape(2, 4, 1, 18, sliding_window=None, tie_word_embeddings=True),
    },
    "qwen2": {
        "tied": shape(2, 4, 2, None, tie_word_embeddings=True),
        "untied-G6": shape(2, 6, 1, None, tie_word_embeddings=False),
        "windows": shape(3, 3, 3, None, use_sliding_window=True, sliding_window=9, max_window_layers=1),
    },
    "qwen3": {
        "tied": shape(2, 4, 2, 14, tie_word_embeddings=True),
        "untied-G8-biases": shape(2, 8, 1, 6, tie_word_embeddings=False, attention_bias=True),
        "windows": shape(3, 3, 1, 20, use_sliding_window=True, sliding_window=9, max_window_layers=2),
    },
    "gemma3_text": {
        "six-layers": shape(6, 4, 2, 10, sliding_window=11, query_pre_attn_scalar=17),
        "untied": shape(3, 3, 1, 8, sliding_window=5, sliding_window_pattern=2, tie_word_embeddings=False),
        "biases": shape(
            2, 4, 4, 12, sliding_window=6, attention_bias=True, layer_types=["full_attention", "sliding_attention"]
        ),
    },
    "gemma3": {},
    "smollm3": {
        "tied": shape(4, 4, 2, None),
        "untied-biases": shape(3, 6, 1, None, tie_word_embeddings=False, attention_bias=True, no_rope_layers=[0, 1, 1]),
        "windows": shape(4, 2, 1, None, use_sliding_window=True, sliding_window=8, no_rope_layer_interval=2),
    },
}
