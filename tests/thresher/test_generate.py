"""Generation against a loop written out by hand, and everything that may be given to it."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import thresher
import thresher.generate
from thresher.generate import Batch

TEXT = "It was a dark and stormy night; the rain fell in torrents."


def greedy(llm: thresher.LanguageModel, ids: list[int], count: int) -> list[int]:
    """The likeliest continuation, the whole sequence anew for each token."""
    tokens = list(ids)
    for _ in range(count):
        tokens.append(int(llm.logits(tokens)[-1].argmax()))
        if tokens[-1] in llm.stop_ids:
            break
    return tokens[len(ids) :]


@pytest.mark.parametrize("kind", ["text", "ids", "state"])
def test_greedy_matches_the_loop(llm: thresher.LanguageModel, kind: str) -> None:
    ids = llm.encode(TEXT)
    prompt = {"text": TEXT, "ids": ids, "state": llm.prefill(TEXT)}[kind]
    answer = llm.generate(prompt, max_new_tokens=20)
    pieces = list(answer)
    assert answer.token_ids == greedy(llm, ids, 20)
    assert "".join(pieces) == answer.text == llm.tokenizer.decode(answer.token_ids).rstrip("\ufffd")
    assert answer.stats.new_tokens == len(answer.token_ids)
    assert answer.stats.prompt_tokens == (0 if kind == "state" else len(ids))
    assert answer.stats.time_to_first_token > 0


def test_messages_go_through_the_template(llm: thresher.LanguageModel) -> None:
    messages = [{"role": "user", "content": "hi"}]
    ids = llm.encode(messages)
    assert (
        llm.tokenizer.decode(ids, skip_special_tokens=False)
        == "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n"
    )
    answer = llm.generate(messages, max_new_tokens=5)
    list(answer)
    assert answer.token_ids == greedy(llm, ids, 5)


@settings(max_examples=15)
@given(st.lists(st.integers(1, 6), min_size=1, max_size=4))
def test_an_answer_can_be_taken_up_again_any_number_of_times(llm: thresher.LanguageModel, lengths: list[int]) -> None:
    state, tokens = llm.prefill(TEXT), []
    for length in lengths:
        answer = llm.generate(state, max_new_tokens=length)
        list(answer)
        tokens += answer.token_ids
        if answer.stats.finish_reason == "stop":
            break
    assert tokens == greedy(llm, llm.encode(TEXT), sum(lengths))[: len(tokens)]


def test_reading_on_after_an_answer(llm: thresher.LanguageModel) -> None:
    state = llm.prefill(TEXT)
    answer = llm.generate(state, max_new_tokens=3)
    list(answer)
    llm.prefill(" And then", state=state)
    whole = llm.prefill(llm.encode(TEXT) + answer.token_ids + llm.encode(" And then"))
    np.testing.assert_allclose(state.logits, whole.logits, rtol=1e-4, atol=1e-4)


@settings(max_examples=10, deadline=None)
@given(st.lists(st.integers(1, 50), min_size=1, max_size=5), st.integers(1, 3))
def test_a_batch_says_what_each_prompt_says_alone(llm: thresher.LanguageModel, lengths: list[int], places: int) -> None:
    prompts = [TEXT[:n] for n in lengths]
    batch = llm.generate(Batch(prompts, places), max_new_tokens=8)
    for index, piece in batch:
        assert prompts[index]
        assert piece
    alone = [llm.generate(prompt, max_new_tokens=8) for prompt in prompts]
    assert batch.texts == ["".join(answer) for answer in alone]
    assert [stats.new_tokens for stats in batch.stats] == [answer.stats.new_tokens for answer in alone]


@pytest.mark.parametrize(
    ("stop", "shown"),
    [
        ([], "naïve: one, two, three"),
        (["never there", "two"], "naïve: one, "),
        (["ï"], "na"),
        (["thr", "e, t"], "naïve: on"),
        (["three and more"], "naïve: one, two, three"),
        (["n"], ""),
    ],
)
def test_stop_texts_end_the_answer_before_they_show(
    llm: thresher.LanguageModel, monkeypatch: pytest.MonkeyPatch, stop: list[str], shown: str
) -> None:
    script = iter([*llm.encode("naïve: one, two, three"), 257])
    monkeypatch.setattr(thresher.generate.Sampling, "draw", lambda *_: next(script))
    answer = llm.generate(TEXT, stop=stop)
    pieces = list(answer)
    assert "".join(pieces) == answer.text == shown
    assert all(pieces)
    assert answer.stats.finish_reason == "stop"


def test_a_stop_token_ends_and_is_not_shown(llm: thresher.LanguageModel, monkeypatch: pytest.MonkeyPatch) -> None:
    free = llm.generate(TEXT, max_new_tokens=6)
    list(free)
    stop = free.token_ids[3]
    monkeypatch.setattr(type(llm), "stop_ids", (stop,))
    answer = llm.generate(TEXT, max_new_tokens=6)
    list(answer)
    assert answer.token_ids == free.token_ids[: free.token_ids.index(stop) + 1]
    assert answer.stats.finish_reason == "stop"


def test_seeds_repeat_and_differ(llm: thresher.LanguageModel) -> None:
    draws = ["".join(llm.generate(TEXT, max_new_tokens=12, temperature=1.5, seed=seed)) for seed in (1, 1, 2)]
    assert draws[0] == draws[1] != draws[2]


def test_the_last_position_ends_an_answer(llm: thresher.LanguageModel) -> None:
    answer = llm.generate([65] * 250, max_new_tokens=100)
    list(answer)
    if answer.stats.finish_reason != "stop":
        assert answer.stats.finish_reason == "positions"
        assert answer.stats.new_tokens == 256 - 250 + 1


@pytest.mark.parametrize(
    ("prompt", "options", "message"),
    [
        ([65] * 257, {}, "wanted at most the model's 256 positions"),
        ("", {}, "token_ids: got shape"),
        ([300], {}, "token_ids: got ids from 300 to 300, wanted 0 to 257"),
        (["a"], {}, "prompt: got a list of str, wanted text, token ids or messages"),
        ("x", {"max_new_tokens": 0}, "max_new_tokens: got 0"),
        ("x", {"temperature": -1}, "temperature: got -1"),
        ("x", {"stop": [""]}, "stop: got"),
        ("x", {"chunk": 0}, "chunk: got 0"),
    ],
)
def test_bad_arguments_are_refused_at_once(
    llm: thresher.LanguageModel, prompt: object, options: dict, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        llm.generate(prompt, **options)


def test_an_empty_state_cannot_answer(llm: thresher.LanguageModel) -> None:
    with pytest.raises(ValueError, match="state: got an empty one"):
        llm.generate(llm.new_state())


def test_logits_are_those_of_any_chunk(llm: thresher.LanguageModel) -> None:
    ids = llm.encode(TEXT)
    whole = llm.logits(ids)
    assert whole.shape == (len(ids), 258)
    assert whole.dtype == np.float32
    np.testing.assert_allclose(llm.logits(ids, chunk=7), whole, rtol=1e-3, atol=1e-4)
