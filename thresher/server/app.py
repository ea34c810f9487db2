"""The application: OpenAI's routes over one loaded model, with its limits, its key and its errors."""

from __future__ import annotations

import asyncio
import hmac
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from time import time
from typing import Any

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import ClientDisconnect
from starlette.requests import Request as HTTPRequest
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from reference import CHUNK, Policy, Sampling
from reference.checks import one_of, whole
from thresher.generate import Answer
from thresher.model import LanguageModel
from thresher.server import replies
from thresher.server.ask import Asked, Library, Panel
from thresher.server.bodies import SAMPLING, BadRequest, Question, Request
from thresher.server.metrics import Metrics
from thresher.server.prefixes import Prefixes
from thresher.server.reply import Reply, wrong
from thresher.server.scheduler import Event, Job, Scheduler
from thresher.thinking import check_budget, switch

BODY_SECONDS = 60  # that a request's body may take to arrive


@dataclass(frozen=True)
class Serving:
    """How a model is served. Raises ValueError for a number that makes no sense.

    name: what clients call the model. policy, sampling, max_new_tokens, enable_thinking and thinking_budget count for
    requests that do not say; the last two for chats alone. places: answers in progress at a time; queue: how many more
    may wait. prefix_bytes: of prompts' beginnings that are kept. body_bytes: of the largest request. api_key: what
    clients must show, None for nothing. library: the sources that /v1/ask answers from, None for none.
    """

    name: str
    policy: Policy = field(default_factory=Policy)
    sampling: str = "greedy"
    max_new_tokens: int = 1024
    enable_thinking: bool | None = None
    thinking_budget: int | None = None
    chunk: int = CHUNK
    places: int = 8
    queue: int = 64
    prefix_bytes: int = 1 << 30
    body_bytes: int = 8 << 20
    api_key: str | None = None
    library: Library | None = None

    def __post_init__(self) -> None:
        one_of("sampling", self.sampling, ("greedy", "model"))
        for name in ("max_new_tokens", "chunk", "places", "body_bytes"):
            whole(name, getattr(self, name))
        for name in ("queue", "prefix_bytes", "thinking_budget"):
            if getattr(self, name) is not None:
                whole(name, getattr(self, name), least=0)


def application(llm: LanguageModel, serving: Serving) -> Starlette:
    """The model as an ASGI application. Raises ValueError for a policy that the model cannot run under, and for a
    switch or a budget of thinking that it does not have."""
    switch(llm.checkpoint.template, serving.enable_thinking)
    check_budget(serving.thinking_budget, llm.thinking_tags)
    metrics = Metrics()
    scheduler = Scheduler(serving.places, serving.queue, Prefixes(serving.prefix_bytes), metrics)
    policy = llm.new_state(serving.policy).given
    panel = None if serving.library is None else Panel(llm, serving.library, policy, serving.chunk)
    desk = _Desk(llm, serving, scheduler, policy, panel)

    @asynccontextmanager
    async def lifespan(_: Starlette) -> AsyncIterator[None]:
        scheduler.start()
        try:
            yield
        finally:
            await asyncio.to_thread(scheduler.close)

    routes = [
        Route("/v1/chat/completions", desk.chat, methods=["POST"]),
        Route("/v1/completions", desk.complete, methods=["POST"]),
        Route("/v1/ask", desk.ask, methods=["POST"]),
        Route("/v1/models", desk.models),
        Route("/v1/models/{name:path}", desk.model),
        Route("/health", desk.health),
        Route("/metrics", lambda _: Response(metrics.page(), media_type=metrics.content_type)),
    ]
    paths = tuple(route.path for route in routes)
    return Starlette(
        routes=routes,
        lifespan=lifespan,
        middleware=[Middleware(_Door, metrics=metrics, paths=paths, key=serving.api_key)],
        exception_handlers={BadRequest: refused, HTTPException: refused, Exception: _failed},
    )


