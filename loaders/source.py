"""What every checkpoint format looks like to the rest of `loaders`: a Hugging Face config and named tensors.

A directory of safetensors files and a GGUF file differ only below this line. Above it there is one path: a family reads
`config`, asks for tensors under their Hugging Face names, and never learns what they were stored as.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Protocol

import numpy as np

from reference import Int8


class Source(Protocol):
    """An opened checkpoint.

    `path` is what the user named, a directory or a file. `config` is the content of a Hugging Face config.json.
    """

    path: Path
    config: dict[str, Any]

    def names(self) -> list[str]:
        """Every tensor's name as in Hugging Face checkpoints, e.g. "model.layers.0.self_attn.q_proj.weight"."""
        ...

    def shape(self, name: str) -> tuple[int, ...]:
        """The tensor's shape, without reading it."""
        ...

    def tensor(self, name: str) -> np.ndarray:
        """The tensor in its stored dtype (bfloat16 as ml_dtypes.bfloat16), matrices (out, in), memory-mapped where the
        format allows. Raises ValueError naming the file where there is no tensor of that name."""
        ...

    def eight_bits(self, name: str) -> Int8 | None:
        """The matrix as it stands, where the file holds it in groups of 8-bit numbers as `Int8` means them."""
        ...

    def let_go(self) -> None:
        """Keep nothing of the files in memory: what is asked for again is read again."""
        ...

    def file_of(self, name: str) -> Path:
        """The file that holds the tensor, for error lines."""
        ...

    def text(self, name: str) -> str | None:
        """The text file of that name that belongs to the checkpoint, e.g. "tokenizer.json", or None where there is
        none. A GGUF file makes them from its metadata."""
        ...

    def texts_in(self, folder: str, suffix: str) -> list[str]:
        """The names, less `suffix`, of the text files in a folder of the checkpoint, sorted."""
        ...


class Files(Source, Protocol):
    """A checkpoint as its files have it. `part` asks for one matrix of a stack (X, out, in), so that no more is
    read."""

    def tensor(self, name: str, part: int | None = None) -> np.ndarray:
        """The tensor, or x[part] of it."""
        ...

    def eight_bits(self, name: str, part: int | None = None) -> Int8 | None:
        """The matrix as it stands, or that part of a stack."""
        ...
