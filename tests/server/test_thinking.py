"""A model that thinks, behind the interface: its switch, its reasoning beside the answer, and its budget."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

import thresher
from tests.checkpoints import write_thinker
from tests.server.conftest import running
from thresher.server.app import Serving, application

ASKED: dict[str, Any] = {"messages": [{"role": "user", "content": "2 + 2?"}], "max_tokens": 20}
ON, OFF = ({"chat_template_kwargs": {"enable_thinking": wanted}} for wanted in (True, False))


@pytest.fixture(scope="module")
def thinker(tmp_path_factory: pytest.TempPathFactory) -> thresher.LanguageModel:
    return thresher.load(write_thinker(tmp_path_factory.mktemp("thinker") / "model"), backend="reference")


@pytest.fixture(scope="module")
def asked(thinker: thresher.LanguageModel) -> Iterator[httpx.Client]:
    with running(thinker) as address, httpx.Client(base_url=address, timeout=60) as client:
        yield client


def deltas(client: httpx.Client, body: dict[str, Any]) -> list[dict[str, Any]]:
    text = client.post("/v1/chat/completions", json={**body, "stream": True}).text
    documents = [json.loads(line.removeprefix("data: ")) for line in text.split("\n\n") if line.startswith("data: {")]
    return [document["choices"][0]["delta"] for document in documents]


def test_reasoning_stands_beside_the_answer(asked: httpx.Client, thinker: thresher.LanguageModel) -> None:
    wanted = thinker.generate(
        ASKED["messages"], max_new_tokens=20, chunk=8, enable_thinking=True, thinking_budget=6, stop="\x01"
    )
    pieces = list(wanted)
    body = {**ASKED, **ON, "thinking_token_budget": 6, "stop": "\x01"}
    told = asked.post("/v1/chat/completions", json=body).json()
    message = told["choices"][0]["message"]
    assert "" not in (wanted.text, wanted.reasoning)
    assert message["content"] == wanted.text
    assert message["reasoning_content"] == message["reasoning"] == wanted.reasoning
    assert told["usage"]["completion_tokens_details"] == {"reasoning_tokens": wanted.stats.reasoning_tokens}
    assert told["usage"]["completion_tokens"] == len(wanted.token_ids)
    for fields in ({}, {"logprobs": True}):
        streamed = deltas(asked, {**body, **fields})[1:]
        reasoned = [delta["reasoning_content"] for delta in streamed if "reasoning_content" in delta]
        assert reasoned == [piece.reasoning for piece in pieces if piece.reasoning]
        assert reasoned == [delta["reasoning"] for delta in streamed if "reasoning" in delta]
        assert [delta["content"] for delta in streamed if delta.get("content")] == [piece for piece in pieces if piece]
        assert not any(delta.get("content") for delta in streamed[: len(reasoned)])


def test_without_thinking_there_is_no_reasoning(asked: httpx.Client, thinker: thresher.LanguageModel) -> None:
    message = asked.post("/v1/chat/completions", json={**ASKED, **OFF}).json()["choices"][0]["message"]
    wanted = thinker.generate(ASKED["messages"], max_new_tokens=20, chunk=8, enable_thinking=False)
    assert message == {"role": "assistant", "content": str(wanted), "refusal": None}


def test_the_servers_own_switch_and_budget_count_where_a_request_names_none(
    thinker: thresher.LanguageModel, llm: thresher.LanguageModel
) -> None:
    wanted = thinker.generate(ASKED["messages"], max_new_tokens=20, chunk=8, enable_thinking=True, thinking_budget=3)
    with (
        running(thinker, enable_thinking=True, thinking_budget=3) as address,
        httpx.Client(base_url=address, timeout=60) as client,
    ):
        for fields, content, reasoned in (({}, str(wanted), wanted.reasoning), (OFF, None, None)):
            message = client.post("/v1/chat/completions", json={**ASKED, **fields}).json()["choices"][0]["message"]
            assert message.get("reasoning_content") == reasoned
            assert content in (None, message["content"])
        text = client.post("/v1/completions", json={"prompt": "Begin", "max_tokens": 5}).json()
        assert text["usage"]["completion_tokens"] > 0
    for fields, told in ((("enable_thinking", False), "no switch"), (("thinking_budget", 3), "wanted None: nothing")):
        with pytest.raises(ValueError, match=told):
            application(llm, Serving("small", **dict([fields])))


def test_a_text_goes_on_as_it_is(asked: httpx.Client, thinker: thresher.LanguageModel) -> None:
    told = asked.post("/v1/completions", json={"prompt": "Begin <think>", "max_tokens": 9}).json()
    wanted = thinker.generate("Begin <think>", max_new_tokens=9, chunk=8, separate_reasoning=False)
    assert told["choices"][0]["text"] == str(wanted) != ""


@pytest.mark.parametrize(
    ("fields", "param", "message"),
    [
        (ON, "enable_thinking", "enable_thinking: this model's chat template has no switch for thinking"),
        (OFF, "enable_thinking", "enable_thinking: this model's chat template has no switch for thinking"),
        (
            {"chat_template_kwargs": {"enable_thinking": "no"}},
            "chat_template_kwargs.enable_thinking",
            "chat_template_kwargs.enable_thinking: got 'no', wanted true or false",
        ),
        (
            {"thinking_token_budget": -1},
            "thinking_token_budget",
            "thinking_token_budget: got -1, wanted a whole number",
        ),
        ({"thinking_token_budget": 5}, "thinking_token_budget", "thinking_token_budget: got 5, wanted None: nothing"),
    ],
)
def test_what_a_model_cannot_do_is_refused(client: httpx.Client, fields: dict, param: str, message: str) -> None:
    answer = client.post("/v1/chat/completions", json={**ASKED, **fields})
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, param)
    assert answer.json()["error"]["message"].startswith(message)
