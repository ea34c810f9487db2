"""A Hugging Face model directory: config.json beside model.safetensors, or beside shards that an index lists.

model.safetensors.index.json   {"weight_map": {"model.norm.weight": "model-00002-of-00002.safetensors", …}}
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from loaders.settings import Settings, json_object, shown
from loaders.tensors import TensorFile
from reference import Int8
from reference.checks import require

SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"


class HuggingFace:
    """The directory as a `Source`. Every file's header is read and checked here; tensors are mapped when asked for."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.config = read_json(path / "config.json")
        self._files = _open_files(path)
        self._opened = list(dict.fromkeys(self._files.values()))

    def names(self) -> list[str]:
        """Every tensor's name, as stored."""
        return list(self._files)

    def shape(self, name: str) -> tuple[int, ...]:
        """The tensor's shape, without reading it."""
        return self._files[name].entries[name].shape

    def tensor(self, name: str, part: int | None = None) -> np.ndarray:
        """The tensor, or x[part] of it, as a view of its file. Raises ValueError naming the directory where it has
        no such tensor."""
        require(
            name in self._files, f"{self.path}: tensor {shown(name)}: got no such tensor, wanted it in one of its files"
        )
        return self._files[name].tensor(name, part)

    def eight_bits(self, name: str, part: int | None = None) -> Int8 | None:
        """None: safetensors has no such type."""
        return None

    def let_go(self) -> None:
        """Keep nothing of the files in memory."""
        for file in self._opened:
            file.let_go()

    def file_of(self, name: str) -> Path:
        """The safetensors file that holds the tensor; the directory where none does."""
        return self._files[name].path if name in self._files else self.path

    def text(self, name: str) -> str | None:
        """The text file of that name in the directory, or None where there is none."""
        file = self.path / name
        return read_text(file) if file.is_file() else None

    def texts_in(self, folder: str, suffix: str) -> list[str]:
        """The names, less `suffix`, of the files in a folder of the directory, sorted."""
        return sorted(file.name.removesuffix(suffix) for file in (self.path / folder).glob(f"*{suffix}"))


def read_text(path: Path) -> str:
    """The text in a file. Raises ValueError naming the file where it is not UTF-8."""
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: got bytes that are not UTF-8 text ({error}), wanted text") from None


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file. Raises ValueError naming the file where it holds anything else, FileNotFoundError
    where there is none."""
    if not path.is_file():
        raise FileNotFoundError(f"{path}: got no such file, wanted the {path.name} of a model directory")
    return json_object(read_text(path), str(path))


def _open_files(directory: Path) -> dict[str, TensorFile]:
    """The open file of every tensor name."""
    if (directory / SINGLE).is_file():
        file = TensorFile(directory / SINGLE)
        return dict.fromkeys(file.entries, file)
    if not (directory / INDEX).is_file():
        raise FileNotFoundError(f"{directory}: got neither {SINGLE} nor {INDEX}, wanted the weights as safetensors")
    return _open_shards(directory)


def _open_shards(directory: Path) -> dict[str, TensorFile]:
    """The shards that the index lists, each checked to be there and to hold what the index says. What it holds besides
    counts too, as in transformers."""
    index = directory / INDEX
    shards: dict[str, TensorFile] = {}
    files = {}
    for name, shard in Settings(read_json(index), str(index)).part("weight_map").values.items():
        require(
            isinstance(shard, str) and Path(shard).name == shard,
            f"{index}: tensor {shown(name)}: got file {shown(shard)}, wanted the name of a file beside the index",
        )
        if shard not in shards:
            if not (directory / shard).is_file():
                raise FileNotFoundError(
                    f"{directory / shard}: got no such file, wanted the shard that holds {shown(name)}"
                )
            shards[shard] = TensorFile(directory / shard)
        require(
            name in shards[shard].entries,
            f"{directory / shard}: tensor {shown(name)}: got no such tensor, wanted it here as {INDEX} says",
        )
        files[name] = shards[shard]
    return {name: file for file in shards.values() for name in file.entries} | files
