"""A checkpoint whose experts stand apart, as one more `Source`: nothing above it knows how they are stored.

apart    mlp.experts.3.gate_proj.weight (F, E), up_proj, down_proj (E, F)           what is handed out
older    block_sparse_moe.experts.3.w1.weight, w3, w2                               Mixtral's own names
fused    mlp.experts.gate_up_proj (X, 2F, E), mlp.experts.down_proj (X, E, F)       of all experts, gate above up
stacked  mlp.experts.gate_proj.weight (X, F, E), up_proj, down_proj                 as GGUF files have them
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from loaders.source import Files, Source
from reference import Int8

OLDER = re.compile(r"(.*\.)block_sparse_moe\.(gate|experts\.\d+\.w[123])\.weight")
STACKED = re.compile(r"(.*\.mlp\.experts)\.(gate_up|gate|up|down)_proj(?:\.weight)?")
MATRICES = {"w1": "gate_proj", "w2": "down_proj", "w3": "up_proj"}


@dataclass(frozen=True)
class Place:
    """Where the base has a matrix: the tensor's name, and in a stack the expert's number and its rows."""

    name: str
    expert: int | None = None
    rows: slice | None = None  # where the stack has more than one matrix of each expert


def apart(base: Files) -> Source:
    """The checkpoint with each expert's matrices by themselves: itself, where they are."""
    places = dict(place for name in base.names() for place in _places(base, name))
    return base if all(name == place.name for name, place in places.items()) else Apart(base, places)


class Apart:
    """A `Source` some of whose matrices are parts of another's tensors."""

    def __init__(self, base: Files, places: dict[str, Place]) -> None:
        self.path, self.config = base.path, base.config
        self._base, self._places = base, places

    def names(self) -> list[str]:
        """Every tensor's name, experts apart."""
        return list(self._places)

    def shape(self, name: str) -> tuple[int, ...]:
        """The matrix's shape, without reading it."""
        place = self._place(name)
        shape = self._base.shape(place.name)
        return shape if place.expert is None else (len(range(shape[1])[place.rows or slice(None)]), *shape[2:])

    def tensor(self, name: str) -> np.ndarray:
        """The base's tensor, or the expert's part of it."""
        place = self._place(name)
        x = self._base.tensor(place.name, place.expert)
        return x if place.rows is None else x[place.rows]

    def eight_bits(self, name: str) -> Int8 | None:
        """The base's matrix as it stands, or the expert's rows of a stack."""
        place = self._place(name)
        matrix = self._base.eight_bits(place.name, place.expert)
        return matrix if matrix is None or place.rows is None else matrix.rows(place.rows)

    def let_go(self) -> None:
        """Keep nothing of the files in memory."""
        self._base.let_go()

    def file_of(self, name: str) -> Path:
        """The file that holds the tensor."""
        return self._base.file_of(self._place(name).name)

    def text(self, name: str) -> str | None:
        """The base's."""
        return self._base.text(name)

    def texts_in(self, folder: str, suffix: str) -> list[str]:
        """The base's."""
        return self._base.texts_in(folder, suffix)

    def _place(self, name: str) -> Place:
        return self._places.get(name, Place(name))  # the base says what is missing


def _places(base: Source, name: str) -> Iterator[tuple[str, Place]]:
    """The names that a tensor of the base has here."""
    if older := OLDER.fullmatch(name):
        for letter, matrix in MATRICES.items():
            name = name.replace(f".{letter}.", f".{matrix}.")
        yield name.replace("block_sparse_moe", "mlp"), Place(older[0])
        return
    stacked = STACKED.fullmatch(name)
    shape = base.shape(name) if stacked else ()
    if stacked is None or len(shape) != 3 or (stacked[2] == "gate_up" and shape[1] % 2):
        yield name, Place(name)
        return
    half = shape[1] // 2
    rows = {"gate": slice(0, half), "up": slice(half, None)} if stacked[2] == "gate_up" else {stacked[2]: None}
    for matrix, own in rows.items():
        for expert in range(shape[0]):
            yield f"{stacked[1]}.{expert}.{matrix}_proj.weight", Place(name, expert, own)
