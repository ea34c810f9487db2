"""The `openai` client, against the same answers by hand."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

import thresher
from tests.server.alone import alone
from tests.server.conftest import idle, running, until

openai = pytest.importorskip("openai", reason="wanted the extra `test`")

MESSAGES = [{"role": "user", "content": "Tell me of the sea."}]


@pytest.fixture(scope="module")
def ai(server: str) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{server}/v1", api_key="none", max_retries=0) as client:
        yield client


def test_models(ai: openai.OpenAI) -> None:
    assert [model.id for model in ai.models.list()] == ["small"]
    assert ai.models.retrieve("small").owned_by == "thresher"
    with pytest.raises(openai.NotFoundError, match="model: got 'x', wanted 'small'"):
        ai.models.retrieve("x")


def test_a_chat_whole_and_streamed(ai: openai.OpenAI, llm: thresher.LanguageModel) -> None:
    wanted = llm.generate(MESSAGES, max_new_tokens=25, chunk=8)
    pieces = list(wanted)
    told = ai.chat.completions.create(model="small", messages=MESSAGES, max_completion_tokens=25, temperature=0)
    assert told.choices[0].message.content == "".join(pieces)
    assert told.choices[0].finish_reason == wanted.stats.finish_reason
    assert told.usage.prompt_tokens == len(llm.encode(MESSAGES))
    assert told.usage.completion_tokens == len(wanted.token_ids)
    stream = ai.chat.completions.create(
        model="small", messages=MESSAGES, max_tokens=25, stream=True, stream_options={"include_usage": True}
    )
    *chunks, last = stream
    assert [chunk.choices[0].delta.content for chunk in chunks if chunk.choices[0].delta.content] == pieces
    assert chunks[0].choices[0].delta.role == "assistant"
    assert [chunk.choices[0].finish_reason for chunk in chunks[-2:]] == [None, wanted.stats.finish_reason]
    assert all(chunk.usage is None for chunk in chunks)
    assert (last.choices, last.usage.completion_tokens) == ([], len(wanted.token_ids))


def test_parts_of_text_and_the_developers_message(ai: openai.OpenAI, llm: thresher.LanguageModel) -> None:
    said = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "one two"}]
    parts = [{"type": "text", "text": "one "}, {"type": "text", "text": "two"}]
    sent = [{"role": "developer", "content": "Be brief."}, {"role": "user", "content": parts}]
    told = ai.chat.completions.create(model="small", messages=sent, max_tokens=8)
    assert told.choices[0].message.content == str(llm.generate(said, max_new_tokens=8, chunk=8))


def test_logprobs(ai: openai.OpenAI, llm: thresher.LanguageModel) -> None:
    wanted = alone(llm, llm.encode(MESSAGES), 10)
    told = ai.chat.completions.create(model="small", messages=MESSAGES, max_tokens=10, logprobs=True, top_logprobs=3)
    content = told.choices[0].logprobs.content
    assert [token.logprob for token in content] == [logprob for _, logprob in wanted]
    for token in content:
        assert [other.logprob for other in token.top_logprobs] == sorted(
            (other.logprob for other in token.top_logprobs), reverse=True
        )
        assert token.top_logprobs[0].logprob == token.logprob  # greedy draws the likeliest
        assert len(token.top_logprobs) == 3
        assert token.bytes is None or bytes(token.bytes).decode() == token.token
    told = ai.completions.create(model="small", prompt=llm.encode(MESSAGES), max_tokens=10, logprobs=2)
    assert told.choices[0].logprobs.token_logprobs == [logprob for _, logprob in wanted]
    stream = ai.completions.create(model="small", prompt=llm.encode(MESSAGES), max_tokens=10, logprobs=2, stream=True)
    each = [chunk.choices[0].logprobs for chunk in stream if chunk.choices[0].logprobs]
    assert [logprob for some in each for logprob in some.token_logprobs] == [logprob for _, logprob in wanted]
    assert [offset for some in each for offset in some.text_offset] == told.choices[0].logprobs.text_offset


def test_stop_and_seed(ai: openai.OpenAI, llm: thresher.LanguageModel) -> None:
    ids = llm.encode("Once upon a time")
    drawn = llm.generate(ids, max_new_tokens=60, temperature=1.5, seed=7, chunk=8)
    text = str(drawn)
    stop = text[len(text) // 2 :][:2]
    told = ai.completions.create(model="small", prompt=ids, max_tokens=60, temperature=1.5, seed=7, stop=[stop])
    assert told.choices[0].text == text.partition(stop)[0]
    assert told.choices[0].finish_reason == "stop"
    two = ai.completions.create(model="small", prompt=ids, max_tokens=60, temperature=1.5, seed=7, n=2)
    assert two.choices[0].text == text != two.choices[1].text
    assert two.usage.prompt_tokens == len(ids)


def test_several_prompts(ai: openai.OpenAI, llm: thresher.LanguageModel) -> None:
    prompts = ["one", "two and a half", "three"]
    told = ai.completions.create(model="small", prompt=prompts, max_tokens=9)
    assert [choice.text for choice in told.choices] == [
        str(llm.generate(prompt, max_new_tokens=9, chunk=8)) for prompt in prompts
    ]
    assert told.usage.prompt_tokens == sum(len(llm.encode(prompt)) for prompt in prompts)
    streamed = {0: "", 1: "", 2: ""}
    for chunk in ai.completions.create(model="small", prompt=prompts, max_tokens=9, stream=True):
        streamed[chunk.choices[0].index] += chunk.choices[0].text
    assert list(streamed.values()) == [choice.text for choice in told.choices]


def test_a_policy_of_the_requests_own(ai: openai.OpenAI, llm: thresher.LanguageModel) -> None:
    ids, words = llm.encode("The quick brown fox jumps over the lazy dog. " * 5), {"evict": "keydiff:budget=32"}
    told = ai.completions.create(model="small", prompt=ids, max_tokens=9, logprobs=0, extra_body={"thresher": words})
    evicted = [logprob for _, logprob in alone(llm, ids, 9, policy=thresher.Policy(**words))]
    assert told.choices[0].logprobs.token_logprobs == evicted != [logprob for _, logprob in alone(llm, ids, 9)]


def test_errors_are_the_clients_own(ai: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError, match="temperature: got -1") as raised:
        ai.chat.completions.create(model="small", messages=MESSAGES, temperature=-1)
    assert raised.value.param == "temperature"
    with pytest.raises(openai.BadRequestError) as raised:
        ai.completions.create(model="small", prompt="a" * 3000)
    assert raised.value.code == "context_length_exceeded"


def test_a_stream_that_is_closed_frees_its_place(llm: thresher.LanguageModel) -> None:
    import httpx

    with (
        running(llm) as address,
        openai.OpenAI(base_url=f"{address}/v1", api_key="none") as client,
        httpx.Client(base_url=address) as plain,
    ):
        stream = client.completions.create(
            model="small", prompt="a", max_tokens=2000, stream=True, temperature=1.5, seed=1
        )
        next(iter(stream))
        stream.close()
        until(lambda: idle(plain))
