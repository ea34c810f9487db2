"""The same application on Ray Serve: replicas on many machines, and one address in front.

    ray.serve.run(deployment("smollm2-135m-instruct", Serving("smollm2-135m-instruct"), replicas=4))

The front does not answer by itself. It hands each request as it is to a replica, chosen by consistent hashing of how
its conversation or document begins, so that the replica that has read the beginning gets what follows. Where that one
has no place, Ray asks the next: the answer is the same from each.

A client may name its session itself, in the header `X-Session-Id`.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
from collections.abc import AsyncIterator
from itertools import takewhile
from typing import Any

from ray import serve
from ray.serve.config import RequestRouterConfig
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse
from starlette.types import Message

from thresher.model import load
from thresher.server.app import Serving, application, read_body, refused
from thresher.server.bodies import BadRequest

BEGINNING = 1024  # characters, or token ids, that tell one document from another
ROUTER = "ray.serve.experimental.consistent_hash_router.ConsistentHashRouter"


def deployment(model: str, serving: Serving, *, replicas: int = 2, **loading: Any) -> serve.Application:
    """What `ray.serve.run` starts: `replicas` of the model, each served as `serving` says, and the front.

    loading: what `thresher.load` takes besides.
    """
    # A replica queues by itself, up to its own limit; one request more, and it says so with status 429.
    most = serving.places + serving.queue + 1
    router = RequestRouterConfig(request_router_class=ROUTER)
    made = serve.deployment(num_replicas=replicas, max_ongoing_requests=most, request_router_config=router)(_Replica)
    front = serve.deployment(max_ongoing_requests=replicas * most)(_Front)
    return front.bind(made.bind(model, serving, loading), serving.body_bytes)


def session(body: bytes) -> str:
    """What requests of one conversation, and those about one document, have in common: the beginning of what stands
    before the first answer. Empty for a body that says nothing of it."""
    try:
        document = json.loads(body)
        prompt = document.get("messages") or document["prompt"]
        if isinstance(prompt, list) and isinstance(prompt[0], dict):
            asked = takewhile(lambda message: message["role"] != "assistant", prompt)
            prompt = json.dumps([[message["role"], message["content"]] for message in asked])
        return hashlib.sha256(repr(prompt[:BEGINNING]).encode("utf-8", "backslashreplace")).hexdigest()
    except (ValueError, RecursionError, LookupError, TypeError, AttributeError):
        return ""  # the replica will say what is wrong with it


class _Replica:
    """The application of `thresher serve` in a process of its own, spoken to in ASGI's messages."""

    async def __init__(self, model: str, serving: Serving, loading: dict[str, Any]) -> None:  # type: ignore[misc]
        # Ray awaits it.
        self._app = application(await asyncio.to_thread(load, model, **loading), serving)
        self._life = self._app.router.lifespan_context(self._app)
        await self._life.__aenter__()

    async def answer(self, scope: dict[str, Any], body: bytes) -> AsyncIterator[Any]:
        """The reply: its status and headers, then its body in pieces. Who stops listening frees the place."""
        sent: asyncio.Queue[Message | None] = asyncio.Queue()
        coming: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

        async def receive() -> Message:
            return coming.pop() if coming else await asyncio.Future()  # its end is this task's cancellation

        async def run() -> None:
            try:
                await self._app({**scope, "type": "http"}, receive, sent.put)
            finally:
                sent.put_nowait(None)

        running = asyncio.create_task(run())
        try:
            while (message := await sent.get()) is not None:
                yield (message["status"], message["headers"]) if "status" in message else message["body"]
        finally:
            running.cancel()


class _Front:
    """Takes requests and hands them on."""

    def __init__(self, replicas: Any, body_bytes: int) -> None:
        self._replicas, self._limit = replicas.options(stream=True, method_name="answer"), body_bytes

    async def __call__(self, request: Request) -> Response:
        try:
            body = await read_body(request, self._limit)
        except BadRequest as error:
            return refused(request, error)
        scope = {key: request.scope[key] for key in ("method", "path", "raw_path", "query_string", "headers")}
        name = request.headers.get("x-session-id") or session(body)
        handle = self._replicas.options(session_id=name) if name else self._replicas
        told = handle.remote(scope, body)
        status, headers = await anext(told)
        reply = StreamingResponse(told, status)
        reply.raw_headers = list(headers)
        return reply
