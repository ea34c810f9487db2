"""Plain HTTP: what is refused and how, who goes away, who is slow, who finds no place."""

from __future__ import annotations

import json
import socket
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import pytest

import thresher
from tests.server.conftest import CALM, idle, metric, running, until

LONG = {"prompt": [65] * 40, "max_tokens": 1900, "logit_bias": None}  # keeps its place until someone ends it


@pytest.fixture
def endless(llm: thresher.LanguageModel, monkeypatch: pytest.MonkeyPatch) -> None:
    """Answers end at their limit alone."""
    monkeypatch.setattr(type(llm), "stop_ids", ())


@pytest.mark.parametrize(
    ("body", "param", "message"),
    [
        ({}, "prompt", "prompt: got none, wanted what to answer"),
        ([], None, "body: got a list, wanted a JSON object"),
        (None, None, "body: got null, wanted a JSON object"),
        ({"prompt": 5}, "prompt", "prompt: got 5, wanted a text, token ids"),
        ({"prompt": []}, "prompt", "prompt: got [], wanted"),
        ({"prompt": [[]]}, "prompt", "prompt: got [], wanted token ids"),
        ({"prompt": [-1]}, "prompt", "prompt: got [-1], wanted token ids"),
        ({"prompt": ["a", 5]}, "prompt", "prompt: got 5, wanted"),
        ({"prompt": [300]}, "token_ids", "token_ids: got ids from 300 to 300, wanted 0 to 257"),
        ({"prompt": ""}, "token_ids", "token_ids: got shape (0,)"),
        ({"prompt": "half \ud83d"}, "prompt", "prompt: got '\\ud83d' at character 5"),
        ({"prompt": "a" * 3000}, "prompt", "prompt: got 3,000 tokens, wanted at most the 2,048"),
        ({"prompt": "a", "max_tokens": 0}, "max_tokens", "max_tokens: got 0, wanted a whole number of at least 1"),
        ({"prompt": "a", "max_tokens": True}, "max_tokens", "max_tokens: got True"),
        ({"prompt": "a", "max_tokens": 1.5}, "max_tokens", "max_tokens: got 1.5"),
        ({"prompt": "a", "temperature": -1}, "temperature", "temperature: got -1"),
        ({"prompt": "a", "temperature": "1"}, "temperature", "temperature: got '1', wanted a number"),
        ({"prompt": "a", "temperature": float("nan")}, "temperature", "temperature: got nan"),
        ({"prompt": "a", "top_p": 5}, "top_p", "top_p: got 5, wanted a number in (0, 1]"),
        ({"prompt": "a", "seed": 2**70}, "seed", "seed: got"),
        ({"prompt": "a", "stop": ""}, "stop", "stop: got ''"),
        ({"prompt": "a", "stop": ["x"] * 17}, "stop", "stop: got"),
        ({"prompt": "a", "stop": "x" * 1001}, "stop", "stop: got"),
        ({"prompt": "a", "n": 0}, "n", "n: got 0"),
        ({"prompt": "a", "n": 1000}, "n", "n: got 1000 answers for one request, wanted at most 68"),
        ({"prompt": "a", "logprobs": 21}, "logprobs", "logprobs: got 21, wanted a whole number from 0 to 20"),
        ({"prompt": "a", "stream": 1}, "stream", "stream: got 1, wanted true or false"),
        ({"prompt": "a", "stream_options": {"include_usage": True}}, "stream_options", "stream_options: got some"),
        ({"prompt": "a", "stream": True, "stream_options": {"x": 1}}, "stream_options", "stream_options: got {'x': 1}"),
        ({"prompt": "a", "echo": True}, "echo", "echo: got True, wanted nothing but False"),
        ({"prompt": "a", "frequency_penalty": 0.5}, "frequency_penalty", "frequency_penalty: got 0.5, wanted nothing"),
        ({"prompt": "a", "temprature": 1}, "temprature", "'temprature': no such field"),
        ({"prompt": "a", "messages": []}, "messages", "'messages': no such field"),
        ({"prompt": "a", "thresher": "quoka"}, "thresher", "thresher: got 'quoka', wanted {"),
        ({"prompt": "a", "thresher": {"evict": 5}}, "thresher.evict", "thresher.evict: got 5"),
        ({"prompt": "a", "thresher": {"keep": "x"}}, "thresher", "thresher: got ['keep'], wanted select, evict, ffn"),
        ({"prompt": "a", "thresher": {"evict": "keydif:budget=9"}}, "thresher", "thresher.evict: got 'keydif'"),
        ({"prompt": "a", "thresher": {"evict": "keydiff:budget=0"}}, "thresher", "thresher.budget: got 0"),
        ({"prompt": "a", "thresher": {"ffn": "fastforward:weights=/etc/passwd"}}, "thresher", "thresher.ffn: got weig"),
        ({"prompt": "a", "thresher": {"ffn": "fastforward:density=0.5"}}, "weights", "weights: got none"),
    ],
)
def test_a_body_that_makes_no_sense(client: httpx.Client, body: Any, param: str | None, message: str) -> None:
    headers = {"Content-Type": "application/json"}
    answer = client.post("/v1/completions", content=json.dumps(body), headers=headers)  # httpx would refuse NaN
    error = answer.json()["error"]
    assert answer.status_code == 400
    assert (error["type"], error["param"]) == ("invalid_request_error", param)
    assert error["message"].startswith(message)


