"""A checkpoint of Llama-3.2-1B's shape with random weights in bfloat16: `python -m benchmarks.shape DIRECTORY`.

How fast a dense model is does not depend on what it learned, so that it serves where no such model can be fetched:

    python -m benchmarks.peers --model DIRECTORY --tokens 2048 --dtypes float32,bfloat16 --only dense,QUOKA,transformers
"""

from __future__ import annotations

import argparse
import shutil
from pathlib import Path

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from benchmarks.common import MODEL
from loaders import catalogue

SHAPE = {
    "hidden_size": 2048, "num_hidden_layers": 16, "num_attention_heads": 32, "num_key_value_heads": 8, "head_dim": 64,
    "intermediate_size": 8192, "vocab_size": 128_256, "max_position_embeddings": 131_072, "tie_word_embeddings": True,
}  # fmt: skip


def write(directory: Path) -> None:
    """The model, and the tokenizer of the benchmarks' own, whose ids are among its."""
    torch.manual_seed(0)
    torch.set_default_dtype(torch.bfloat16)
    LlamaForCausalLM(LlamaConfig(**SHAPE)).save_pretrained(directory)
    for file in catalogue.find(MODEL).glob("tokenizer*.json"):
        shutil.copy(file, directory)


def main() -> None:
    known = argparse.ArgumentParser(prog="python -m benchmarks.shape")
    known.add_argument("directory", type=Path, help="where the checkpoint is written: 2.5 GB")
    write(known.parse_args().directory)


if __name__ == "__main__":
    main()
