"""From a checkpoint on disk to a ModelConfig and the arrays that the forward pass reads.

One path for all formats: a `Source` gives a Hugging Face config and tensors under their Hugging Face names, the family
of that name says what they are, and an adapter may be added to them on the way.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import ml_dtypes
import numpy as np
from tokenizers import Tokenizer

from loaders.adapted import Adapted
from loaders.chat import ChatTemplate, load_template
from loaders.experts import apart
from loaders.families import family_of
from loaders.generation import Generation, load_generation
from loaders.gguf import GGUF
from loaders.huggingface import HuggingFace
from loaders.lora import Adapter
from loaders.scaled import multiplied_out
from loaders.source import Source
from loaders.tokenizer import load_tokenizer
from loaders.weights import WeightReader
from reference import ModelConfig, Weights
from reference.checks import require

DTYPES = {
    "float32": np.dtype(np.float32),
    "float64": np.dtype(np.float64),
    "float16": np.dtype(np.float16),
    "bfloat16": np.dtype(ml_dtypes.bfloat16),
    "int8": np.dtype(np.int8),  # groups of 32 with a scale (reference/int8.py)
}


@dataclass(frozen=True)
class Checkpoint:
    """A loaded model. What goes with its text is read when it is first asked for: a model without a tokenizer still
    computes, and says what is missing only where text is wanted."""

    config: ModelConfig
    weights: Weights
    source: Source

    @property
    def path(self) -> Path:
        """The directory or file that it came from."""
        return self.source.path

    @cached_property
    def tokenizer(self) -> Tokenizer:
        """Text to token ids and back. Raises FileNotFoundError where the checkpoint has none."""
        return load_tokenizer(self.source)

    @cached_property
    def template(self) -> ChatTemplate | None:
        """From messages to text, or None where the checkpoint has no chat template."""
        return load_template(self.source)

    @cached_property
    def generation(self) -> Generation:
        """The tokens that start and end a text, and how its authors sample."""
        return load_generation(self.source, self.tokenizer)


def load_checkpoint(
    path: str | os.PathLike[str],
    *,
    dtype: str = "float32",
    adapter: str | os.PathLike[str] | None = None,
    stored_experts: bool = False,
) -> Checkpoint:
    """Load a Hugging Face model directory or a GGUF file, matrices as `dtype`: float32, float64, float16, bfloat16, or
    int8, which has a scale for each 32 numbers of a row, and which a Q8_0 GGUF file already is.

    adapter: a directory with a LoRA or AdaLoRA adapter in PEFT's layout, merged into the weights.
    stored_experts: those of a mixture are `StoredExperts`: each is read, and its numbers checked, when it is asked for.
    Raises FileNotFoundError where a file is missing, ValueError naming file and tensor or key for anything in them that
    cannot be right or is not supported.
    """
    require(dtype in DTYPES, f"dtype: got {dtype!r}, wanted one of {', '.join(DTYPES)}")
    try:
        return _load(Path(path), DTYPES[dtype], None if adapter is None else Path(adapter), stored_experts)
    except MemoryError:
        raise ValueError(f"{path}: got a checkpoint that needs more memory than there is, wanted it smaller") from None


def _load(path: Path, dtype: np.dtype, adapter: Path | None, stored_experts: bool) -> Checkpoint:
    source = open_source(path)
    where = str(source.path / "config.json" if source.path.is_dir() else source.path)
    family = family_of(source.config.get("model_type"), where)
    settings = family.settings(source.config, where)
    config = family.model_config(settings)
    if adapter is not None:
        source = Adapted(source, Adapter(adapter), family)
    reader = WeightReader(source, family, settings, config)
    if isinstance(source, Adapted):
        source.check(reader.names.values())
    weights = reader.read_all(dtype, stored_experts=stored_experts)
    return Checkpoint(replace(config, tied=weights.output is weights.embedding), weights, source)


def open_source(path: Path) -> Source:
    """The reader of whatever is at `path`. Raises FileNotFoundError where there is nothing."""
    if not path.exists():
        raise FileNotFoundError(f"{path}: got no such file or directory, wanted a model directory or a .gguf file")
    if path.is_dir():
        return apart(multiplied_out(HuggingFace(path)))
    require(path.suffix == ".gguf", f"{path}: got a file, wanted a model directory or a .gguf file")
    return apart(GGUF(path))
