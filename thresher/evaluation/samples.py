"""What is read and what is asked: documents, questions, and the token ids that a model gets of them.

A prompt is a document and a question after it, in one message of the model's chat template. It is always cut at the end
of the document, so that both ways of asking read the same ids:

    known   one prompt: document and question are read together, and the last chunk of the document sees the question
    after   the document is read under the policy, its state is kept, and each question goes on from a copy
"""

from __future__ import annotations

import zlib
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from reference.checks import require

if TYPE_CHECKING:
    from thresher.model import LanguageModel

QUESTIONS = ("known", "after")
CUT = "\ue000cut\ue000"  # private characters: no document has them


@dataclass(frozen=True)
class Ask:
    """A question, the answers that are right, and the words that the model's answer is made to begin with."""

    question: str
    wanted: tuple[str, ...]
    prefix: str = ""


@dataclass(frozen=True)
class Document:
    """A text with the questions about it. `facts` are kept with every prediction: depth, source, classes."""

    name: str
    text: str
    asks: tuple[Ask, ...]
    facts: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Task:
    """A kind of question.

    documents: (tools, task, length, limit) -> at most `limit` documents whose prompts, answers included, are at most
      `length` tokens long. score: (answer, ask, facts) -> 0 to 1. kind: "answers", "perplexity" or "agreement".
    fixed: the texts are what they are, so that only the largest length counts. chat: through the chat template.
    stop: texts that end an answer.
    """

    name: str
    documents: Callable[[Tools, Task, int, int], list[Document]]
    score: Callable[[str, Ask, dict[str, Any]], float]
    max_new_tokens: int
    kind: str = "answers"
    fixed: bool = False
    chat: bool = True
    stop: tuple[str, ...] = ()


@dataclass(frozen=True)
class Tools:
    """What tasks make their documents with: a model's tokenizer and template, a seed, the user's folder of data."""

    llm: LanguageModel
    seed: int
    data: Path | None = None

    def rng(self, *place: str | int) -> np.random.Generator:
        """Random numbers that follow from the seed and a place alone, whatever else was drawn."""
        return np.random.default_rng([self.seed, *(zlib.crc32(str(part).encode()) for part in place)])

    def prompt(self, task: Task, text: str, ask: Ask) -> tuple[list[int], list[int]]:
        """The ids of a document and of what follows it."""
        return prompt(self.llm, text, ask, task.chat)

    def tokens(self, task: Task, document: Document) -> int:
        """Length of the longest prompt of a document, with the room for its answer."""
        lengths = (sum(map(len, self.prompt(task, document.text, ask))) for ask in document.asks)
        return max(lengths) + task.max_new_tokens

    def largest(self, task: Task, make: Callable[[int], Document], length: int, most: int = 1 << 30) -> Document:
        """The document `make(n)` of the largest n, from 1 to `most`, that fits `length` tokens.

        ValueError where not even the smallest one does.
        """
        best = make(1)
        least = self.tokens(task, best)
        require(least <= length, f"{task.name}: got a length of {length}, wanted at least {least} for this task")
        low, high = 1, 2
        while high <= most and self.tokens(task, found := make(high)) <= length:
            best, low, high = found, high, 2 * high
        high = min(high, most + 1)
        while high - low > 1:
            middle = (low + high) // 2
            found = make(middle)
            if self.tokens(task, found) <= length:
                best, low = found, middle
            else:
                high = middle
        return best

    def cut(self, task: Task, document: Document, length: int) -> Document:
        """The document with its middle left out where it does not fit `length` tokens, as LongBench cuts prompts: as
        much of the prompt's beginning is kept as of its end. The document's `facts` say how many tokens are missing.

        ValueError where the questions alone do not fit.
        """
        over = self.tokens(task, document) - length
        if over <= 0:
            return document
        tokenizer = self.llm.tokenizer
        ids = tokenizer.encode(document.text, add_special_tokens=False).ids
        tail = max(len(tokenizer.encode(ask.question, add_special_tokens=False).ids) for ask in document.asks)
        keep = len(ids) - over
        while keep >= 2:  # joined tokens may read as more than they were
            back = max(1, (keep + tail) // 2 - tail)
            text = "".join(tokenizer.decode(part) for part in (ids[: keep - back], ids[-back:]))
            facts = {**document.facts, "tokens_left_out": len(ids) - keep}
            shorter = Document(document.name, text, document.asks, facts)
            over = self.tokens(task, shorter) - length
            if over <= 0:
                return shorter
            keep -= over
        raise ValueError(f"{task.name}: got a length of {length}, wanted room for the questions of {document.name}")


def prompt(llm: LanguageModel, text: str, ask: Ask, chat: bool = True) -> tuple[list[int], list[int]]:
    """The ids of a document and of what follows it, through the chat template where the model has one."""
    template = llm.checkpoint.template if chat else None
    if template is None:
        after = f"{ask.question} {ask.prefix}".rstrip()
        return (llm.encode(text) if text else []), _ids(llm, after)
    rendered = template.render([{"role": "user", "content": f"{text}{CUT}{ask.question}"}])
    before, found, after = rendered.partition(CUT)
    require(bool(found), "messages: the chat template changes what it is given, wanted one that keeps the text")
    return _ids(llm, before), _ids(llm, after + ask.prefix)


def _ids(llm: LanguageModel, text: str) -> list[int]:
    return llm.tokenizer.encode(text, add_special_tokens=False).ids
