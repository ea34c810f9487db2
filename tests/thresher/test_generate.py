"""Generation against a loop written out by hand, and everything that may be given to it."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import thresher
import thresher.generate
from tests.checkpoints import write_checkpoint
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
    assert answer.stats.prompt_tokens == len(ids)
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


@pytest.mark.parametrize(
    ("stop", "shown"),
    [("<|im_start|>", "one two"), ("two<|im_start|>us", "one "), (">us", "one two"), ("<|im_start|>user", "one two")],
)
def test_a_stop_text_may_name_a_special_token(
    llm: thresher.LanguageModel, monkeypatch: pytest.MonkeyPatch, stop: str, shown: str
) -> None:
    ids = [*llm.encode("one two"), 256, *llm.encode("user")]
    script = iter(ids)
    monkeypatch.setattr(thresher.generate.Sampling, "draw", lambda *_: next(script))
    answer = llm.generate(TEXT, stop=stop, max_new_tokens=len(ids))
    assert "".join(answer) == shown
    assert answer.stats.finish_reason == "stop"
    script = iter(ids)
    assert "".join(llm.generate(TEXT, max_new_tokens=len(ids))) == "one twouser"


@pytest.mark.parametrize("prompt", ["naïve", "broken \ufffd", "cut 🦙"])
@pytest.mark.parametrize("parts", [[99], [1] * 99, [2, 5, 99]])
def test_an_answer_in_parts_is_the_text_of_its_tokens(
    llm: thresher.LanguageModel, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, prompt: str, parts: list[int]
) -> None:
    ids, said = llm.encode(prompt), "é 🦙\ufffd!"
    drawn = llm.encode(said)
    if prompt.startswith("cut"):
        ids, drawn, said = ids[:-1], [ids[-1], *drawn], "🦙" + said  # the answer completes the prompt's last character
    script = iter(drawn)
    monkeypatch.setattr(thresher.generate.Sampling, "draw", lambda *_: next(script))
    state, text = llm.prefill(ids), ""
    for length in parts:
        if not (left := len(drawn) + len(ids) - len(state.sequence)):
            break
        text += "".join(llm.generate(state, max_new_tokens=min(length, left)))
        state.save(tmp_path / "state")
        state = thresher.State.load(tmp_path / "state")
    assert text == said
    assert state.sequence == ids + drawn


def test_a_repetition_penalty_counts_prompt_and_answer(llm: thresher.LanguageModel) -> None:
    ids = llm.encode(TEXT)
    answer = llm.generate(ids, max_new_tokens=12, repetition_penalty=1.8)
    list(answer)
    tokens = list(ids)
    for token in answer.token_ids:
        row = llm.logits(tokens)[-1].astype(np.float64)
        for i in set(tokens):
            row[i] = row[i] / 1.8 if row[i] > 0 else row[i] * 1.8
        assert token == row.argmax()
        tokens.append(token)
    whole = llm.generate(ids, max_new_tokens=12)
    list(whole)
    assert whole.token_ids != answer.token_ids  # so that the test would notice a penalty that is not there
    parts = [llm.generate(llm.prefill(ids), max_new_tokens=5, repetition_penalty=1.8)]
    list(parts[0])
    parts.append(llm.generate(parts[0].state, max_new_tokens=7, repetition_penalty=1.8))
    list(parts[1])
    assert parts[0].token_ids + parts[1].token_ids == answer.token_ids


def test_the_authors_sampling_and_what_replaces_it(tmp_path: Path) -> None:
    directory = write_checkpoint(tmp_path / "model")
    settings = {"do_sample": True, "temperature": 1.5, "top_k": 20, "repetition_penalty": 1.2, "eos_token_id": 257}
    (directory / "generation_config.json").write_text(json.dumps(settings), encoding="utf-8")
    llm = thresher.load(directory, backend="reference")

    def answer(**options: object) -> str:
        return "".join(llm.generate(TEXT, max_new_tokens=8, seed=3, **options))

    assert answer(sampling="model") == answer(temperature=1.5, top_k=20, repetition_penalty=1.2)
    assert answer(sampling="model", top_k=1) == answer(temperature=1.5, top_k=1, repetition_penalty=1.2)
    assert answer(sampling="model", temperature=0) == answer(repetition_penalty=1.2)
    assert answer() == answer(sampling="greedy") != answer(sampling="model")
    with pytest.raises(ValueError, match="sampling: got 'authors', wanted one of greedy, model"):
        answer(sampling="authors")


def test_a_cut_at_temperature_0_says_that_it_does_nothing(llm: thresher.LanguageModel) -> None:
    with pytest.warns(UserWarning, match="top_k, min_p: does nothing at temperature 0"):
        llm.generate(TEXT, top_k=5, min_p=0.1)


def test_a_stop_token_ends_and_is_not_shown(llm: thresher.LanguageModel, monkeypatch: pytest.MonkeyPatch) -> None:
    free = llm.generate(TEXT, max_new_tokens=6)
    list(free)
    stop = free.token_ids[3]
    monkeypatch.setattr(type(llm), "stop_ids", (stop,))
    answer = llm.generate(TEXT, max_new_tokens=6)
    list(answer)
    assert answer.token_ids == free.token_ids[: free.token_ids.index(stop) + 1]
    assert answer.stats.finish_reason == "stop"


@pytest.mark.parametrize("least", [0, 1, 3, 4, 5, 12])
def test_a_stop_token_does_not_end_an_answer_that_is_too_short(
    llm: thresher.LanguageModel, monkeypatch: pytest.MonkeyPatch, least: int
) -> None:
    """257 ends answers; it stands third and sixth."""
    ids = [*llm.encode("ab"), 257, *llm.encode("cd"), 257, *llm.encode("efghij")]
    script = iter(ids)
    monkeypatch.setattr(thresher.generate.Sampling, "draw", lambda *_: next(script))
    assert 257 in llm.stop_ids
    answer = llm.generate(TEXT, min_new_tokens=least, max_new_tokens=len(ids))
    list(answer)
    expected = {0: 3, 1: 3, 3: 3, 4: 6, 5: 6, 12: 12}[least]
    assert answer.token_ids == ids[:expected]
    assert answer.stats.finish_reason == ("length" if expected == 12 else "stop")
    assert answer.text == "abcdefghij"[: expected - ids[:expected].count(257)]


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
        ("x", {"min_new_tokens": -1}, "min_new_tokens: got -1, wanted a whole number of at least 0"),
        ("x", {"min_new_tokens": 9, "max_new_tokens": 8}, "min_new_tokens: got 9, wanted at most max_new_tokens, 8"),
        ("x", {"temperature": -1}, "temperature: got -1"),
        ("x", {"stop": [""]}, "stop: got"),
        ("x", {"chunk": 0}, "chunk: got 0"),
        ("x", {"template_variables": {"tools": []}}, "template_variables: got tools for a prompt that goes through no"),
        ([65], {"template_variables": {"a": 4, "b": 1}}, "template_variables: got a, b for a prompt"),
        ("x", {"seed": -1}, "seed: got -1, wanted a whole number of at least 0"),
        (b"abc", {}, "prompt: got bytes, wanted text, token ids or messages"),
        ("half \ud83d", {}, r"prompt: got '.ud83d' at character 5"),
        ([{"role": "user", "content": "half \ud83d"}], {}, r"messages: got '.ud83d' at character"),
    ],
)
def test_bad_arguments_are_refused_at_once(
    llm: thresher.LanguageModel, prompt: object, options: dict, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        llm.generate(prompt, **options)


@pytest.mark.parametrize("prompt", ["x", [65], [{"role": "user", "content": "hi"}], Batch(["x"])])
def test_a_misspelled_option_is_an_error(llm: thresher.LanguageModel, prompt: object) -> None:
    with pytest.raises(TypeError, match="temprature"):
        llm.generate(prompt, temprature=1.0)  # type: ignore[call-overload]


def test_an_answer_is_its_text_when_printed(llm: thresher.LanguageModel) -> None:
    whole = "".join(llm.generate(TEXT, max_new_tokens=8))
    answer = llm.generate(TEXT, max_new_tokens=8)
    assert repr(answer) == "Generation('', 0 tokens so far)"
    first = next(answer)
    assert str(answer) == whole == str(answer)  # reads on, and a second time there is nothing left to read
    assert whole.startswith(first) != (first == "")
    assert (
        repr(answer) == f"Generation({whole!r}, {len(answer.token_ids)} tokens, ended by {answer.stats.finish_reason})"
    )


def test_what_is_printed_of_a_model_and_a_state_is_short(llm: thresher.LanguageModel) -> None:
    state = llm.prefill(TEXT, thresher.Policy(evict="h2o:budget=8"))
    assert repr(state).startswith(f"State({len(llm.encode(TEXT)):,} tokens read, at most 8 held per layer, ")
    assert repr(state).endswith("evict h2o:budget=8)")
    assert llm.identity in repr(llm)
    assert max(len(repr(llm)), len(repr(state))) < 250


def test_a_prompt_counts_all_that_stands_before_the_answer(llm: thresher.LanguageModel) -> None:
    first = llm.generate(TEXT, max_new_tokens=3)
    list(first)
    again = llm.generate(first.state, max_new_tokens=2)
    list(again)
    assert again.stats.prompt_tokens == len(llm.encode(TEXT)) + len(first.token_ids)


@pytest.mark.parametrize("prompt", [TEXT, [{"role": "user", "content": "hi"}]])
def test_logits_take_any_prompt(llm: thresher.LanguageModel, prompt: object) -> None:
    np.testing.assert_array_equal(llm.logits(prompt), llm.logits(np.array(llm.encode(prompt))))


def test_an_empty_state_cannot_answer(llm: thresher.LanguageModel) -> None:
    with pytest.raises(ValueError, match="state: got an empty one"):
        llm.generate(llm.new_state())


def test_logits_are_those_of_any_chunk(llm: thresher.LanguageModel) -> None:
    ids = llm.encode(TEXT)
    whole = llm.logits(ids)
    assert whole.shape == (len(ids), 258)
    assert whole.dtype == np.float32
    np.testing.assert_allclose(llm.logits(ids, chunk=7), whole, rtol=1e-3, atol=1e-4)
