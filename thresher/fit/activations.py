"""What the layers are trained on: the input of every layer's FFN in a dense run over real text, kept on disk.

    WORK/inputs/NNN.f16     (P, T, E) float16: P prompts of T tokens, one file for each layer
    WORK/mixing.f64         (P, L): the share of each layer's attention that goes beyond the first block
    WORK/recorded           how many prompts are done; a run that was killed goes on with the next

Files are written, not mapped, while they grow: a full disk is then an OSError and not a crash. They are mapped to be
read. float16 is enough: the inputs come out of a norm, and rounding them moves labels and targets alike.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

import reference
from reference import H2O, Model, Policy
from reference.checks import require
from reference.fastforward import Block
from reference.neurons import mixing
from thresher.state import write_atomically

CHUNK = 512  # tokens per chunk: nothing is selected or evicted here, so large products cost nothing


class Recorder:
    """A Policy's FFN part that runs every block dense and keeps its input, (T, E) in pieces, for every layer."""

    def __init__(self, layers: int, block: int) -> None:
        self.block = block
        self.inputs: list[list[np.ndarray]] = [[] for _ in range(layers)]

    def resolve(self, length: int) -> Recorder:
        """Itself: nothing here depends on the length of the prompt."""
        return self

    def check(self, config: reference.ModelConfig) -> None:
        """Any model will do."""

    def run(self, x: Any, blocks: Sequence[Block]) -> tuple[Any, list[None]]:
        """The dense FFN of blocks, whose input is kept."""
        first = blocks[0]
        self.inputs[first.layer].append(first.model.backend.to_numpy(x))
        return replace(first, x=x).dense(), [None] * len(blocks)


def bytes_needed(model: Model, prompts: np.ndarray) -> int:
    """Bytes that `record` writes for prompts (P, T)."""
    config = model.config
    return config.layers * (prompts.size * config.width * 2 + len(prompts) * 8)


def bytes_held(folder: Path) -> int:
    """Bytes that it has written so far."""
    return sum(file.stat().st_size for file in (folder / "inputs").glob("*.f16"))


def record(
    model: Model, prompts: np.ndarray, folder: Path, *, block: int, progress: Callable[[int], None] | None = None
) -> None:
    """Run prompts (P, T) through the dense model and keep every layer's FFN inputs and attention in `folder`.

    Prompts that an earlier run has recorded are not run again. `progress` is called with the tokens of each prompt when
    it is done. OSError where the disk is full, ValueError for inputs that float16 cannot hold.
    """
    (folder / "inputs").mkdir(parents=True, exist_ok=True)
    done = recorded(folder)
    if progress is not None and done:
        progress(done * prompts.shape[1])
    for p in range(done, len(prompts)):
        inputs, shares = _run(model, prompts[p], block)
        for layer, rows in enumerate(inputs):
            _write_at(_inputs_file(folder, layer), p * rows.nbytes, rows)
        _write_at(folder / "mixing.f64", p * shares.nbytes, shares)
        write_atomically(folder / "recorded", lambda path, count=p + 1: path.write_text(f"{count}\n"))
        if progress is not None:
            progress(prompts.shape[1])


def inputs_of(folder: Path, layer: int, prompts: int, tokens: int) -> np.ndarray:
    """A layer's FFN inputs, mapped: (P, T, E) float16."""
    return np.memmap(_inputs_file(folder, layer), np.float16, mode="r").reshape(prompts, tokens, -1)


def importance_of(folder: Path, layers: int) -> np.ndarray:
    """The share of each layer's attention that goes beyond the first block, averaged over the prompts: (L,).

    Layers with a sliding window are not measured (chosen): they count as much as the others do on average.
    """
    shares = np.fromfile(folder / "mixing.f64", np.float64).reshape(-1, layers).mean(axis=0)
    measured = shares[~np.isnan(shares)]
    return np.where(np.isnan(shares), measured.mean() if measured.size else 1.0, shares)


def _run(model: Model, token_ids: np.ndarray, block: int) -> tuple[list[np.ndarray], np.ndarray]:
    """One prompt, dense: every layer's FFN inputs (T, E) float16, and its share of attention beyond the first block,
    NaN for a layer with a window."""
    config = model.config
    recorder = Recorder(config.layers, CHUNK)
    watched = None in config.windows
    # H2O notes the attention that every key receives; with room for all of them it evicts none.
    policy = Policy(evict=H2O(len(token_ids)) if watched else None, ffn=recorder)
    state = reference.new_state(model, policy)
    reference.prefill(model, state, token_ids, chunk=CHUNK)
    inputs = [np.concatenate(parts) for parts in recorder.inputs]
    for layer, rows in enumerate(inputs):
        peak = float(np.abs(rows).max())
        limit = float(np.finfo(np.float16).max)
        require(
            peak <= limit, f"layer {layer}: got an FFN input of {peak:g}, wanted at most {limit:g}, which float16 holds"
        )
    received = [layer.arrays().get("received") for layer in state.cache.layers]
    shares = [np.nan if mass is None else mixing(mass, first=block) for mass in received]
    return [rows.astype(np.float16) for rows in inputs], np.array(shares)


def _inputs_file(folder: Path, layer: int) -> Path:
    return folder / "inputs" / f"{layer:03}.f16"


def _write_at(path: Path, offset: int, array: np.ndarray) -> None:
    """Write an array's bytes at an offset of a file, which is made where there is none."""
    path.touch()
    with path.open("r+b") as file:
        file.seek(offset)
        file.write(np.ascontiguousarray(array).tobytes())


def recorded(folder: Path) -> int:
    """How many prompts are done."""
    marker = folder / "recorded"
    return int(marker.read_text()) if marker.exists() else 0