class _Door:
    """Counts every request by its route and status, and lets none without the key to /v1."""

    def __init__(self, app: ASGIApp, metrics: Metrics, paths: tuple[str, ...], key: str | None) -> None:
        self.app, self.metrics, self.paths, self.key = app, metrics, paths, key

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return

        async def counted(message: Message) -> None:
            if message["type"] == "http.response.start":
                path = scope["path"] if scope["path"] in self.paths else "other"
                self.metrics.requests.labels(path, message["status"]).inc()
            await send(message)

        allowed = not scope["path"].startswith("/v1") or self.key is None or self._shown(scope)
        await (self.app if allowed else _NO_KEY)(scope, receive, counted)

    def _shown(self, scope: Scope) -> bool:
        shown = dict(scope["headers"]).get(b"authorization", b"")
        return hmac.compare_digest(shown, f"Bearer {self.key}".encode())


_NO_KEY = JSONResponse(
    replies.error("wanted the API key: Authorization: Bearer KEY", "authentication_error", code="invalid_api_key"),
    401,
    {"WWW-Authenticate": "Bearer"},
)


@dataclass
class _Desk:
    """What each route does."""

    llm: LanguageModel
    serving: Serving
    scheduler: Scheduler
    policy: Policy  # the server's own, with the weights that it needs
    panel: Panel | None
    since: int = field(default_factory=lambda: int(time()))

    async def chat(self, request: HTTPRequest) -> Any:
        return await self._answer(request, chat=True)

    async def complete(self, request: HTTPRequest) -> Any:
        return await self._answer(request, chat=False)

    async def ask(self, http: HTTPRequest) -> ASGIApp:
        question = Question.of(await _read_json(http, self.serving.body_bytes))
        self._check_model(question.model)
        panel = self.panel
        if panel is None:
            told = "question: this server has no sources, wanted one that was started with some"
            raise BadRequest(told, "question", "no_sources", 404)
        return Asked(self.scheduler, lambda between: panel.answer(question, between))

    async def models(self, _: HTTPRequest) -> Response:
        return JSONResponse({"object": "list", "data": [self._model()]})

    async def model(self, request: HTTPRequest) -> Response:
        self._check_model(request.path_params["name"])
        return JSONResponse(self._model())

    async def health(self, _: HTTPRequest) -> Response:
        alive = self.scheduler.alive
        return JSONResponse({"status": "ok" if alive else "stopped"}, 200 if alive else 503)

    def _model(self) -> dict[str, Any]:
        return {"id": self.serving.name, "object": "model", "created": self.since, "owned_by": "thresher"}

    def _check_model(self, name: str | None) -> None:
        if name not in (None, self.serving.name):
            told = f"model: got {name!r}, wanted {self.serving.name!r}, the one that is served here"
            raise BadRequest(told, "model", "model_not_found", 404)

    async def _answer(self, http: HTTPRequest, *, chat: bool) -> ASGIApp:
        body = await _read_json(http, self.serving.body_bytes)
        request = Request.of(body, chat=chat, max_new_tokens=self.serving.max_new_tokens)
        self._check_model(request.model)
        count, most = len(request.prompts) * request.copies, self.serving.places + self.serving.queue
        if count > most:
            raise BadRequest(f"n: got {count} answers for one request, wanted at most {most}", "n")
        # In a thread: a long text takes a while, and a policy that is new here may have kernels to compile.
        answers = await asyncio.to_thread(self._prepare, request)
        events: asyncio.Queue[Event] = asyncio.Queue()
        loop = asyncio.get_running_loop()

        def tell(event: Event) -> None:
            with suppress(RuntimeError):  # the loop has ended, and nobody listens
                loop.call_soon_threadsafe(events.put_nowait, event)

        jobs = [Job(answer, tell, request.top) for answer in answers]
        writer = replies.Writer(request, self.serving.name, self.llm.tokenizer, jobs)
        return Reply(self.scheduler, writer, events)

    def _prepare(self, request: Request) -> list[Answer]:
        """The request's answers, ready to be read. BadRequest where they cannot be."""
        if request.chat and self.llm.checkpoint.template is None:
            raise BadRequest("messages: this model has no chat template, wanted /v1/completions", "messages")
        answers = []
        try:
            options = self._options(request)
            seed = options["seed"]
            written = {name: options.pop(name, None) for name in ("template_variables", "enable_thinking")}
            for prompt in request.prompts:
                ids = self.llm.encode(prompt, **written)
                most = self.llm.config.max_positions
                if len(ids) > most:
                    name = "messages" if request.chat else "prompt"
                    told = f"{name}: got {len(ids):,} tokens, wanted at most the {most:,} that this model reads"
                    raise BadRequest(told, name, "context_length_exceeded")
                for copy in range(request.copies):
                    options["seed"] = None if seed is None else (seed + copy) % 2**64
                    answers.append(self.llm.generate(ids, request.policy or self.policy, **options).answer)
        except ValueError as error:
            told = str(error).replace("thinking_budget", "thinking_token_budget")  # as the field is called here
            raise error if isinstance(error, BadRequest) else BadRequest(told, told.partition(":")[0]) from None
        return answers

    def _options(self, request: Request) -> dict[str, Any]:
        """What `generate` takes for the request: its own settings before the server's."""
        options = dict(request.options)
        Sampling(**{name: options[name] for name in SAMPLING if options[name] is not None})  # each in its range
        authors = self.llm.suggested_sampling.temperature if self.serving.sampling == "model" else None
        temperature = authors if options["temperature"] is None else options["temperature"]
        if not temperature:  # clients send these besides, and at temperature 0 they do nothing
            options |= dict.fromkeys(("top_p", "top_k", "min_p"))
        if request.chat:
            own = {name: getattr(self.serving, name) for name in ("enable_thinking", "thinking_budget")}
            options |= {name: value for name, value in own.items() if options[name] is None}
        return {**options, "sampling": self.serving.sampling, "chunk": self.serving.chunk}


