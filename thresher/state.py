"""A sequence that can be put away and taken up again.

A state file is safetensors: one tensor per array of each layer's cache, the token ids, the logits of the next token and
the counts, with the policy, the model's shape and the values below in its metadata.
"""

from __future__ import annotations

import json
import os
from copy import deepcopy
from dataclasses import MISSING, dataclass, field, fields, replace
from pathlib import Path
from typing import Any, Self

import numpy as np

import reference
from loaders.tensors import TensorFile
from reference import Counts, LayerCache, ModelConfig, Policy, Trace
from reference.checks import match, require
from thresher.text import Tail

FORMAT = "thresher-state-2"
VALUES = ("position", "length", "pending", "tail")  # fields that the metadata hold


@dataclass(repr=False)
class State(reference.State):
    """A `reference.State` with files.

    model: the shape of the model that the state belongs to, so that it is not continued by another.
    given: the policy as it was asked for. A fraction in it is a share of all that had been read when the newest prompt
      ended, `length` tokens, so that the budget grows with every message of a chat; `policy` has it in tokens.
    token_ids: all that has been read, prompts and answers; pending: a token that was drawn but not yet read, the last
      of an answer; tail: where the text of that answer stands, which may have ended inside a character; place: where
      it stands between its reasoning and what follows (thresher/thinking.py), "" where no answer has begun.
    notes: what whoever made it keeps beside it, in values that JSON holds: a chat its messages, `thresher read` the
      text that ends a prompt.
    """

    model: str = ""
    given: Policy = field(default_factory=Policy)
    length: int = 0
    token_ids: list[int] = field(default_factory=list)
    pending: int | None = None
    tail: Tail | None = None
    place: str = ""
    notes: dict[str, Any] = field(default_factory=dict)

    def __repr__(self) -> str:
        held = max((layer.size for layer in self.cache.layers), default=0)
        methods = ", ".join(f"{part} {words}" for part, words in self.given.specs.items()) or "dense"
        read = f"{self.position:,} tokens read, at most {held:,} held per layer"
        return f"State({read}, {self.cache.nbytes:,} bytes, {methods})"

    @property
    def sequence(self) -> list[int]:
        """Every id so far: what has been read, and the pending token."""
        return self.token_ids + ([] if self.pending is None else [self.pending])

    def resolve(self, length: int) -> None:
        """Set the policy for a prompt that ends at `length` tokens; 0 leaves its fractions as they are."""
        self.length = length
        self.policy = self.given.resolve(length) if length else self.given

    def can_be_cut(self, config: ModelConfig) -> bool:
        """Whether every token that was read is still there: nothing evicts, and no layer has a window."""
        parts = [self.given, *self.given.overrides.values()]
        return not self.broken and not any(part.evict for part in parts) and not any(config.windows)

    def cut(self, length: int) -> None:
        """Forget all after the first `length` tokens, where the state can be cut. It must read on before it answers."""
        count = self.position - length
        for layer in self.cache.layers:
            layer.take_back(count)
        self.position, self.token_ids = length, self.token_ids[:length]
        self.logits = self.pending = None

    def copy(self) -> Self:
        """An independent state: going on from one leaves the other as it was."""
        trace = self.trace and Trace(*(list(getattr(self.trace, f.name)) for f in fields(Trace)))
        return replace(
            self,
            cache=self.cache.copy(),
            counts=self.counts.copy(),
            trace=trace,
            token_ids=list(self.token_ids),
            notes=deepcopy(self.notes),
        )

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the state to a file; a trace has one of its own (`save_trace`).

        Whatever stood there stays until the new file is complete.
        """
        from safetensors.numpy import save_file

        arrays: dict[str, np.ndarray] = {}
        for n, layer in enumerate(self.cache.layers):
            arrays |= {f"layers.{n}.{name}": np.ascontiguousarray(a) for name, a in layer.arrays().items()}
        if self.logits is not None:
            arrays["logits"] = np.asarray(self.logits)
        arrays |= {f"counts.{f.name}": getattr(self.counts, f.name) for f in fields(Counts)}
        arrays["token_ids"] = np.array(self.token_ids, np.int64)
        metadata = {
            "format": FORMAT,
            "model": self.model,
            "policy": json.dumps(self.given.specs),
            "notes": json.dumps(self.notes),
            "place": self.place,
            **{name: json.dumps(getattr(self, name)) for name in VALUES},
        }
        write_atomically(path, lambda temporary: save_file(arrays, temporary, metadata))

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Self:
        """Read what `save` wrote. ValueError names the file where it is not a state or is damaged."""
        file = TensorFile(Path(path))
        arrays, metadata = file.arrays(FORMAT), file.metadata
        try:
            layers: dict[int, dict[str, np.ndarray]] = {}
            counts: dict[str, np.ndarray] = {}
            for name, array in arrays.items():
                kind, _, rest = name.partition(".")
                if kind == "layers":
                    number, _, field_name = rest.partition(".")
                    layers.setdefault(int(number), {})[field_name] = array
                elif kind == "counts":
                    counts[rest] = array
            wanted = {f.name for f in fields(LayerCache) if f.default is MISSING}
            for n in range(max(layers, default=-1) + 1):
                missing = wanted - set(layers.get(n, {}))
                require(not missing, f"layer {n} has no {', '.join(sorted(missing))}")
                k, v, positions = (layers[n][name] for name in ("k", "v", "positions"))
                match(k=(k, "KV S D"), v=(v, "KV S D"), positions=(positions, "KV S"))
            given = Policy(**json.loads(metadata["policy"]))
            state = cls(
                cache=reference.restore_cache([layers[n] for n in range(len(layers))]),
                policy=given,
                given=given,
                counts=Counts(**counts),
                logits=arrays.get("logits"),
                model=metadata["model"],
                token_ids=arrays["token_ids"].tolist(),
                notes=dict(json.loads(metadata.get("notes", "{}"))),
                place=metadata.get("place", ""),
                **{name: json.loads(metadata[name]) for name in VALUES},
            )
            state.resolve(state.length)
        except KeyError as error:
            raise ValueError(f"{path}: got no {error.args[0]}, wanted a state that is whole") from None
        except (ValueError, TypeError, AttributeError, RecursionError) as error:
            raise ValueError(f"{path}: {error}") from None
        return state


def write_atomically(path: str | os.PathLike[str], write: Any) -> None:
    """Call `write` with a temporary path beside `path`, then move it into place; a failure leaves `path` untouched, and
    is an OSError."""
    from safetensors import SafetensorError

    target = Path(path)
    temporary = target.with_name(f".{target.name}.{os.getpid()}.part")
    try:
        write(temporary)
        os.replace(temporary, target)
    except SafetensorError as error:
        raise OSError(f"{target}: cannot be written ({error})") from None
    finally:
        temporary.unlink(missing_ok=True)
