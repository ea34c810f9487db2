"""What one source says: its passages are read once into a state, and every question goes on from a copy.

Sources never share a prompt, so that a text which tells the model to ignore all others moves its own source's answer
and no other. An answer that the passages do not support is "I don't know".
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np

from reference import CHUNK, Policy
from reference.checks import require, whole
from thresher.answers.shelf import Shelf
from thresher.answers.sources import Search, Source, bm25
from thresher.answers.yes import yes
from thresher.document import split
from thresher.evaluation.samples import Ask, prompt
from thresher.evaluation.scorers.words import normalise
from thresher.generate import Batch
from thresher.model import LanguageModel
from thresher.state import State

TOP = 3  # the paper's: passages of an answer
THRESHOLD = 0.1  # the paper's: the least support of an answer that counts, by a model of entailment or the user's judge
CERTAINTY = 0.95  # the same, where support is the likelihood of the answer against "I don't know"
PLACES = 8
PASSAGES = "Passages:\n\n{}"
QUESTION = (
    "\n\nAnswer the question from the passages above alone, with a name, a number or a few of their words, not a "
    "sentence. If they do not tell, answer: I don't know.\n\nQuestion: {question}"
)
UNSURE = "I don't know"
SAME = "Question: {question}\nFirst answer: {a}\nSecond answer: {b}\n\nDo both answers mean the same? Answer yes or no."
NOT_KNOWN = ("i dont know", "i do not know")  # somewhere in an answer
UNKNOWN = ("unknown", "not mentioned", "not specified", "not stated")  # all of it


@dataclass(frozen=True)
class Said:
    """What a source says to a question: `text`, or None where it does not know, and `why` not.

    support: from 0 to 1, how far its passages say so; None where nobody looked.
    """

    text: str | None
    why: str = ""
    support: float | None = None
    passages: tuple[int, ...] = ()


@dataclass
class Cost:
    """Tokens: read anew, found in a kept state instead, and written."""

    read: int = 0
    kept: int = 0
    written: int = 0


@dataclass
class Reader:
    """A model that reads sources.

    policy: under which passages are read. shelf: where their states are kept; without one, only within a call.
    top: passages of an answer. search: (source, question, top) -> numbers of passages; BM25 by default.
    support: (passages, question, answer) -> 0 to 1; by default how likely the model finds the first token of its answer
      against that of "I don't know". threshold: the least support of an answer that counts; None for CERTAINTY by
      default, THRESHOLD for a function. between: called after each pass, as `prefill` calls its progress.
    """

    llm: LanguageModel
    policy: Policy | None = None
    shelf: Shelf | None = None
    top: int = TOP
    search: Search = bm25
    support: Callable[[Sequence[str], str, str], float] | None = None
    threshold: float | None = None
    max_new_tokens: int = 24
    chunk: int = CHUNK
    cost: Cost = field(default_factory=Cost)
    between: Callable[[int], None] | None = None

    def __post_init__(self) -> None:
        check_settings(self.top, self.threshold, self.max_new_tokens)

    def answers(self, asked: Sequence[tuple[Source, str]]) -> list[Said]:
        """What each source says to its question. Questions of the same passages share one state."""
        said: list[Said | None] = [None] * len(asked)
        groups: dict[tuple[str, ...], list[tuple[int, tuple[int, ...]]]] = {}
        for n, (source, question) in enumerate(asked):
            found = tuple(self.search(source, question, self.top))
            if found:
                groups.setdefault(tuple(source.passages[i] for i in found), []).append((n, found))
            else:
                said[n] = Said(None, "no passage shares a word with the question")
        waiting = [(passages, *member) for passages, members in groups.items() for member in members]
        states: dict[tuple[str, ...], State] = {}
        for start in range(0, len(waiting), PLACES):
            part = waiting[start : start + PLACES]
            needed = dict.fromkeys(passages for passages, _, _ in part)
            states = {passages: states.get(passages) or self._read(passages) for passages in needed}
            answers = self._ask([(states[passages], asked[n][1]) for passages, n, _ in part])
            for (passages, n, found), (text, certainty) in zip(part, answers, strict=True):
                said[n] = self._judged(passages, asked[n][1], text, certainty, found)
        return [each for each in said if each is not None]

    def same(self, question: str, a: str, b: str) -> bool:
        """Whether two answers mean the same: as `alike` finds, or the model says yes in both orders."""
        if alike(a, b):
            return True
        return all(self._yes(SAME.format(question=question, a=x, b=y)) > 0.5 for x, y in ((a, b), (b, a)))

    def _judged(
        self, passages: tuple[str, ...], question: str, text: str, certainty: float, found: tuple[int, ...]
    ) -> Said:
        if not knows(text):
            return Said(None, "it says that it does not know", None, found)
        support = certainty if self.support is None else self.support(passages, question, text)
        least = CERTAINTY if self.support is None else THRESHOLD
        if not support >= (least if self.threshold is None else self.threshold):
            return Said(None, f"its passages do not support {text!r}", support, found)
        return Said(text, "", support, found)

    def _read(self, passages: tuple[str, ...]) -> State:
        """The state of the passages, from the shelf where it is there."""
        head, _ = split(self.llm, PASSAGES.format("\n\n".join(passages)))
        name = "" if self.shelf is None else self._name(head)
        if self.shelf is not None and (kept := self.shelf.take(name)) is not None:
            self.cost.kept += len(head)
            return kept
        state = self.llm.prefill(head, self.policy, chunk=self.chunk, progress=self.between)
        self.cost.read += len(head)
        if self.shelf is not None:
            self.shelf.keep(name, state)
        return state

    def _name(self, head: list[int]) -> str:
        """What a state follows from: the model, how its numbers are stored, the policy, the chunk, and the ids."""
        dtype, specs = str(self.llm.model.weights.embedding.dtype), (self.policy or Policy()).specs
        made = [self._fingerprint, self.llm.identity, dtype, specs, self.chunk, head]
        return hashlib.sha256(json.dumps(made).encode()).hexdigest()[:32]

    @cached_property
    def _fingerprint(self) -> str:
        """Of what the model makes of some text: every weight counts, and those of a merged adapter too."""
        return hashlib.sha256(self.llm.logits(QUESTION).tobytes()).hexdigest()

    def _ask(self, asked: Sequence[tuple[State, str]]) -> list[tuple[str, float]]:
        """An answer for each state and a question, from copies that go through the model together, and its certainty:
        p(a) / (p(a) + p(u)) of its first token a and the first token u of "I don't know"; 1 where they are the same."""
        states = [self._go_on(QUESTION.format(question=question), state) for state, question in asked]
        logits = [self.llm.model.backend.to_numpy(state.logits).astype(np.float64) for state in states]
        answers = self.llm.generate(Batch(states, PLACES), max_new_tokens=self.max_new_tokens, stop="\n")
        for _ in answers:
            if self.between is not None:
                self.between(0)
        self.cost.written += sum(stats.new_tokens for stats in answers.stats)
        unsure = self.llm.tokenizer.encode(UNSURE, add_special_tokens=False).ids[0]
        certain = [
            1.0 if ids[0] == unsure else float(1 / (1 + np.exp(np.clip(row[unsure] - row[ids[0]], -500, 500))))
            for row, ids in zip(logits, answers.token_ids, strict=True)
        ]
        return list(zip((text.strip() for text in answers.texts), certain, strict=True))

    def _yes(self, question: str) -> float:
        """How likely yes is against no, after the question."""
        return yes(self.llm, self._go_on(question))

    def _go_on(self, question: str, state: State | None = None) -> State:
        """The state after the question, from a copy; without one, of the question alone."""
        head, tail = prompt(self.llm, "", Ask(question, ()))  # what follows a text does not depend on it
        ids = tail if state else head + tail
        self.cost.read += len(ids)
        return self.llm.prefill(ids, state=state and state.copy(), chunk=self.chunk, progress=self.between)


def check_settings(top: int, threshold: float | None, max_new_tokens: int) -> None:
    """ValueError for one that makes no sense."""
    whole("top", top)
    require(threshold is None or 0 <= threshold <= 1, f"threshold: got {threshold}, wanted 0 to 1")
    whole("max_new_tokens", max_new_tokens)


def alike(a: str, b: str) -> bool:
    """Whether two answers are equal once normalised, or one stands in the other, word by word: 1870, and in 1870."""
    x, y = (f" {normalise(text)} " for text in (a, b))
    return x in y or y in x


def knows(answer: str) -> bool:
    """False for an empty answer and for one that says that it does not know."""
    plain = normalise(answer.replace("’", "'"))
    return plain not in ("", *UNKNOWN) and not any(words in plain for words in NOT_KNOWN)
