"""From a prompt to text, a piece at a time, for one sequence or for many that share each pass.

The loop: every waiting prompt that finds a free place is read; every active answer draws its next token and gives its
text; those that are not finished go through the model together. One prompt is a batch of one.

What a model reasons before it answers is told apart (thresher/thinking.py), and may have a budget.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from time import perf_counter
from typing import Any, Protocol

import numpy as np
from tokenizers import Tokenizer

import reference
from reference import Model, ModelConfig, Sampling
from reference.checks import require, whole
from thresher.state import State
from thresher.text import StopTexts, TextStream
from thresher.thinking import Parts, Piece, Tags, check_budget, closing_ids, place_after


class Reader(Protocol):
    """As much of a loaded model as an answer needs."""

    model: Model

    @property
    def config(self) -> ModelConfig:
        """The model's shape."""
        ...

    @property
    def tokenizer(self) -> Tokenizer:
        """Text to token ids and back."""
        ...

    @property
    def stop_ids(self) -> tuple[int, ...]:
        """Tokens that end an answer."""
        ...

    @property
    def thinking_tags(self) -> Tags | None:
        """What tells reasoning from an answer."""
        ...

    def prefill(self, prompt: list[int], *, state: State, chunk: int, progress: Callable[[int], None] | None) -> State:
        """Read ids after what the state holds."""
        ...


@dataclass
class Stats:
    """What an answer took. Keys and neurons are counted per layer, as `reference.Counts` defines them."""

    prompt_tokens: int = 0  # all that stands before the answer, what a state held included
    new_tokens: int = 0
    reasoning_tokens: int = 0  # of these, the ones between the tags
    time_to_first_token: float = 0.0  # seconds from the first request to the first token, prefill included
    decode_seconds: float = 0.0  # seconds for all tokens after the first
    cache_bytes: int = 0
    finish_reason: str = ""  # "stop", "length" (max_new_tokens) or "positions" (the model has no more)
    keys_read: list[int] = field(default_factory=list)
    keys_visible: list[int] = field(default_factory=list)
    keys_evicted: list[int] = field(default_factory=list)
    neurons_run: list[int] = field(default_factory=list)
    neurons_total: list[int] = field(default_factory=list)

    @property
    def tokens_per_second(self) -> float:
        """Decoding speed: tokens after the first over the time that they took; 0 for a single token."""
        return (self.new_tokens - 1) / self.decode_seconds if self.decode_seconds > 0 else 0.0

    def as_dict(self) -> dict[str, Any]:
        """All fields, for JSON."""
        return {**asdict(self), "tokens_per_second": self.tokens_per_second}


@dataclass(frozen=True)
class Settings:
    """What holds for every token of an answer."""

    sampling: Sampling
    seed: int | None
    stop: Sequence[str]
    max_new_tokens: int
    min_new_tokens: int
    chunk: int
    progress: Callable[[int], None] | None
    thinking_budget: int | None = None
    separate_reasoning: bool = True

    def __post_init__(self) -> None:
        whole("max_new_tokens", self.max_new_tokens)
        whole("min_new_tokens", self.min_new_tokens, least=0)
        require(
            self.min_new_tokens <= self.max_new_tokens,
            f"min_new_tokens: got {self.min_new_tokens}, wanted at most max_new_tokens, {self.max_new_tokens}",
        )
        whole("chunk", self.chunk)
        for name in ("seed", "thinking_budget"):
            if getattr(self, name) is not None:
                whole(name, getattr(self, name), least=0)


