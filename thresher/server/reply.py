"""A request on its way: its jobs are submitted, and what they tell is sent, until all have ended or the client goes."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import suppress

from starlette.responses import JSONResponse, Response
from starlette.types import Receive, Scope, Send

from thresher.server import replies
from thresher.server.scheduler import Busy, Event, Scheduler

RETRY_AFTER = 2  # seconds that a client should wait before it asks again


class Reply:
    """Submits a request's jobs and sends what they tell. Whoever goes away early frees the places at once."""

    def __init__(self, scheduler: Scheduler, writer: replies.Writer, events: asyncio.Queue[Event]) -> None:
        self._scheduler, self._writer, self._events = scheduler, writer, events

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the reply, as an ASGI application."""
        try:
            self._scheduler.submit(self._writer.jobs)
        except Busy:
            await busy()(scope, receive, send)
            return
        answering = asyncio.create_task(self._send(scope, receive, send))
        gone = asyncio.create_task(until_gone(receive))
        try:
            await asyncio.wait((answering, gone), return_when=asyncio.FIRST_COMPLETED)
        finally:
            for job in self._writer.jobs:
                self._scheduler.cancel(job)
            gone.cancel()
            if not answering.done():
                answering.cancel()
        with suppress(asyncio.CancelledError, OSError):  # OSError: it went while something was being sent
            await answering

    async def _send(self, scope: Scope, receive: Receive, send: Send) -> None:
        told = self._told()
        events = [await anext(told)]  # before the headers go: it may be an error
        if events[0].error is None and self._writer.request.stream:
            await self._stream(send, events[0], told)
            return
        events += [event async for event in told]
        failed = next((event.error for event in events if event.error is not None), None)
        reply = JSONResponse(self._writer.whole(events)) if failed is None else wrong(failed)
        await reply(scope, receive, send)

    async def _stream(self, send: Send, first: Event, told: AsyncIterator[Event]) -> None:
        headers = [(b"content-type", b"text/event-stream; charset=utf-8"), (b"cache-control", b"no-cache")]
        await send({"type": "http.response.start", "status": 200, "headers": headers})

        async def write(*parts: bytes) -> None:
            await send({"type": "http.response.body", "body": b"".join(parts), "more_body": True})

        await write(*map(replies.event, self._writer.opening()), replies.event(self._writer.piece(first)))
        async for event in told:
            if event.error is not None:
                await write(_wrong_event(event.error))
                break
            await write(replies.event(self._writer.piece(event)))
        else:
            await write(*map(replies.event, self._writer.closing()), replies.DONE)
        await send({"type": "http.response.body", "body": b"", "more_body": False})

    async def _told(self) -> AsyncIterator[Event]:
        """What the jobs tell, up to the end of all or the first that fails."""
        open_jobs = len(self._writer.jobs)
        while open_jobs:
            event = await self._events.get()
            yield event
            open_jobs = 0 if event.error is not None else open_jobs - event.last


async def until_gone(receive: Receive) -> None:
    """Return when the client has closed the connection."""
    while (await receive())["type"] != "http.disconnect":
        pass


def busy() -> Response:
    """The reply where there is no place left."""
    told = "all places are taken and the queue is full: try again"
    return JSONResponse(
        replies.error(told, "rate_limit_error", code="server_busy"), 429, {"Retry-After": str(RETRY_AFTER)}
    )


def wrong(error: Exception) -> Response:
    """The reply for an answer that failed."""
    if isinstance(error, Busy):
        return JSONResponse(replies.error("the server is shutting down", "server_error"), 503)
    if isinstance(error, ValueError):
        return JSONResponse(replies.error(str(error), "invalid_request_error"), 400)
    return JSONResponse(replies.error("the answer failed; the server's log has more", "server_error"), 500)


def _wrong_event(error: Exception) -> bytes:
    return b"data: " + bytes(wrong(error).body) + b"\n\n"