@pytest.mark.parametrize(
    ("fields", "param", "message"),
    [
        ({"messages": []}, "messages", "messages: got []"),
        ({"messages": ["hi"]}, "messages[0]", "messages[0]: got 'hi', wanted an object with a role"),
        ({"messages": [{"content": "hi"}]}, "messages[0]", "messages[0]: got"),
        ({"messages": [{"role": "user"}]}, "messages[0].content", "messages[0].content: got None, wanted a text"),
        (
            {"messages": [{"role": "user", "content": [{"type": "image_url"}]}]},
            "messages[0].content[0]",
            "messages[0].content[0]: got {'type': 'image_url'}, wanted a part of type text",
        ),
        ({"top_logprobs": 2}, "top_logprobs", "top_logprobs: got some without logprobs"),
        ({"tools": [{"type": "function"}]}, "tools", "tools: got"),
        ({"response_format": {"type": "json_object"}}, "response_format", "response_format: got"),
        ({"prompt": "x"}, "prompt", "'prompt': no such field"),
        ({"chat_template_kwargs": {"messages": []}}, "chat_template_kwargs", "chat_template_kwargs: got {'messages'"),
        ({"chat_template_kwargs": {"self": 1, "chat_template": []}}, "chat_template_kwargs.chat_template", "chat_temp"),
        ({"chat_template_kwargs": {"chat_template": "x"}}, "chat_template", "chat_template: got 'x', wanted one of"),
    ],
)
def test_a_chat_that_makes_no_sense(client: httpx.Client, fields: dict, param: str, message: str) -> None:
    body = {"messages": [{"role": "user", "content": "hi"}], **fields}
    answer = client.post("/v1/chat/completions", json=body)
    error = answer.json()["error"]
    assert (answer.status_code, error["param"]) == (400, param)
    assert error["message"].startswith(message)


@pytest.mark.parametrize(
    ("content", "kind", "status", "message"),
    [
        (b"{", "application/json", 400, "body: got something that is not JSON"),
        (b"\xff\xfe{}", "application/json", 400, "body: got something that is not JSON"),
        (b"[" * 200_000, "application/json", 400, "body: got JSON that is nested too deep"),
        (b'{"prompt": ' + b"1" * 5000 + b"}", "application/json", 400, "body: got something that is not JSON"),
        (b'{"prompt": "a"}', "text/plain", 415, "Content-Type: got text/plain, wanted application/json"),
        (b'{"prompt": "a"}', "", 415, "Content-Type: got none, wanted application/json"),
        (b'{"prompt": "' + b"a" * (8 << 20) + b'"}', "application/json", 413, "body: got more than 8,388,608 bytes"),
    ],
)
def test_a_body_that_is_none(client: httpx.Client, content: bytes, kind: str, status: int, message: str) -> None:
    headers = {"Content-Type": kind} if kind else {}
    answer = client.post("/v1/completions", content=content, headers=headers)
    assert answer.status_code == status
    assert answer.json()["error"]["message"].startswith(message)


def test_a_body_of_unknown_length_is_cut_off_too(client: httpx.Client) -> None:
    parts = (b"a" * (1 << 20) for _ in range(9))
    answer = client.post("/v1/completions", content=parts, headers={"Content-Type": "application/json"})
    assert answer.status_code == 413


def test_paths_methods_and_models_that_are_not_there(client: httpx.Client) -> None:
    assert client.get("/v1/nothing").json()["error"]["message"] == "Not Found"
    assert client.get("/v1/completions").status_code == 405
    assert client.get("/v1/models/small").json()["id"] == "small"
    assert client.get("/v1/models/large").json()["error"]["code"] == "model_not_found"
    answer = client.post("/v1/completions", json={"prompt": "a", "model": "gpt-5"})
    assert answer.status_code == 404
    assert answer.json()["error"]["message"] == "model: got 'gpt-5', wanted 'small', the one that is served here"


def test_what_serves_only_bookkeeping_is_accepted(client: httpx.Client) -> None:
    body = {"prompt": "a", "max_tokens": 2, "user": "me", "metadata": {}, "frequency_penalty": 0, "logit_bias": {}}
    assert client.post("/v1/completions", json=body).status_code == 200


