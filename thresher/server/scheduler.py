"""Continuous batching: one thread owns the model, and requests share its passes.

A turn: every answer that is being written draws a token, and those that go on are taken through the model together. A
waiting prompt is read as soon as a place is free; between two passes of a long prompt the others take their turn.

The bits of an answer do not depend on who else is asking: a backend says (`FEW`) how many sequences decode in one pass
as each would alone, and no more share one; where it does not say, each has a pass to itself.
"""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from time import perf_counter
from typing import Any

import numpy as np

from reference.transformer import TOGETHER
from thresher.generate import Answer, advance
from thresher.server.metrics import Metrics
from thresher.server.prefixes import Prefixes, Way
from thresher.thinking import Piece

log = logging.getLogger(__name__)


class Busy(Exception):
    """There is no place left, nor one to wait in."""


@dataclass(frozen=True)
class Token:
    """A token that was drawn: its logarithmic probability before any sampling setting, and the likeliest ones'."""

    id: int
    logprob: float
    top: tuple[tuple[int, float], ...]


@dataclass(frozen=True)
class Event:
    """What a job has to tell: a piece of text with the tokens drawn for it, its end, or why there is none."""

    job: Job
    text: Piece = Piece()  # noqa: RUF009 (a text does not change)
    tokens: tuple[Token, ...] = ()
    finish_reason: str = ""
    error: Exception | None = None

    @property
    def last(self) -> bool:
        """Whether nothing comes after it."""
        return bool(self.finish_reason) or self.error is not None


@dataclass(eq=False)
class Job:
    """An answer to be written. `tell` is called from the scheduler's thread; `top` asks for tokens with that many
    alternatives; `reused` counts prompt tokens that were not read again."""

    answer: Answer
    tell: Callable[[Event], None]
    top: int | None = None
    reused: int = 0
    cancelled: bool = False
    asked: float = field(default_factory=perf_counter)


@dataclass(eq=False)
class Task:
    """Other work with the model, which has a place while it is done. `work` gets what it must call after each of its
    passes, so that the answers being written take their turns; `tell` is called with its result, or with the error."""

    work: Callable[[Callable[[int], None]], Any]
    tell: Callable[[Any], None]
    cancelled: bool = False


class _Cancelled(Exception):
    """What is being read is not wanted any more."""


