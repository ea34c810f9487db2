"""From a checkpoint on disk to a ModelConfig and the arrays that the forward pass reads.

Every weight is looked up under its family's name, checked for its shape and for NaN and infinity, and cast to the dtype
asked for. A tensor that is stored in that dtype already stays a view of its file. Norms and biases are small and enter
sums directly, so they are never narrower than float32.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import ml_dtypes
import numpy as np
from tokenizers import Tokenizer

from loaders.chat import ChatTemplate, load_template
from loaders.families import family_of
from loaders.family import Family
from loaders.gguf import GGUF
from loaders.huggingface import HuggingFace
from loaders.settings import Settings
from loaders.source import Source
from loaders.tokenizer import Generation, load_generation, load_tokenizer
from reference import LayerWeights, ModelConfig, Weights
from reference.checks import is_float, require
from reference.weights import layer_shapes, model_shapes

DTYPES = {
    "float32": np.dtype(np.float32),
    "float64": np.dtype(np.float64),
    "float16": np.dtype(np.float16),
    "bfloat16": np.dtype(ml_dtypes.bfloat16),
}
BLOCK = 1 << 20  # elements looked at together, so that a check needs little memory beside a mapped file


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


def load_checkpoint(path: str | os.PathLike[str], *, dtype: str = "float32") -> Checkpoint:
    """Load a Hugging Face model directory or a GGUF file, matrices as `dtype`: float32, float64, float16 or bfloat16.

    Raises FileNotFoundError where a file is missing, ValueError naming file and tensor or key for anything in them that
    cannot be right or is not supported.
    """
    require(dtype in DTYPES, f"dtype: got {dtype!r}, wanted one of {', '.join(DTYPES)}")
    source = open_source(Path(path))
    where = str(source.path / "config.json" if source.path.is_dir() else source.path)
    family = family_of(source.config.get("model_type"), where)
    settings = family.settings(source.config, where)
    config = family.model_config(settings)
    return Checkpoint(config, _Reader(source, family, settings, config, DTYPES[dtype]).weights(), source)


def open_source(path: Path) -> Source:
    """The reader of whatever is at `path`. Raises FileNotFoundError where there is nothing."""
    if not path.exists():
        raise FileNotFoundError(f"{path}: got no such file or directory, wanted a model directory or a .gguf file")
    if path.is_dir():
        return HuggingFace(path)
    require(path.suffix == ".gguf", f"{path}: got a file, wanted a model directory or a .gguf file")
    return GGUF(path)


class _Reader:
    """Reads the weights of one checkpoint by their names in the forward pass."""

    def __init__(
        self, source: Source, family: Family, settings: Settings, config: ModelConfig, dtype: np.dtype
    ) -> None:
        self.source, self.family, self.config, self.dtype = source, family, config, dtype
        self.body, self.output = family.body(frozenset(source.names()), str(source.path))
        self.layer_names = family.layer_names(settings)

    def weights(self) -> Weights:
        """All of them; a tied output is the embedding itself."""
        self._refuse_unknown()
        shapes = model_shapes(self.config)
        embedding = self.read("embedding", self.body + "embed_tokens.weight", shapes["embedding"])
        return Weights(
            embedding=embedding,
            layers=tuple(self._layer(n) for n in range(self.config.layers)),
            final_norm=self.read("final_norm", self.body + "norm.weight", shapes["final_norm"]),
            output=embedding if self.config.tied else self.read("output", self.output, shapes["output"]),
        )

    def _layer(self, n: int) -> LayerWeights:
        shapes = layer_shapes(self.config)
        return LayerWeights(
            **{
                weight: self.read(weight, f"{self.body}layers.{n}.{name}", shapes[weight])
                for weight, name in self.layer_names.items()
            }
        )

    def _refuse_unknown(self) -> None:
        """A tensor in a layer that the family does not use means that the config tells of another model."""
        start = self.body + "layers."
        known = {f"{start}{n}.{name}" for n in range(self.config.layers) for name in self.layer_names.values()}
        for name in self.source.names():
            require(
                not name.startswith(start) or name in known or name.endswith("rotary_emb.inv_freq"),
                f"{self.source.file_of(name)}: tensor {name!r}: got a weight that {self.family.model_type} with "
                f"{self.config.layers} layers and this config does not have, wanted it absent",
            )

    def read(self, weight: str, name: str, shape: tuple[int, ...]) -> np.ndarray:
        """The tensor `name` as the weight of that name: checked, offset if it is a norm, and cast."""
        stored = self.source.tensor(name)
        where = f"{self.source.file_of(name)}: tensor {name!r}"
        require(stored.shape == shape, f"{where}: got shape {stored.shape}, wanted {shape} as the config says")
        require(is_float(stored.dtype), f"{where}: got dtype {stored.dtype}, wanted a floating-point type")
        wide = np.promote_types(self.dtype, np.float32) if len(shape) == 1 else self.dtype
        with np.errstate(over="ignore"):  # an overflow is reported below
            cast = stored.astype(wide, copy=False)
        if self.family.norm_offset and weight.endswith("norm"):
            cast = cast + cast.dtype.type(self.family.norm_offset)
        check_finite(where, stored, cast)
        return cast


def check_finite(where: str, stored: np.ndarray, cast: np.ndarray) -> None:
    """ValueError naming the first entry of `cast` that is NaN or infinite, and whether the cast made it so."""
    flat = cast.reshape(-1)
    for start in range(0, flat.size, BLOCK):
        bad = ~np.isfinite(flat[start : start + BLOCK])
        if bad.any():
            first = start + int(bad.argmax())
            index = tuple(int(i) for i in np.unravel_index(first, cast.shape))
            value = stored[index]
            wanted = f"one that fits {cast.dtype}" if np.isfinite(value) else "a finite number"
            raise ValueError(f"{where}: got {value} at index {index}, wanted {wanted}")
