"""A checkpoint of a known shape with random weights in bfloat16: `python -m benchmarks.shape DIRECTORY [FAMILY]`.

llama is Llama-3.2-1B; qwen3_moe, deepseek_v3 and axk1 (A.X K1) are mixtures of experts of these families' kind, in half
a GB. How fast a dense model is does not depend on what it learned, so that they serve where no model can be fetched:

    python -m benchmarks.peers --model DIRECTORY --tokens 2048 --dtypes float32,bfloat16 --only dense,QUOKA,transformers

A mixture's random router sends tokens to all experts alike, which no trained one does.
"""

from __future__ import annotations

import argparse
import shutil
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM

from benchmarks.common import MODEL
from loaders import catalogue

_LATENT = {
    "hidden_size": 1024, "num_hidden_layers": 5, "first_k_dense_replace": 1, "intermediate_size": 2816,
    "n_routed_experts": 48, "num_experts_per_tok": 6, "moe_intermediate_size": 320, "n_group": 8, "topk_group": 4,
    "num_attention_heads": 16, "num_key_value_heads": 16, "q_lora_rank": 384, "kv_lora_rank": 256,
    "qk_nope_head_dim": 64, "qk_rope_head_dim": 32, "v_head_dim": 64,
    "vocab_size": 49_152, "max_position_embeddings": 8192, "tie_word_embeddings": True,
}  # fmt: skip
SHAPES: dict[str, dict[str, Any]] = {
    "llama": {
        "hidden_size": 2048, "num_hidden_layers": 16, "num_attention_heads": 32, "num_key_value_heads": 8,
        "head_dim": 64, "intermediate_size": 8192, "vocab_size": 128_256, "max_position_embeddings": 131_072,
        "tie_word_embeddings": True,
    },
    "qwen3_moe": {
        "hidden_size": 1024, "num_hidden_layers": 5, "num_attention_heads": 16, "num_key_value_heads": 4,
        "head_dim": 64, "num_experts": 32, "num_experts_per_tok": 4, "moe_intermediate_size": 384,
        "vocab_size": 49_152, "max_position_embeddings": 8192, "tie_word_embeddings": True,
    },
    "deepseek_v3": _LATENT,
    "axk1": _LATENT,
}  # fmt: skip


def write(directory: Path, family: str, tokenizer: str = MODEL, **changes: Any) -> None:
    """The model with another's tokenizer, whose ids are among its; `changes` replace numbers of its shape."""
    torch.manual_seed(0)
    config = AutoConfig.for_model(family, **{**SHAPES[family], **changes})
    AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16).save_pretrained(directory)
    for file in catalogue.find(tokenizer).glob("tokenizer*.json"):
        shutil.copy(file, directory)


def main() -> None:
    known = argparse.ArgumentParser(prog="python -m benchmarks.shape")
    known.add_argument("directory", type=Path, help="where the checkpoint is written: 2.5 GB, or 0.5 GB of a mixture")
    known.add_argument("family", nargs="?", choices=SHAPES, default="llama", help="default: %(default)s")
    write(**vars(known.parse_args()))


if __name__ == "__main__":
    main()
