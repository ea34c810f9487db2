"""Two replicas on Ray Serve, on this machine: the same application, and conversations that stay where they began."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

ray = pytest.importorskip("ray", reason="wanted the extra `ray`")

import thresher
from tests.server.alone import alone
from tests.server.conftest import CALM, SERVING, until

PORT = 18_731
TEXT = "It was a dark and stormy night; the rain fell in torrents, except at occasional intervals. "
ROOT = Path(__file__).parents[2]

pytestmark = pytest.mark.filterwarnings("ignore")  # Ray's own are not ours to mend


@pytest.fixture(scope="module")
def client(llm: thresher.LanguageModel) -> Iterator[httpx.Client]:
    from ray import serve

    from thresher.server.deployment import deployment

    environment = {"PYTHONPATH": f"{ROOT}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"}
    ray.init(num_cpus=4, include_dashboard=False, runtime_env={"env_vars": environment}, log_to_driver=False)
    try:
        serve.start(http_options={"port": PORT})
        serve.run(deployment(str(llm.checkpoint.path), SERVING, replicas=2, backend="cpu"))
        with httpx.Client(base_url=f"http://127.0.0.1:{PORT}", timeout=CALM) as client:
            yield client
        serve.shutdown()
    finally:
        ray.shutdown()


def test_answers_are_those_of_the_server(client: httpx.Client, llm: thresher.LanguageModel) -> None:
    ids = llm.encode(TEXT * 2)
    told = client.post("/v1/completions", json={"prompt": ids, "max_tokens": 9, "logprobs": 0}).json()
    assert told["choices"][0]["logprobs"]["token_logprobs"] == [logprob for _, logprob in alone(llm, ids, 9)]
    body = {"prompt": ids, "max_tokens": 9, "stream": True, "logprobs": 0}
    with client.stream("POST", "/v1/completions", json=body) as stream:
        assert stream.headers["content-type"].startswith("text/event-stream")
        lines = [line.removeprefix("data: ") for line in stream.iter_lines() if line]
    chunks = [json.loads(line)["choices"][0] for line in lines[:-1]]
    assert lines[-1] == "[DONE]"
    streamed = [logprob for chunk in chunks if chunk["logprobs"] for logprob in chunk["logprobs"]["token_logprobs"]]
    assert streamed == told["choices"][0]["logprobs"]["token_logprobs"]


def test_errors_come_through(client: httpx.Client) -> None:
    answer = client.post("/v1/completions", json={"prompt": "a", "temperature": -1})
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, "temperature")
    assert client.post("/v1/completions", content=b"{", headers={"Content-Type": "application/json"}).status_code == 400
    assert client.post("/v1/completions", content=b"a" * (9 << 20)).status_code == 413
    assert client.get("/v1/models").json()["data"][0]["id"] == "small"
    assert client.get("/health").json() == {"status": "ok"}


def test_a_conversation_goes_to_the_replica_that_has_read_its_beginning(client: httpx.Client) -> None:
    """Eight conversations of three turns: every later turn finds what the one before has read. By chance that would
    happen to half of them."""
    for n in range(8):
        messages = [{"role": "user", "content": f"{n}: {TEXT}"}]
        before = 0
        for _ in range(3):
            told = client.post("/v1/chat/completions", json={"messages": messages, "max_tokens": 4}).json()
            reused = told["usage"]["prompt_tokens_details"]["cached_tokens"]
            assert reused == (before - 1) // 32 * 32 if before else reused == 0
            before = told["usage"]["prompt_tokens"]
            messages += [{"role": "assistant", "content": "So it was."}, {"role": "user", "content": "Go on."}]


def test_one_document_is_read_by_one_replica(client: httpx.Client) -> None:
    document = "abc " * 400
    reused = [
        client.post("/v1/completions", json={"prompt": document + question, "max_tokens": 1}).json()["usage"]
        for question in ("One?", "Two?", "Three?")
    ]
    assert [usage["prompt_tokens_details"]["cached_tokens"] for usage in reused] == [0, 1600, 1600]


def test_a_client_may_name_its_session(client: httpx.Client) -> None:
    """Eight sessions that begin alike: each reads for itself unless it shares a replica, and then goes on there."""
    for n in range(8):
        body, headers = {"prompt": f"{n}" + "x" * 200, "max_tokens": 1}, {"X-Session-Id": f"s{n}"}
        told = [client.post("/v1/completions", json=body, headers=headers).json()["usage"] for _ in range(2)]
        assert told[1]["prompt_tokens_details"]["cached_tokens"] == 192


def test_who_goes_away_frees_the_place(client: httpx.Client) -> None:
    body = {"prompt": "a", "max_tokens": 2000, "temperature": 1.8, "seed": 1, "stream": True}
    with client.stream("POST", "/v1/completions", json=body) as stream:
        next(stream.iter_lines())

    def cancelled() -> bool:
        pages = [client.get("/metrics").text for _ in range(4)]  # from either replica
        return any('thresher_answers_total{end="cancelled"} 1.0' in page for page in pages)

    until(cancelled)
