"""Small GGUF files, written with the gguf package's own writer, for the tests that read them.

`stored` applies to Hugging Face tensors what the format's converter does to them, entry by entry as the format says:
the oracle for everything that the reader undoes.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from gguf import GGMLQuantizationType, GGUFWriter, quants

from tests.loaders.files import draw

LAYERS, WIDTH, HEADS, KV_HEADS, HEAD_DIM, FFN, VOCAB = 2, 32, 4, 2, 8, 64, 12
SIZES = {
    "block_count": LAYERS,
    "context_length": 256,
    "embedding_length": WIDTH,
    "feed_forward_length": FFN,
    "attention.head_count": HEADS,
    "attention.head_count_kv": KV_HEADS,
    "attention.layer_norm_rms_epsilon": 1e-6,
    "rope.freq_base": 50_000.0,
}
TOKENS = ["<|endoftext|>", "a", "b", "c", "Ġ", "ab", "Ġa", "abc", "<|im_end|>", "<x>", "1", "[PAD]"]
TYPES = [3, 1, 1, 1, 1, 1, 1, 1, 3, 4, 1, 5]
TOKENIZER = {
    "tokenizer.ggml.model": "gpt2",
    "tokenizer.ggml.pre": "smollm",
    "tokenizer.ggml.tokens": TOKENS,
    "tokenizer.ggml.token_type": TYPES,
    "tokenizer.ggml.merges": ["a b", "Ġ a", "ab c"],
    "tokenizer.ggml.bos_token_id": 0,
    "tokenizer.ggml.eos_token_id": 8,
    "tokenizer.chat_template": "{% for m in messages %}{{ m.content }}<|im_end|>{% endfor %}",
}
COMMON = {
    "attn_norm.weight": ("input_layernorm.weight", (WIDTH,)),
    "attn_q.weight": ("self_attn.q_proj.weight", (HEADS * HEAD_DIM, WIDTH)),
    "attn_k.weight": ("self_attn.k_proj.weight", (KV_HEADS * HEAD_DIM, WIDTH)),
    "attn_v.weight": ("self_attn.v_proj.weight", (KV_HEADS * HEAD_DIM, WIDTH)),
    "attn_output.weight": ("self_attn.o_proj.weight", (WIDTH, HEADS * HEAD_DIM)),
    "ffn_norm.weight": ("post_attention_layernorm.weight", (WIDTH,)),
    "ffn_gate.weight": ("mlp.gate_proj.weight", (FFN, WIDTH)),
    "ffn_up.weight": ("mlp.up_proj.weight", (FFN, WIDTH)),
    "ffn_down.weight": ("mlp.down_proj.weight", (WIDTH, FFN)),
}
HEAD_NORMS = {
    "attn_q_norm.weight": ("self_attn.q_norm.weight", (HEAD_DIM,)),
    "attn_k_norm.weight": ("self_attn.k_norm.weight", (HEAD_DIM,)),
}
BIASES = {
    "attn_q.bias": ("self_attn.q_proj.bias", (HEADS * HEAD_DIM,)),
    "attn_k.bias": ("self_attn.k_proj.bias", (KV_HEADS * HEAD_DIM,)),
    "attn_v.bias": ("self_attn.v_proj.bias", (KV_HEADS * HEAD_DIM,)),
}
# Names of a layer's tensors in the GGUF, and in the Hugging Face checkpoint, with their shapes there.
AFTER = {
    "post_attention_norm.weight": ("post_attention_layernorm.weight", (WIDTH,)),
    "post_ffw_norm.weight": ("post_feedforward_layernorm.weight", (WIDTH,)),
}
SANDWICH = COMMON | AFTER | {"ffn_norm.weight": ("pre_feedforward_layernorm.weight", (WIDTH,))}
PARTS: dict[str, dict[str, tuple[str, tuple[int, ...]]]] = {
    "llama": COMMON,
    "qwen2": COMMON | BIASES,
    "qwen3": COMMON | HEAD_NORMS,
    "gemma2": SANDWICH,
    "gemma3": SANDWICH | HEAD_NORMS,
    "granite": COMMON,
    "olmo2": {name: part for name, part in COMMON.items() if name not in ("attn_norm.weight", "ffn_norm.weight")}
    | AFTER
    | {
        "attn_q_norm.weight": ("self_attn.q_norm.weight", (HEADS * HEAD_DIM,)),
        "attn_k_norm.weight": ("self_attn.k_norm.weight", (KV_HEADS * HEAD_DIM,)),
    },
    "phi3": {
        name: part for name, part in COMMON.items() if name.endswith(("norm.weight", "output.weight", "down.weight"))
    }
    | {
        "attn_qkv.weight": ("self_attn.qkv_proj.weight", ((HEADS + 2 * KV_HEADS) * HEAD_DIM, WIDTH)),
        "ffn_up.weight": ("mlp.gate_up_proj.weight", (2 * FFN, WIDTH)),
    },
}


OWN: dict[str, dict[str, Any]] = {  # keys that a file of this architecture has besides
    "gemma2": {"attention.sliding_window": 16, "attn_logit_softcapping": 0.5, "final_logit_softcapping": 1.5},
    "gemma3": {"attention.sliding_window": 16},
    "granite": {"embedding_scale": 6.0, "attention.scale": 0.5, "residual_scale": 0.25, "logit_scale": 4.0},
    "phi3": {"attention.sliding_window": 16},
}


def names(arch: str, *, tied: bool) -> dict[str, tuple[str, tuple[int, ...]]]:
    """Every tensor's GGUF name, with its Hugging Face name and shape."""
    outer = {
        "token_embd.weight": ("model.embed_tokens.weight", (VOCAB, WIDTH)),
        "output_norm.weight": ("model.norm.weight", (WIDTH,)),
        **({} if tied else {"output.weight": ("lm_head.weight", (VOCAB, WIDTH))}),
    }
    layers = {
        f"blk.{n}.{part}": (f"model.layers.{n}.{name}", shape)
        for n in range(LAYERS)
        for part, (name, shape) in PARTS[arch].items()
    }
    return outer | layers