class Answer:
    """One sequence being continued: its state, its tokens so far, and the text that may already be shown."""

    def __init__(self, llm: Reader, state: State, prompt_ids: list[int], settings: Settings) -> None:
        self.llm, self.state, self.prompt_ids, self.settings = llm, state, prompt_ids, settings
        self.token_ids: list[int] = []
        self.stats = Stats(prompt_tokens=len(state.sequence) + len(prompt_ids))
        self._rng = np.random.default_rng(settings.seed)
        self._stops = StopTexts(settings.stop)
        self._tags = llm.thinking_tags if settings.separate_reasoning else None
        self._due: deque[int] = deque()  # tokens that come next, whatever is likely
        self._started = 0.0
        check_budget(settings.thinking_budget, self._tags)

    @property
    def finished(self) -> bool:
        """True once there is a reason to stop."""
        return bool(self.stats.finish_reason)

    def start(self, progress: Callable[[int], None] | None = None) -> None:
        """Read what the state has not read yet: the prompt, or the token that an earlier answer ended with.

        progress: called after each pass, in place of what the settings name.
        """
        self._started = perf_counter()
        if self.prompt_ids:
            progress = progress or self.settings.progress
            self.llm.prefill(self.prompt_ids, state=self.state, chunk=self.settings.chunk, progress=progress)
        elif self.state.pending is not None:
            advance(self.llm, [self.state])
        tokenizer, ids = self.llm.tokenizer, self.state.token_ids
        self._text = TextStream(tokenizer, ids, self.state.tail)
        place = self.state.place or (place_after(tokenizer, ids, self._tags) if self._tags else "")
        self._parts = Parts(self._tags, place, self._stops)
        self._seen = np.zeros(self.llm.config.vocab_size, bool)
        self._seen[self.state.token_ids] = True

    def take(self) -> Piece:
        """Draw the next token and return the text that it completes, often a word, sometimes nothing."""
        token = self._next()
        self.token_ids.append(token)
        self.state.pending = token
        self._seen[token] = True
        self._measure()
        if token in self.llm.stop_ids and len(self.token_ids) >= self.settings.min_new_tokens:
            return self._finish("stop")
        name, reasoned = self._text.special.get(token), self._parts.inside
        if name is None:
            shown = self._parts.feed(self._text.step(token))
        else:  # what came before it is complete
            shown = self._parts.feed(self._text.finish()).then(self._parts.feed(name, shown=False))
        self.stats.reasoning_tokens += reasoned and self._parts.inside and not self._due
        if self._stops.found:
            self.stats.finish_reason = "stop"
        elif len(self.token_ids) >= self.settings.max_new_tokens:
            self.stats.finish_reason = "length"
            shown = shown.then(self._parts.rest())
        elif self.state.position >= self.llm.config.max_positions:
            shown = shown.then(self._finish("positions"))
        self._mark()
        return shown

    def _next(self) -> int:
        """The next token: drawn, unless the reasoning has used up its budget and its closing tag is due."""
        budget = self.settings.thinking_budget
        spent = budget is not None and self._parts.inside and self.stats.reasoning_tokens >= budget
        if spent and not self._due and self._tags is not None:
            self._due.extend(closing_ids(self.llm.tokenizer, self._tags.closing))
        if self._due:
            return self._due.popleft()
        assert self.state.logits is not None
        return self.llm.model.backend.draw(self.state.logits, self.settings.sampling, self._rng, self._seen)

    def _finish(self, reason: str) -> Piece:
        """End the answer for good: returns all that is left of its text."""
        self.stats.finish_reason = reason
        shown = self._parts.feed(self._text.finish()).then(self._parts.rest())
        self._mark()
        return shown

    def _mark(self) -> None:
        """Note in the state where its text stands, for who takes it up again."""
        self.state.tail, self.state.place = self._text.tail, self._parts.place

    def _measure(self) -> None:
        stats, counts = self.stats, self.state.counts
        elapsed = perf_counter() - self._started
        if len(self.token_ids) == 1:
            stats.time_to_first_token = elapsed
        stats.decode_seconds = elapsed - stats.time_to_first_token
        stats.new_tokens = len(self.token_ids)
        stats.cache_bytes = self.state.cache.nbytes
        for name, array in vars(counts).items():
            setattr(stats, name, array.tolist())


