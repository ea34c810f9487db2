"""A small random checkpoint as real files, with a tokenizer of single bytes and a chat template."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

from reference import ModelConfig

STOP = "<|im_end|>"
TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
THINKING = (  # in the manner of A.X K1: the prompt ends in an opened tag, or in a closed one
    TEMPLATE.removesuffix("{% endif %}")
    + "{{ '<think>' if enable_thinking | default(false) else '</think>' }}{% endif %}"
)


def byte_tokenizer(tags: bool | None = None) -> Tokenizer:
    """Every byte is a token, 0 to 255 in the order of the byte-level alphabet; then the two chat marks, and the two
    tags of reasoning where wanted, special tokens if True."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE({c: i for i, c in enumerate(alphabet)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(["<|im_start|>", STOP])
    if tags is not None:
        tokenizer.add_tokens([AddedToken(tag, special=tags, normalized=False) for tag in ("<think>", "</think>")])
    return tokenizer


def llama_config(**fields: object) -> dict:
    return {
        "model_type": "llama",
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 8,
        "vocab_size": 258,
        "max_position_embeddings": 256,
        "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0,
        "hidden_act": "silu",
        "tie_word_embeddings": True,
        **fields,
    }


def write_checkpoint(directory: Path, *, seed: int = 0, **fields: object) -> Path:
    """A llama directory that `thresher.load` reads; `fields` go into its config.json."""
    directory.mkdir(parents=True, exist_ok=True)
    config = llama_config(**fields)
    rng = np.random.default_rng(seed)
    e, f, d = config["hidden_size"], config["intermediate_size"], config["head_dim"]
    q, kv = config["num_attention_heads"] * d, config["num_key_value_heads"] * d
    tensors = {"model.embed_tokens.weight": (config["vocab_size"], e), "model.norm.weight": (e,)}
    for n in range(config["num_hidden_layers"]):
        tensors |= {
            f"model.layers.{n}.{name}.weight": shape
            for name, shape in {
                "input_layernorm": (e,),
                "post_attention_layernorm": (e,),
                "self_attn.q_proj": (q, e),
                "self_attn.k_proj": (kv, e),
                "self_attn.v_proj": (kv, e),
                "self_attn.o_proj": (e, q),
                "mlp.gate_proj": (f, e),
                "mlp.up_proj": (f, e),
                "mlp.down_proj": (e, f),
            }.items()
        }
    arrays = {
        name: (
            np.ones(shape)
            if len(shape) == 1
            else rng.standard_normal(shape) * (3 if "embed" in name else 1) / np.sqrt(shape[-1])
        )
        for name, shape in tensors.items()
    }
    save_file({name: array.astype(np.float32) for name, array in arrays.items()}, directory / "model.safetensors")
    byte_tokenizer().save(str(directory / "tokenizer.json"))
    for name, content in {
        "config.json": config,
        "tokenizer_config.json": {"chat_template": TEMPLATE, "eos_token": STOP},
        "generation_config.json": {"eos_token_id": 257},
    }.items():
        (directory / name).write_text(json.dumps(content), encoding="utf-8")
    return directory


def write_thinker(directory: Path, template: str = THINKING, tags: bool | None = False) -> Path:
    """A checkpoint with a template that has a switch for thinking. tags: as `byte_tokenizer` takes them."""
    return write_words(write_checkpoint(directory, vocab_size=260, max_position_embeddings=512), template, tags)


def write_words(directory: Path, template: str = THINKING, tags: bool | None = False) -> Path:
    """The tokenizer and the template of `write_thinker`, into a checkpoint with 260 ids."""
    byte_tokenizer(tags).save(str(directory / "tokenizer.json"))
    settings = {"chat_template": template, "eos_token": STOP}
    (directory / "tokenizer_config.json").write_text(json.dumps(settings), encoding="utf-8")
    return directory


def write_fastforward(path: Path, config: ModelConfig) -> Path:
    """A file of random FastForward weights for a model of that shape."""
    rng, e, f = np.random.default_rng(0), config.width, config.ffn_width
    shapes = {"q_pred": (e,), "w1": (e, 4), "w2": (4, f), "c1": (3, e), "c2": (e, 3)}
    arrays = {}
    for n in range(config.layers):
        arrays |= {f"layers.{n}.{name}": rng.standard_normal(shape, np.float32) for name, shape in shapes.items()}
        arrays[f"layers.{n}.density"] = np.array(0.5, np.float32)
    save_file(arrays, path, {"format": "thresher-fastforward-1"})
    return path
