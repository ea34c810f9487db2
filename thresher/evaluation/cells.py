"""The unit of work: one document under one policy, with all the questions about it. Workers load a model once."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise
from time import perf_counter
from typing import TYPE_CHECKING, Any, Protocol, Self

import numpy as np

import reference
from loaders.catalogue import find
from reference.checks import whole
from reference.policy import Policy
from thresher.evaluation.samples import QUESTIONS, Document, Task, prompt
from thresher.evaluation.tasks import TASKS

if TYPE_CHECKING:
    from thresher.model import LanguageModel
    from thresher.state import State

Row = dict[str, Any]
BANDS = (0, *(512 << n for n in range(13)))  # positions at which a band of the perplexity begins


class Work(Protocol):
    """What any process can do by itself, such as a `Cell`."""

    def rows(self) -> list[Row]:
        """Do it."""
        ...


@dataclass(frozen=True)
class Engine:
    """Which model computes, and how."""

    model: str
    backend: str = "auto"
    dtype: str = "float32"
    chunk: int = 128

    @classmethod
    def of(cls, model: str | os.PathLike[str], backend: str = "auto", dtype: str = "float32", chunk: int = 128) -> Self:
        """The engine of a model by name or path, named so that every process finds it. FileNotFoundError for none."""
        return cls(os.path.abspath(find(os.fspath(model))), backend, dtype, whole("chunk", chunk))

    def load(self) -> LanguageModel:
        """The model, from memory where this process has it already."""
        return _loaded(self.model, self.backend, self.dtype)


@lru_cache(maxsize=1)
def _loaded(model: str, backend: str, dtype: str) -> LanguageModel:
    from thresher.model import load

    return load(model, backend=backend, dtype=dtype)


@dataclass(frozen=True)
class Cell:
    """A document and what is still to be found out about it.

    policies: what is computed, by the name of the first method that means it (one, but for agreement, which holds all
      against the first). question: how it is asked. wanted: per question of the document, the (question, method) pairs
      that its result is written down for; several methods may come to the same policy.
    """

    engine: Engine
    task: str
    length: int
    document: Document
    question: str
    policies: dict[str, Policy]
    wanted: tuple[tuple[tuple[str, str], ...], ...]

    def rows(self) -> list[Row]:
        """As `measure` finds them."""
        return measure(self)


def measure(cell: Cell) -> list[Row]:
    """The rows of a cell, one per question, way of asking and method."""
    task, llm = TASKS[cell.task], cell.engine.load()
    return {"answers": _answers, "perplexity": _perplexity, "agreement": _agreement}[task.kind](llm, task, cell)


def row(cell: Cell, ask: int, question: str, method: str, **found: Any) -> Row:
    """A line of predictions.jsonl: first what it is about, then what was found."""
    return {
        "task": cell.task,
        "length": cell.length,
        "document": cell.document.name,
        "ask": ask,
        "question": question,
        "method": method,
        **found,
        "facts": cell.document.facts,
    }


def _answers(llm: LanguageModel, task: Task, cell: Cell) -> list[Row]:
    """Every question answered greedily. Without a method a document is read once for all questions and both ways."""
    ((_, policy),) = cell.policies.items()
    kept: State | None = None
    document_seconds, rows = 0.0, []
    for n, (ask, pairs) in enumerate(zip(cell.document.asks, cell.wanted, strict=True)):
        if not pairs:
            continue
        before, after = prompt(llm, cell.document.text, ask, task.chat)
        started = perf_counter()
        if before and (cell.question == "after" or policy == Policy()):
            if kept is None:
                kept = llm.prefill(before, policy, chunk=cell.engine.chunk)
                document_seconds = perf_counter() - started
                started = perf_counter()
            state = llm.prefill(after, state=kept.copy(), chunk=cell.engine.chunk)
            read_before = document_seconds
        else:
            state, read_before = llm.prefill(before + after, policy, chunk=cell.engine.chunk), 0.0
        answer = llm.generate(state, max_new_tokens=task.max_new_tokens, stop=task.stop)
        for _ in answer:
            pass
        seconds = perf_counter() - started - answer.stats.decode_seconds
        found = {
            "prompt_sha256": _hash(before + after),
            "prompt_tokens": len(before + after),
            "answer": answer.text,
            "wanted": list(ask.wanted),
            "score": task.score(answer.text, ask, cell.document.facts),
            "new_tokens": answer.stats.new_tokens,
            "policy": state.policy.specs,
            **_work(state),
        }
        for question, method in pairs:
            whole = seconds + (read_before if question == "known" else 0.0)
            times = {"document_seconds": read_before, "time_to_first_token": whole}
            rows.append(row(cell, n, question, method, **found, **times))
    return rows


def _work(state: State) -> Row:
    """What a state cost: keys summed over the layers, bytes of the cache at the end."""
    counts = state.counts
    return {
        "keys_read": int(counts.keys_read.sum()),
        "keys_visible": int(counts.keys_visible.sum()),
        "keys_evicted": int(counts.keys_evicted.sum()),
        "cache_bytes": int(state.cache.nbytes),
    }


def _perplexity(llm: LanguageModel, task: Task, cell: Cell) -> list[Row]:
    """−ln p of every token but the first, summed by bands of positions."""
    ((_, policy),) = cell.policies.items()
    ids, _ = prompt(llm, cell.document.text, cell.document.asks[0], task.chat)
    started = perf_counter()
    losses = surprise(llm.logits(ids, policy, chunk=cell.engine.chunk)[:-1], ids[1:])
    seconds = perf_counter() - started
    bands = []
    for first, end in pairwise(BANDS):
        part = losses[max(first, 1) - 1 : end - 1]  # losses[t − 1] is that of the token at position t
        if len(part):
            bands.append({"first": first, "end": end, "tokens": len(part), "nll": float(part.sum())})
    found = {
        "prompt_sha256": _hash(ids),
        "prompt_tokens": len(ids),
        "bands": bands,
        "policy": policy.resolve(len(ids)).specs,
        "seconds": seconds,
    }
    return [row(cell, 0, question, method, **found) for question, method in cell.wanted[0]]


def surprise(logits: np.ndarray, ids: Sequence[int]) -> np.ndarray:
    """−ln softmax(logits)[id] of each row: (T, V), (T,) -> (T,) float64."""
    losses = np.empty(len(ids))
    for start in range(0, len(ids), 256):  # so that float64 is never held for all of the vocabulary's rows
        rows = log_softmax(logits[start : start + 256])
        losses[start : start + 256] = -rows[np.arange(len(rows)), ids[start : start + 256]]
    return losses


def log_softmax(logits: np.ndarray) -> np.ndarray:
    """ln softmax of each row, in float64."""
    shifted = logits.astype(np.float64) - logits.max(axis=-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))


def _agreement(llm: LanguageModel, task: Task, cell: Cell) -> list[Row]:
    """Every method held against dense, which draws the tokens that all of them are then given."""
    ask = cell.document.asks[0]
    before, after = prompt(llm, cell.document.text, ask, task.chat)
    tokens: list[int] = []
    dense, dense_state = _forced(llm, cell, Policy(), before, after, tokens, task.max_new_tokens)
    rows: list[Row] = []
    for method, policy in cell.policies.items():
        theirs, state = dense, dense_state
        if policy != Policy():
            theirs, state = _forced(llm, cell, policy, before, after, tokens, 0)
        same = [int(np.argmax(row)) == token for row, token in zip(theirs, tokens, strict=True)]
        divergence = (np.exp(dense) * (dense - theirs)).sum(axis=1)
        found = {
            "prompt_sha256": _hash(before + after),
            "prompt_tokens": len(before + after),
            "answer": llm.tokenizer.decode(tokens),
            "score": float(np.mean(same)),
            "same_from_start": next((n for n, equal in enumerate(same) if not equal), len(same)),
            "kl": float(divergence.mean()),
            "policy": state.policy.specs,
            **_work(state),
        }
        rows += [row(cell, 0, question, name, **found) for question, name in cell.wanted[0] if name == method]
    return rows


def _forced(
    llm: LanguageModel, cell: Cell, policy: Policy, before: list[int], after: list[int], tokens: list[int], draw: int
) -> tuple[np.ndarray, State]:
    """ln p of the vocabulary before each of `tokens`, (N, V); with `draw`, first fills them with the likeliest ones, up
    to that many or a stop token."""
    if cell.question == "after":
        state = llm.prefill(before, policy, chunk=cell.engine.chunk)
        state = llm.prefill(after, state=state, chunk=cell.engine.chunk)
    else:
        state = llm.prefill(before + after, policy, chunk=cell.engine.chunk)
    rows: list[np.ndarray] = []
    while len(rows) < (draw or len(tokens)):
        rows.append(log_softmax(llm.model.backend.to_numpy(state.logits)[None])[0])
        if draw:
            tokens.append(int(np.argmax(rows[-1])))
        if tokens[len(rows) - 1] in llm.stop_ids or len(rows) == (draw or len(tokens)):
            break
        reference.decode(llm.model, [state], [tokens[len(rows) - 1]])
    return np.stack(rows), state


def _hash(ids: Sequence[int]) -> str:
    return hashlib.sha256(np.asarray(ids, np.int64).tobytes()).hexdigest()


def ways(task: Task, document: Document, questions: Sequence[str]) -> tuple[str, ...]:
    """The ways of asking that a document has: without a text, or for a text's own likelihood, there is one."""
    return tuple(questions) if document.text and task.kind != "perplexity" else QUESTIONS[:1]