async def read_body(http: HTTPRequest, limit: int) -> bytes:
    """The body. BadRequest where it has more than `limit` bytes, or does not come."""
    body = bytearray()
    try:
        async with asyncio.timeout(BODY_SECONDS):
            async for part in http.stream():
                body += part
                if len(body) > limit:
                    raise BadRequest(f"body: got more than {limit:,} bytes", code="request_too_large", status=413)
    except TimeoutError:
        told = f"body: got {len(body):,} bytes in {BODY_SECONDS} seconds, wanted all of it"
        raise BadRequest(told, status=408) from None
    except ClientDisconnect:
        raise BadRequest("body: got only a part of it") from None  # nobody reads this
    return bytes(body)


async def _read_json(http: HTTPRequest, limit: int) -> Any:
    """The body as JSON, or BadRequest. The content type matters: a page in a browser may send other types to a local
    server unasked."""
    kind = http.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "application/json":
        told = f"Content-Type: got {kind or 'none'}, wanted application/json"
        raise BadRequest(told, code="unsupported_media_type", status=415)
    body = await read_body(http, limit)
    try:
        return json.loads(body)
    except RecursionError:
        raise BadRequest("body: got JSON that is nested too deep") from None
    except ValueError as error:
        raise BadRequest(f"body: got something that is not JSON ({error})") from None


def refused(_: HTTPRequest, error: Exception) -> Response:
    """The reply for a BadRequest, or Starlette's own for a path or a method that there is not."""
    if isinstance(error, BadRequest):
        body = replies.error(str(error), "invalid_request_error", error.param, error.code)
        return JSONResponse(body, error.status)
    assert isinstance(error, HTTPException)
    body = replies.error(error.detail, "invalid_request_error")
    return JSONResponse(body, error.status_code, error.headers)


def _failed(_: HTTPRequest, error: Exception) -> Response:
    return wrong(RuntimeError())
