"""A sequence that can be put away and taken up again.

A state file is safetensors: one tensor per array of each layer's cache, the logits of the next token and the counts,
with the position, the policy and the model's shape in its metadata.
"""

from __future__ import annotations

import json
import os
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, Self

import numpy as np

import reference
from loaders.tensors import TensorFile
from reference import Counts, LayerCache, Trace
from reference.checks import require
from thresher.methods import policy_from, specs_of

FORMAT = "thresher-state-1"


@dataclass
class State(reference.State):
    """A `reference.State` with files.

    `model` is the shape of the model that the state belongs to, so that it is not continued by another. `pending` is a
    token that was drawn but not yet read, the last of an answer.
    """

    model: str = ""
    pending: int | None = None

    def copy(self) -> Self:
        """An independent state: going on from one leaves the other as it was."""
        counts = Counts(*(getattr(self.counts, f.name).copy() for f in fields(Counts)))
        trace = self.trace and Trace(*(list(getattr(self.trace, f.name)) for f in fields(Trace)))
        return replace(self, cache=self.cache.copy(), counts=counts, trace=trace)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the state to a file; a trace has one of its own (`save_trace`).

        Whatever stood there stays until the new file is complete.
        """
        from safetensors.numpy import save_file

        arrays: dict[str, np.ndarray] = {}
        for n, layer in enumerate(self.cache.layers):
            arrays |= {f"layers.{n}.{name}": np.ascontiguousarray(a) for name, a in layer.arrays().items()}
        if self.logits is not None:
            arrays["logits"] = self.logits
        arrays |= {f"counts.{f.name}": getattr(self.counts, f.name) for f in fields(Counts)}
        metadata = {
            "format": FORMAT,
            "model": self.model,
            "position": str(self.position),
            "pending": json.dumps(self.pending),
            "policy": json.dumps(specs_of(self.policy)),
        }
        write_atomically(path, lambda temporary: save_file(arrays, temporary, metadata))

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Self:
        """Read what `save` wrote. ValueError names the file where it is not a state or is damaged."""
        file = TensorFile(Path(path))
        arrays, metadata = file.arrays(FORMAT), file.metadata
        layers: dict[int, dict[str, np.ndarray]] = {}
        counts: dict[str, np.ndarray] = {}
        for name, array in arrays.items():
            kind, _, rest = name.partition(".")
            if kind == "layers":
                number, _, field = rest.partition(".")
                layers.setdefault(int(number), {})[field] = array
            elif kind == "counts":
                counts[rest] = array
        wanted = {f.name for f in fields(LayerCache) if f.default is not None}
        for n in range(max(layers, default=-1) + 1):
            missing = wanted - set(layers.get(n, {}))
            require(not missing, f"{path}: layer {n} has no {', '.join(sorted(missing))}")
        return cls(
            cache=reference.restore_cache([layers[n] for n in range(len(layers))]),
            policy=policy_from(json.loads(metadata["policy"])),
            counts=Counts(**counts),
            position=int(metadata["position"]),
            pending=json.loads(metadata["pending"]),
            logits=arrays.get("logits"),
            model=metadata["model"],
        )


def write_atomically(path: str | os.PathLike[str], write: Any) -> None:
    """Call `write` with a temporary path beside `path`, then move it into place; a failure leaves `path` untouched."""
    target = Path(path)
    temporary = target.with_name(f".{target.name}.{os.getpid()}.part")
    try:
        write(temporary)
        os.replace(temporary, target)
    finally:
        temporary.unlink(missing_ok=True)
