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

TOP, THRESHOLD = 3, 0.1  # the paper's: passages of an answer, and the least support of one that counts
PLACES = 8
PASSAGES = "Passages:\n\n{}"
QUESTION = (
    "\n\nAnswer the question from the passages above alone, in as few words as possible. If they do not tell, answer: "
    "I don't know.\n\nQuestion: {question}"
)
SUPPORTED = (
    "\n\nQuestion: {question}\nProposed answer: {answer}\n\nDo the passages above say that this is the answer? Answer "
    "yes or no."
)
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
    support: (passages, question, answer) -> 0 to 1; by default the model's own yes against no. threshold: the least
      support of an answer that counts. between: called after each pass of the model, as `prefill` calls its progress.
    """

    llm: LanguageModel
    policy: Policy | None = None
    shelf: Shelf | None = None
    top: int = TOP
    search: Search = bm25
    support: Callable[[Sequence[str], str, str], float] | None = None
    threshold: float = THRESHOLD
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
            texts = self._ask([(states[passages], asked[n][1]) for passages, n, _ in part])
            for (passages, n, found), text in zip(part, texts, strict=True):
                said[n] = self._judged(states[passages], passages, asked[n][1], text, found)
        return [each for each in said if each is not None]

    def same(self, question: str, a: str, b: str) -> bool:
        """Whether two answers mean the same: equal once normalised, or the model says yes in both orders."""
        if normalise(a) == normalise(b):
            return True
        return all(self._yes(None, SAME.format(question=question, a=x, b=y)) > 0.5 for x, y in ((a, b), (b, a)))

    def _judged(
        self, state: State, passages: tuple[str, ...], question: str, text: str, found: tuple[int, ...]
    ) -> Said:
        if not knows(text):
            return Said(None, "it says that it does not know", None, found)
        if self.support is not None:
            support = self.support(passages, question, text)
        else:
            support = self._yes(state, SUPPORTED.format(question=question, answer=text))
        if not support >= self.threshold:
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

    def _ask(self, asked: Sequence[tuple[State, str]]) -> list[str]:
        """An answer for each state and a question, from copies that go through the model together."""
        states = [self._go_on(state, QUESTION.format(question=question)) for state, question in asked]
        answers = self.llm.generate(Batch(states, PLACES), max_new_tokens=self.max_new_tokens, stop="\n")
        for _ in answers:
            if self.between is not None:
                self.between(0)
        self.cost.written += sum(stats.new_tokens for stats in answers.stats)
        return [text.strip() for text in answers.texts]

    def _yes(self, state: State | None, question: str) -> float:
        """How likely yes is against no, after the question."""
        return yes(self.llm, self._go_on(state, question))

    def _go_on(self, state: State | None, question: str) -> State:
        """The state after the question, from a copy; without one, of the question alone."""
        head, tail = prompt(self.llm, "", Ask(question, ()))  # what follows a text does not depend on it
        ids = tail if state else head + tail
        self.cost.read += len(ids)
        return self.llm.prefill(ids, state=state and state.copy(), chunk=self.chunk, progress=self.between)


def check_settings(top: int, threshold: float, max_new_tokens: int) -> None:
    """ValueError for one that makes no sense."""
    whole("top", top)
    require(0 <= threshold <= 1, f"threshold: got {threshold}, wanted 0 to 1")
    whole("max_new_tokens", max_new_tokens)


def knows(answer: str) -> bool:
    """False for an empty answer and for one that says that it does not know."""
    plain = normalise(answer.replace("’", "'"))
    return plain not in ("", *UNKNOWN) and not any(words in plain for words in NOT_KNOWN)