def tensors(arch: str, *, tied: bool = True, seed: int = 0) -> dict[str, np.ndarray]:
    """Random tensors of a small model of this architecture, as a Hugging Face checkpoint has them."""
    offset = 1.0 if arch.startswith("gemma") else 0.0
    return {name: draw(name, shape, seed=seed, norm_offset=offset) for name, shape in names(arch, tied=tied).values()}


def metadata(arch: str, **changes: Any) -> dict[str, Any]:
    """The keys of a small model's GGUF. `changes` replace them (dots written as __); None leaves one out."""
    keys: dict[str, Any] = {f"{arch}.{key}": value for key, value in SIZES.items()} | TOKENIZER
    keys |= {f"{arch}.{key}": value for key, value in OWN.get(arch, {}).items()}
    keys |= {key.replace("__", "."): value for key, value in changes.items()}
    return {key: value for key, value in keys.items() if value is not None}


def stored(arch: str, name: str, x: np.ndarray) -> np.ndarray:
    """A Hugging Face tensor as a GGUF of this architecture holds it."""
    if arch.startswith("gemma") and name.endswith("norm.weight"):
        return x + 1
    heads = HEADS if ".attn_q." in name else KV_HEADS if ".attn_k." in name else 0
    if arch not in ("llama", "granite") or not heads:
        return x
    y = np.empty_like(x)
    for head in range(heads):
        for pair in range(HEAD_DIM // 2):
            for half in range(2):  # row `pair` of this half of the head becomes one of two neighbours
                y[head * HEAD_DIM + 2 * pair + half] = x[head * HEAD_DIM + half * (HEAD_DIM // 2) + pair]
    return y


def write_gguf(
    path: Path,
    arch: str,
    hugging_face: Mapping[str, np.ndarray],
    keys: Mapping[str, Any],
    *,
    kinds: Mapping[str, GGMLQuantizationType] | None = None,
    extra: Mapping[str, np.ndarray] | None = None,
) -> Path:
    """A GGUF file of these Hugging Face tensors. `kinds` quantises some, by GGUF name; `extra` goes in as it is, bytes
    as blocks of the kind given."""
    ours = {name: stored for stored, (name, _) in names(arch, tied=False).items()} if hugging_face else {}
    whole = {ours[name]: stored(arch, ours[name], x) for name, x in hugging_face.items()} | dict(extra or {})
    writer = GGUFWriter(path, arch)
    for key, value in keys.items():
        add = {str: writer.add_string, bool: writer.add_bool, int: writer.add_uint32, float: writer.add_float32}
        add.get(type(value), writer.add_array)(key, value)
    for name, x in whole.items():
        kind = (kinds or {}).get(name)
        blocks = x if kind is None or x.dtype == np.uint8 else quants.quantize(x, kind)
        writer.add_tensor(name, blocks, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path