def run(answers: Sequence[Answer], places: int) -> Iterator[tuple[int, Piece]]:
    """Continue all answers, at most `places` at a time: yields (index of the answer, piece of its text)."""
    waiting = deque(enumerate(answers))
    active: list[tuple[int, Answer]] = []
    while waiting or active:
        while waiting and len(active) < places:
            index, answer = waiting.popleft()
            answer.start()
            active.append((index, answer))
        for index, answer in active:
            piece = answer.take()
            if piece or piece.reasoning:
                yield index, piece
        active = [(index, answer) for index, answer in active if not answer.finished]
        if active:
            advance(active[0][1].llm, [answer.state for _, answer in active])


def advance(llm: Reader, states: Sequence[State]) -> None:
    """Take every state's pending token through the model, in one pass."""
    reference.decode(llm.model, states, [state.pending for state in states if state.pending is not None])
    for state in states:
        if state.pending is not None:
            state.token_ids.append(state.pending)
        state.pending = None


def _progress(answer: Answer) -> str:
    """How far an answer is, for people."""
    tokens = f"{len(answer.token_ids)} tokens"
    return f"{tokens}, ended by {answer.stats.finish_reason}" if answer.finished else f"{tokens} so far"


@dataclass(frozen=True)
class Batch:
    """Several prompts for `LanguageModel.generate`; at most `places` of them are continued at a time."""

    prompts: Sequence[Any]
    places: int = 8


class Generation:
    """An answer on its way: iterate for pieces of text; `.text`, `.token_ids`, `.state` and `.stats` tell the rest.

    A model that thinks begins with its reasoning: `.reasoning`, and `piece.reasoning` of pieces that are empty texts.
    `.answer` is the sequence itself, for who takes the turns of many.
    """

    def __init__(self, answer: Answer) -> None:
        self.answer = answer
        self._pieces = run([answer], places=1)
        self.text = self.reasoning = ""

    def __iter__(self) -> Generation:
        return self

    def __next__(self) -> Piece:
        _, piece = next(self._pieces)
        self.text += piece
        self.reasoning += piece.reasoning
        return piece

    def __str__(self) -> str:
        """The whole answer: reads to its end."""
        for _ in self:
            pass
        return self.text

    def __repr__(self) -> str:
        return f"Generation({self.text!r}, {_progress(self.answer)})"

    @property
    def token_ids(self) -> list[int]:
        """Tokens drawn so far, the stop token included."""
        return self.answer.token_ids

    @property
    def state(self) -> State:
        """The sequence so far; it can be given to `generate` or `prefill` to go on."""
        return self.answer.state

    @property
    def stats(self) -> Stats:
        """What it took so far."""
        return self.answer.stats


class BatchGeneration:
    """Several answers on their way: iterate for (index of the prompt, piece); `.texts`, `.reasonings` and `.stats` per
    prompt."""

    def __init__(self, answers: Sequence[Answer], places: int) -> None:
        self._answers = answers
        self._pieces = run(answers, whole("places", places))
        self.texts, self.reasonings = [""] * len(answers), [""] * len(answers)

    def __iter__(self) -> BatchGeneration:
        return self

    def __next__(self) -> tuple[int, Piece]:
        index, piece = next(self._pieces)
        self.texts[index] += piece
        self.reasonings[index] += piece.reasoning
        return index, piece

    def __repr__(self) -> str:
        told = "; ".join(f"{text!r}, {_progress(each)}" for text, each in zip(self.texts, self._answers, strict=True))
        return f"BatchGeneration({told})"

    @property
    def token_ids(self) -> list[list[int]]:
        """Tokens of each answer so far, the stop token included."""
        return [answer.token_ids for answer in self._answers]

    @property
    def stats(self) -> list[Stats]:
        """What each answer took so far. Times run from the moment that an answer found its place."""
        return [answer.stats for answer in self._answers]