class Scheduler:
    """Writes the answers of all jobs, at most `places` at a time, while at most `queue` wait."""

    def __init__(self, places: int, queue: int, prefixes: Prefixes, metrics: Metrics) -> None:
        self.places, self.queue, self.prefixes = places, queue, prefixes
        self._metrics = metrics
        self._waiting: deque[Job | Task] = deque()
        self._held = 0  # jobs that have a place: being read or being written
        self._writing: list[Job] = []  # the thread's own
        self._changed = threading.Condition()
        self._closing = False
        self._thread = threading.Thread(target=self._work, name="thresher-scheduler", daemon=True)
        metrics.watch("answers_waiting", "Answers that wait for a place.", lambda: len(self._waiting))
        metrics.watch("answers_in_progress", "Answers that have a place.", lambda: self._held)
        metrics.watch("prefix_cache_bytes", "Bytes of prompts' beginnings that are kept.", lambda: prefixes.nbytes)

    @property
    def alive(self) -> bool:
        """Whether it works."""
        return self._thread.is_alive()

    def start(self) -> None:
        """Begin to work."""
        self._thread.start()

    def close(self) -> None:
        """Give up what is in progress, and stop. Every job that has not ended is told so."""
        with self._changed:
            self._closing = True
            self._changed.notify()
        self._thread.join()

    def submit(self, jobs: Sequence[Job | Task]) -> None:
        """Take all of the jobs, or raise Busy and take none."""
        with self._changed:
            if self._closing or len(self._waiting) + self._held + len(jobs) > self.places + self.queue:
                raise Busy
            self._waiting.extend(jobs)
            self._changed.notify()

    def cancel(self, job: Job | Task) -> None:
        """Free the job's place, or its place in the queue. Nothing happens where it has ended."""
        with self._changed:
            job.cancelled = True
            if job in self._waiting:
                self._waiting.remove(job)

    def _work(self) -> None:
        while job := self._next():
            if isinstance(job, Job):
                self._read(job)
            elif isinstance(job, Task):
                self._do(job)
            self._turn()
        for left in [*self._writing, *self._waiting]:
            if isinstance(left, Task):
                left.tell(Busy())
            else:
                left.tell(Event(left, error=Busy()))

    def _next(self) -> Job | Task | bool:
        """A job to read, True where there is none but others go on, False to stop. Waits where there is nothing."""
        with self._changed:
            self._changed.wait_for(lambda: self._waiting or self._writing or self._closing)
            if self._closing:
                return False
            if self._waiting and self._held < self.places:
                self._held += 1
                return self._waiting.popleft()
            return True

    def _read(self, job: Job) -> None:
        """Read the job's prompt, or what is not known of it, and let it be written."""
        answer = job.answer
        state, ids, chunk = answer.state, answer.prompt_ids, answer.settings.chunk
        backend = answer.llm.model.backend
        try:
            way = Way.of(answer.llm.config, state, len(ids), chunk, getattr(backend, "TOGETHER", TOGETHER))
            if (known := self.prefixes.longest(way, ids)) is not None:
                known.given = state.given
                answer.state, answer.prompt_ids = known, ids[known.position :]
                job.reused = known.position
            ends, state = way.ends(len(ids)), answer.state

            def between(_: int) -> None:
                if job.cancelled or self._closing:
                    raise _Cancelled
                if state.position in ends:
                    self.prefixes.keep(way, ids[: state.position], state)
                if state.position < len(ids):  # what the last pass left is still to be read
                    self._turn()

            answer.start(between)
        except Exception as error:
            self._leave(job, error)
        else:
            self._metrics.prompt_tokens.labels("reused").inc(job.reused)
            self._metrics.prompt_tokens.labels("read").inc(len(ids) - job.reused)
            self._writing.append(job)

    def _do(self, task: Task) -> None:
        """Do a task to its end."""

        def between(_: int) -> None:
            if task.cancelled or self._closing:
                raise _Cancelled
            self._turn()

        result: Any
        try:
            result = task.work(between)
        except _Cancelled:
            result = Busy()
        except Exception as error:
            if not isinstance(error, ValueError):
                log.error("a task failed", exc_info=error)
            result = error
        with self._changed:
            self._held -= 1
        task.tell(result)

    def _turn(self) -> None:
        """Every answer draws a token; those that are not finished go through the model."""
        for job in list(self._writing):
            self._draw(job)
        going = list(self._writing)
        if not going:
            return
        llm = going[0].answer.llm
        few = getattr(llm.model.backend, "FEW", 1)
        for start in range(0, len(going), few):
            group = going[start : start + few]
            try:
                advance(llm, [job.answer.state for job in group])
            except Exception as error:
                for job in group:
                    self._writing.remove(job)
                    self._leave(job, error)

    def _draw(self, job: Job) -> None:
        """Draw the job's next token and tell of it."""
        answer = job.answer
        try:
            if job.cancelled:
                raise _Cancelled
            text = answer.take()
            shown = job.top is not None and answer.token_ids[-1] not in answer.llm.stop_ids
            tokens = (_token(answer, job.top or 0),) if shown else ()
        except Exception as error:
            self._writing.remove(job)
            self._leave(job, error)
            return
        if len(answer.token_ids) == 1:
            self._metrics.first_token.observe(perf_counter() - job.asked)
        self._metrics.new_tokens.inc()
        if answer.finished:  # the place is free before the client hears of it, and may ask again
            self._writing.remove(job)
            self._leave(job)
        if text or text.reasoning or tokens or answer.finished:
            job.tell(Event(job, text, tokens, answer.stats.finish_reason))

    def _leave(self, job: Job, error: Exception | None = None) -> None:
        """The job gives its place back, and says why where it did not end by itself."""
        with self._changed:
            self._held -= 1
        cancelled = isinstance(error, _Cancelled)
        self._metrics.answers.labels("cancelled" if cancelled else "failed" if error else "finished").inc()
        if error is not None:
            if not isinstance(error, (_Cancelled, ValueError)):
                log.error("an answer failed", exc_info=error)
            job.tell(Event(job, error=Busy() if cancelled else error))


def _token(answer: Answer, top: int) -> Token:
    """The token that was drawn last, from the logits that it was drawn from."""
    logits = np.asarray(answer.llm.model.backend.to_numpy(answer.state.logits), np.float64)
    shifted = logits - logits.max()
    logprobs = shifted - np.log(np.exp(shifted).sum())
    best = np.argsort(-logprobs, kind="stable")[:top]  # ties to the lower id
    chosen = answer.token_ids[-1]
    return Token(chosen, float(logprobs[chosen]), tuple((int(i), float(logprobs[i])) for i in best))
