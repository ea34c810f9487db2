"""What is read and what is asked: documents, questions, and the token ids that a model gets of them.

A prompt is cut at the end of its document (`thresher.document`), so that both ways of asking read the same ids:

    known   one prompt: document and question are read together, and the last chunk of the document sees the question
    after   the document is read under the policy, its state is kept, and each question goes on from a copy
"""

from __future__ import annotations

import zlib
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from reference.checks import require
from thresher.document import plain_ids, split, without_middle

if TYPE_CHECKING:
    from thresher.model import LanguageModel

QUESTIONS = ("known", "after")


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
        tokenizer = self.llm.tokenizer
        tail = max(len(tokenizer.encode(ask.question, add_special_tokens=False).ids) for ask in document.asks)
        shorter = without_middle(
            tokenizer,
            document.text,
            lambda text: self.tokens(task, replace(document, text=text)) - length,
            tail=tail,
        )
        if shorter is None:
            raise ValueError(f"{task.name}: got a length of {length}, wanted room for the questions of {document.name}")
        text, left_out = shorter
        if not left_out:
            return document
        return replace(document, text=text, facts={**document.facts, "tokens_left_out": left_out})


def prompt(llm: LanguageModel, text: str, ask: Ask, chat: bool = True) -> tuple[list[int], list[int]]:
    """The ids of a document and of what follows it, through the chat template where the model has one."""
    before, ending = split(llm, text, chat=chat)
    return before, following(llm, ask, ending, chat)


def following(llm: LanguageModel, ask: Ask, ending: str, chat: bool = True) -> list[int]:
    """The ids of a question about a document, whose prompt has this ending (`thresher.document.split`)."""
    if chat and llm.checkpoint.template is not None:
        return plain_ids(llm, ask.question + ending + ask.prefix)
    return plain_ids(llm, f"{ask.question} {ask.prefix}".rstrip())
