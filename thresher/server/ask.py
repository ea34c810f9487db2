"""`POST /v1/ask`: a question to sources that the server was started with, answered by a vote of the most reliable.

The scheduler's thread does all of it, because that thread alone may use the model; between two of its passes the
answers that are being written take their turns.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from starlette.responses import JSONResponse
from starlette.types import Receive, Scope, Send

from reference import Policy
from thresher.answers.panel import ask
from thresher.answers.reader import Cost, Reader
from thresher.answers.shelf import Shelf
from thresher.answers.sources import Source
from thresher.model import LanguageModel
from thresher.server.bodies import Question
from thresher.server.reply import busy, until_gone, wrong
from thresher.server.scheduler import Busy, Scheduler, Task


@dataclass(frozen=True)
class Library:
    """What questions are put to: the sources, their weights by name, and where states are kept."""

    sources: Sequence[Source]
    weights: Mapping[str, float] = field(default_factory=dict)
    shelf: Shelf | None = None


class Panel:
    """The library with a reader of its own, under the server's policy."""

    def __init__(self, llm: LanguageModel, library: Library, policy: Policy, chunk: int) -> None:
        self._library, self._reader = library, Reader(llm, policy, library.shelf, chunk=chunk)

    def answer(self, question: Question, between: Callable[[int], None]) -> dict[str, Any]:
        """The verdict and its cost, for JSON."""
        self._reader.between, self._reader.cost = between, Cost()
        weights = self._library.weights
        verdict = ask(
            self._library.sources, question.text, self._reader, self._reader.same, weights=weights, kappa=question.kappa
        )
        return {**verdict.as_dict(), "cost": vars(self._reader.cost)}


class Asked:
    """Submits a question, and sends the verdict. Whoever goes away early ends the work."""

    def __init__(self, scheduler: Scheduler, work: Callable[[Callable[[int], None]], Any]) -> None:
        self._scheduler, self._work = scheduler, work

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the reply, as an ASGI application."""
        loop = asyncio.get_running_loop()
        told: asyncio.Future[Any] = loop.create_future()

        def settle(result: Any) -> None:
            if not told.done():
                told.set_result(result)

        def tell(result: Any) -> None:
            with suppress(RuntimeError):  # the loop has ended, and nobody listens
                loop.call_soon_threadsafe(settle, result)

        task = Task(self._work, tell)
        try:
            self._scheduler.submit([task])
        except Busy:
            await busy()(scope, receive, send)
            return
        gone = asyncio.create_task(until_gone(receive))
        try:
            await asyncio.wait((told, gone), return_when=asyncio.FIRST_COMPLETED)
        finally:
            self._scheduler.cancel(task)
            gone.cancel()
        if told.done():
            result = told.result()
            reply = wrong(result) if isinstance(result, Exception) else JSONResponse(result)
            with suppress(OSError):  # it went while the reply was being sent
                await reply(scope, receive, send)
