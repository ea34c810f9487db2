"""`thresher serve` as a process: it says where it listens, answers, and ends on Ctrl-C with an answer in progress."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest

import thresher
from tests.server.conftest import CALM

COMMAND = [sys.executable, "-m", "thresher", "serve"]


@contextmanager
def serving(llm: thresher.LanguageModel, *options: str, **environment: str) -> Iterator[tuple[subprocess.Popen, str]]:
    """The process and its address."""
    command = [*COMMAND, str(llm.checkpoint.path), "--port", "0", "--backend", "cpu", *options]
    with subprocess.Popen(
        command,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, **environment},
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # a job in the background starts without it
    ) as process:
        try:
            assert process.stderr is not None
            line = process.stderr.readline()
            found = re.fullmatch(r"Serving small at (http://127\.0\.0\.1:\d+)/v1, Ctrl-C ends\.\n", line)
            assert found, line
            yield process, found[1]
        finally:
            process.kill()


def test_it_serves_and_ends(llm: thresher.LanguageModel) -> None:
    with serving(llm, "--chunk", "8", "--evict", "keydiff:budget=32") as (process, address):
        with httpx.Client(base_url=address, timeout=CALM) as client:
            body = {"prompt": "abc " * 30, "max_tokens": 5, "logprobs": 0}
            assert client.post("/v1/completions", json=body).status_code == 200
            long = {"prompt": "a", "max_tokens": 2000, "temperature": 2, "seed": 1, "stream": True}
            with client.stream("POST", "/v1/completions", json=long) as stream:
                assert next(stream.iter_lines()).startswith("data: {")
                process.send_signal(signal.SIGINT)
                assert process.wait(CALM) == 130
        assert process.stderr is not None
        assert process.stderr.read() == ""


def test_the_key_comes_from_the_environment(llm: thresher.LanguageModel) -> None:
    with serving(llm, THRESHER_API_KEY="secret") as (_, address):
        assert httpx.get(f"{address}/v1/models").status_code == 401
        assert httpx.get(f"{address}/v1/models", headers={"Authorization": "Bearer secret"}).status_code == 200


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--port", "70000"], "thresher: serve: cannot listen at 127.0.0.1, port 70000"),
        (["--places", "0"], "thresher: --places takes a whole number of at least 1, not 0"),
        (["--evict", "nothing"], "thresher: --evict takes one of keydiff, h2o"),
        (["--sampling", "mine"], "thresher: --sampling takes one of greedy, model, not 'mine'"),
    ],
)
def test_a_mistake_is_one_line(tmp_path: Path, options: list[str], message: str) -> None:
    run = subprocess.run([*COMMAND, str(tmp_path), *options], capture_output=True, text=True, check=False)
    assert run.returncode == 1
    assert run.stderr.startswith(message)
    assert run.stderr.count("\n") == 1


def test_a_port_that_is_taken_is_told_before_the_model_is_loaded(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        run = subprocess.run(
            [*COMMAND, str(tmp_path / "none"), "--port", str(port)], capture_output=True, text=True, check=False
        )
    assert run.returncode == 1
    assert run.stderr.startswith(f"thresher: serve: cannot listen at 127.0.0.1, port {port} (Address already in use)")
