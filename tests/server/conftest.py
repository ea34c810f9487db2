"""A small model behind a real socket."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import pytest

pytest.importorskip("starlette", reason="wanted the extra `serve`")
pytest.importorskip("uvicorn", reason="wanted the extra `serve`")
pytest.importorskip("prometheus_client", reason="wanted the extra `serve`")
httpx = pytest.importorskip("httpx", reason="wanted the extra `test`")

import uvicorn

import thresher
from tests.checkpoints import write_checkpoint
from thresher.server.app import Serving, application

SERVING = Serving("small", chunk=8, places=4, queue=64)  # four chunks of 8 share a pass: 32 tokens
CALM = 30  # seconds that something may take until a test gives up


@pytest.fixture(scope="session")
def llm(tmp_path_factory: pytest.TempPathFactory) -> thresher.LanguageModel:
    directory = tmp_path_factory.mktemp("served") / "small"
    return thresher.load(write_checkpoint(directory, max_position_embeddings=2048), backend="cpu")


@contextmanager
def running(llm: thresher.LanguageModel, **fields: Any) -> Iterator[str]:
    """The address of a server of its own."""
    app = application(llm, replace(SERVING, **fields))
    server = uvicorn.Server(uvicorn.Config(app, log_level="critical", timeout_graceful_shutdown=1))
    with socket.create_server(("127.0.0.1", 0)) as door:
        door.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)  # so that who does not read is soon noticed
        thread = threading.Thread(target=server.run, args=([door],))
        thread.start()
        until(lambda: server.started or not thread.is_alive())
        try:
            yield f"http://127.0.0.1:{door.getsockname()[1]}"
        finally:
            server.should_exit = True
            thread.join()


@pytest.fixture(scope="session")
def server(llm: thresher.LanguageModel) -> Iterator[str]:
    with running(llm) as address:
        yield address


@pytest.fixture(scope="session")
def client(server: str) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=server, timeout=CALM) as client:
        yield client


def until(holds: Callable[[], bool]) -> None:
    """Wait until something comes true, which must not take long."""
    end = time.monotonic() + CALM
    while not holds():
        assert time.monotonic() < end, "it did not come true"
        time.sleep(0.005)


def metric(client: httpx.Client, name: str) -> float:
    """A value that /metrics tells, 0 where nothing was counted yet."""
    lines = client.get("/metrics").text.splitlines()
    return next((float(line.rpartition(" ")[2]) for line in lines if line.startswith(f"{name} ")), 0.0)


def idle(client: httpx.Client) -> bool:
    """Whether no answer is in progress and none waits."""
    return metric(client, "thresher_answers_in_progress") == 0 == metric(client, "thresher_answers_waiting")