def test_a_key(llm: thresher.LanguageModel) -> None:
    with running(llm, api_key="sésame") as address, httpx.Client(base_url=address, timeout=CALM) as client:
        for headers in ({}, {"Authorization": "Bearer wrong"}, {"Authorization": "sésame".encode()}):
            answer = client.post("/v1/completions", json={"prompt": "a"}, headers=headers)
            assert (answer.status_code, answer.json()["error"]["code"]) == (401, "invalid_api_key")
            assert client.get("/v1/models", headers=headers).status_code == 401
        right = {"Authorization": "Bearer sésame".encode()}
        assert client.post("/v1/completions", json={"prompt": "a"}, headers=right).status_code == 200
        assert client.get("/health").json() == {"status": "ok"}
        assert metric(client, 'thresher_requests_total{path="/v1/completions",status="401"}') == 3


@pytest.mark.usefixtures("endless")
@pytest.mark.parametrize("stream", [False, True])
def test_who_goes_away_frees_the_place(client: httpx.Client, server: str, stream: bool) -> None:
    """Broken while it is written, and while it waits: 4 places, 6 requests."""
    until(lambda: idle(client))
    before = metric(client, 'thresher_answers_total{end="cancelled"}')
    connections = [_send(server, {**LONG, "stream": stream}) for _ in range(4)]
    until(lambda: metric(client, "thresher_answers_in_progress") == 4)
    connections += [_send(server, {**LONG, "stream": stream}) for _ in range(2)]
    until(lambda: metric(client, "thresher_answers_waiting") == 2)
    for connection in connections[4:]:
        connection.close()
    until(lambda: metric(client, "thresher_answers_waiting") == 0)
    for connection in connections[:4]:
        connection.close()
    until(lambda: idle(client))
    assert metric(client, 'thresher_answers_total{end="cancelled"}') == before + 4


@pytest.mark.usefixtures("endless")
def test_who_goes_away_while_the_prompt_is_read(llm: thresher.LanguageModel) -> None:
    with running(llm, chunk=1) as address, httpx.Client(base_url=address, timeout=CALM) as client:
        connection = _send(address, {"prompt": [65] * 2000, "max_tokens": 1})
        until(lambda: metric(client, "thresher_answers_in_progress") == 1)
        connection.close()
        until(lambda: idle(client))
        assert metric(client, 'thresher_answers_total{end="cancelled"}') == 1
        assert metric(client, "thresher_new_tokens_total") == 0


def test_a_connection_that_breaks_inside_the_body(client: httpx.Client, server: str) -> None:
    connection = _connect(server)
    connection.sendall(
        b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: 500\r\n\r\n{"
    )
    connection.close()
    assert client.post("/v1/completions", json={"prompt": "a", "max_tokens": 1}).status_code == 200


@pytest.mark.usefixtures("endless")
def test_a_slow_reader_holds_up_nobody(client: httpx.Client, server: str) -> None:
    """It does not read at all, and its answer is longer than all that a connection buffers: 64 KiB in the server."""
    until(lambda: idle(client))
    slow = _send(server, {**LONG, "max_tokens": 400, "stream": True, "logprobs": 20}, buffer=4096)
    with ThreadPoolExecutor(8) as pool:
        body = {"prompt": "abc", "max_tokens": 20}
        answers = list(pool.map(lambda _: client.post("/v1/completions", json=body).json(), range(8)))
    assert len({answer["choices"][0]["text"] for answer in answers}) == 1
    until(lambda: idle(client))  # its answer is written to the end, and its place is free
    received = b""
    while not received.endswith(b"data: [DONE]\n\n\r\n0\r\n\r\n"):
        part = slow.recv(1 << 16)
        assert part, "the stream broke off"
        received += part
    assert len(received) > 200_000
    assert received.count(b'"finish_reason": "length"') == 1
    slow.close()


@pytest.mark.usefixtures("endless")
def test_no_place_and_no_room_to_wait(llm: thresher.LanguageModel) -> None:
    with (
        running(llm, places=1, queue=1) as address,
        httpx.Client(base_url=address, timeout=CALM) as client,
    ):
        connections = [_send(address, LONG) for _ in range(2)]
        until(lambda: metric(client, "thresher_answers_waiting") == 1)
        answer = client.post("/v1/completions", json={"prompt": "a"})
        assert answer.status_code == 429
        assert int(answer.headers["Retry-After"]) >= 1
        assert answer.json()["error"] == {
            "message": "all places are taken and the queue is full: try again",
            "type": "rate_limit_error",
            "param": None,
            "code": "server_busy",
        }
        for connection in connections:
            connection.close()
        until(lambda: idle(client))
        assert client.post("/v1/completions", json={"prompt": "a"}).status_code == 200


def _connect(address: str, buffer: int | None = None) -> socket.socket:
    host, _, port = address.removeprefix("http://").partition(":")
    connection = socket.socket()
    if buffer is not None:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, buffer)
    connection.settimeout(CALM)
    connection.connect((host, int(port)))
    return connection


def _send(address: str, body: dict[str, Any], buffer: int | None = None) -> socket.socket:
    """A completion that has been asked for, on a connection that nothing was read from."""
    content = json.dumps(body).encode()
    connection = _connect(address, buffer)
    head = (
        f"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: {len(content)}"
    )
    connection.sendall(head.encode() + b"\r\n\r\n" + content)
    return connection
