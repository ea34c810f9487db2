"""One web page of what a policy did to a text: which tokens were kept, which were read, and what was answered.

The page is one file with everything in it: the text, a value per layer, KV head and token, and the script that shades
the text with them. It needs no network.
"""

from __future__ import annotations

import base64
import html
import json
import os
from collections.abc import Callable
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from reference.checks import require
from reference.policy import Policy
from reference.trace import Trace
from thresher.evaluation.methods import name
from thresher.evaluation.samples import Ask, prompt
from thresher.state import write_atomically
from thresher.text import TextStream

if TYPE_CHECKING:
    from thresher.model import LanguageModel

PLACE = "/*DATA*/"  # in the template, where the figures go
FULL = 255  # a token that every later chunk read


@dataclass(frozen=True)
class Choices:
    """What became of every token of a prompt, (L, KV, T) each.

    kept: whether it is in the cache once the prompt is read. read: the share of the chunks after its own that read it.
    """

    kept: np.ndarray
    read: np.ndarray

    @classmethod
    def of(cls, trace: Trace, positions: list[np.ndarray], tokens: int, chunk: int) -> Choices:
        """From a trace and the positions that are still in the cache, (KV, S) per layer."""
        shape = (len(positions), len(positions[0]), tokens)
        kept, alive = np.zeros(shape, bool), np.ones(shape, bool)
        reads = np.zeros(shape)
        for n, layer in enumerate(positions):
            np.put_along_axis(kept[n], layer.astype(np.int64), True, axis=1)
        events: list[tuple[int, int, int, Any]] = [(read.at, 0, read.layer, read.positions) for read in trace.reads]
        events += [(gone.at, 1, gone.layer, gone.positions) for gone in trace.evictions]  # after the chunk's own read
        for at, forgets, n, chosen in sorted(events, key=lambda event: event[:3]):
            if forgets:
                np.put_along_axis(alive[n], chosen.astype(np.int64), False, axis=1)
            elif chosen is None:
                reads[n, :, :at] += alive[n, :, :at]
            else:
                for head, row in enumerate(chosen):
                    reads[n, head, row] += 1
        later = (tokens - 1) // chunk - np.arange(tokens) // chunk
        return cls(kept, np.where(later > 0, reads / np.maximum(later, 1), kept))


def page(
    llm: LanguageModel,
    text: str,
    question: str,
    policy: Policy,
    path: str | os.PathLike[str],
    *,
    chunk: int = 128,
    max_new_tokens: int = 64,
    progress: Callable[[int], None] | None = None,
) -> dict[str, Any]:
    """Read a text and a question under `policy` and without it, and write the page to `path`; returns its figures.

    What stood at `path` stays until the new page is complete. ValueError for a policy that neither selects nor evicts.
    """
    require(bool(policy.select or policy.evict), "policy: got none that selects or evicts, wanted --select or --evict")
    before, after = prompt(llm, text, Ask(question, ()))
    ids = before + after
    state = llm.prefill(ids, policy, chunk=chunk, trace=True, progress=progress)
    assert state.trace is not None
    choices = Choices.of(state.trace, state.positions, len(ids), chunk)
    steps = range(0, len(ids), chunk)
    timeline = [_step(state.trace, at) for at in steps]
    answers = {}
    for label, begun in (("dense", ids), (name(policy), state)):
        answer = llm.generate(begun, max_new_tokens=max_new_tokens, chunk=chunk)
        answers[label] = {
            "text": "".join(answer),
            "cache_bytes": answer.stats.cache_bytes,
            "keys_read": sum(answer.stats.keys_read) / sum(answer.stats.keys_visible),
        }
    found = {
        "method": name(policy),
        "model": Path(llm.checkpoint.path).name,
        "chunk": chunk,
        "tokens": _texts(llm, ids),
        "layers": choices.kept.shape[0],
        "heads": choices.kept.shape[1],
        "timeline": timeline,
        "answers": answers,
        "values": {
            "kept": _packed(choices.kept * FULL) if policy.evict else None,
            "read": _packed(np.minimum(choices.read, 1) * FULL),
        },
    }
    template = (files("thresher") / "data" / "show.html").read_text(encoding="utf-8")
    data = json.dumps(found, ensure_ascii=False).replace("</", "<\\/")  # or a text could end the script
    title = html.escape(f"{found['method']}, {found['model']}")
    whole = template.replace("TITLE", title).replace(PLACE, data)
    write_atomically(path, lambda temporary: Path(temporary).write_text(whole, encoding="utf-8"))
    return found


def _step(trace: Trace, at: int) -> dict[str, Any]:
    """A chunk's figures: tokens that a layer and head read of those before it (none chosen: all), and forgot."""
    chosen = [read.positions for read in trace.reads if read.at == at]
    gone = [eviction.positions.shape[1] for eviction in trace.evictions if eviction.at == at]
    return {
        "at": at,
        "read": [at if positions is None else positions.shape[1] for positions in chosen],
        "forgot": gone,
    }


def _texts(llm: LanguageModel, ids: list[int]) -> list[str]:
    """The text that each token adds; a special token has its name."""
    stream = TextStream(llm.tokenizer, [])
    return [stream.special.get(token) or stream.step(token) for token in ids]


def _packed(values: np.ndarray) -> str:
    return base64.b64encode(np.round(values).astype(np.uint8).tobytes()).decode("ascii")
