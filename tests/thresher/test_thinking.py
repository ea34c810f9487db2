"""Reasoning told apart from the answer, against a rule on the whole text; its switch, its budget, and what chat keeps.

The templates are written in the manner of A.X K1's (the prompt ends in an opened or in a closed tag), Qwen3's (off
writes an empty pair) and SmolLM3's (the system message has the switch, and off an empty pair).
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

import thresher
import thresher.generate
from loaders.chat import ChatTemplate
from tests.checkpoints import TEMPLATE, THINKING, byte_tokenizer, write_checkpoint, write_thinker, write_words
from tests.loaders.files import draw
from tests.loaders.files import write_checkpoint as write_files
from tests.loaders.test_lora_families import base_of
from tests.thresher.test_cli import one_line
from tests.thresher.test_cli import thresher as command
from thresher.chat import Conversation
from thresher.cli import chat, wrap
from thresher.cli.app import app
from thresher.generate import Batch
from thresher.text import StopTexts
from thresher.thinking import BEFORE, CLOSED, OPENED, TAGS, Parts, Piece, find_tags, place_after, switch

MESSAGES = [{"role": "user", "content": "2 + 2?"}]
TURNS = "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
OPENING = "{% if add_generation_prompt %}<|im_start|>assistant\n"
AXK1 = THINKING
QWEN3 = (
    TURNS + OPENING + "{% if enable_thinking is defined and enable_thinking is false %}"
    "{{ '<think>\\n\\n</think>\\n\\n' }}{% endif %}{% endif %}"
)
SMOLLM3 = (
    "{%- if enable_thinking is not defined %}{% set enable_thinking = true %}{% endif %}"
    "<|im_start|>system\n{{ '/think' if enable_thinking else '/no_think' }}<|im_end|>\n"
    + TURNS
    + OPENING
    + "{% if not enable_thinking %}{{ '<think>\\n\\n</think>\\n' }}{% endif %}{% endif %}"
)
DEEPSEEK = (
    "{% if not thinking is defined %}{% set thinking = false %}{% endif %}" + TURNS + "{% if add_generation_prompt %}"
    "<|im_start|>assistant\n{{ '<think>' if thinking else '</think>' }}{% endif %}"
)


def rule(text: str, inside: bool) -> tuple[str, str]:
    """Reasoning and answer of a whole text, as the docs say it."""
    if not inside:
        start = text.lstrip()
        if not start.startswith("<think>"):
            return "", text
        text = start[len("<think>") :]
    text = text.lstrip("\n")
    end = text.find("</think>")
    if end < 0:
        return text, ""
    return text[:end].rstrip("\n"), text[end + len("</think>") :].lstrip("\n")


def split(pieces: Sequence[str], place: str, stop: Sequence[str] = ()) -> tuple[str, str]:
    """What `Parts` makes of the pieces."""
    parts = Parts(TAGS[0], place, StopTexts(stop))
    told = [*map(parts.feed, pieces), parts.rest()]
    return "".join(piece.reasoning for piece in told), "".join(told)


WORDS = st.sampled_from(
    ["<think>", "</think>", "<", "</", "think>", "</thin", "k>", "\n", "\n\n", " ", "a", "No <b>", "é", "x < y"]
)


@given(st.lists(WORDS, max_size=12).map("".join), st.data())
@example("<think>\nit is 4\n</think>\n\n4", None)
@example("no tag", None)
@example("<think>never closed", None)
@example("see `<think>` and </think>", None)
@example("<think>a <think> b</think> c </think>", None)
@example("\n <think></think>", None)
def test_the_parts_do_not_depend_on_how_the_text_comes(text: str, data: st.DataObject | None) -> None:
    for inside in (False, True):
        wanted = rule(text, inside)
        cuts = [[*text], [text]]
        if data is not None:
            ends = sorted(data.draw(st.lists(st.integers(0, len(text)), max_size=5)))
            cuts.append([text[i:j] for i, j in zip([0, *ends], [*ends, len(text)], strict=True)])
        for pieces in cuts:
            assert split(pieces, OPENED if inside else BEFORE) == wanted


def test_nothing_is_held_back_that_is_no_beginning_of_a_tag() -> None:
    parts = Parts(TAGS[0], OPENED, StopTexts(["stop"]))
    told = [
        parts.feed(piece) for piece in ("\n", "so", " a<b", "\n", "\nthen<", "/", "x", "</think>", "\n", "\nHi", "!")
    ]
    assert [piece.reasoning for piece in told] == ["", "so", " a<b", "", "\n\nthen", "", "</x", "", "", "", ""]
    assert told[-3:] == ["", "Hi", "!"]


def test_a_special_token_may_be_a_tag_and_no_other_is_shown() -> None:
    parts = Parts(TAGS[0], BEFORE, StopTexts([]))
    script = [("<think>", False), ("a", True), ("<other>", False), ("<think>", False), ("</think>", False), ("b", True)]
    told = [parts.feed(*each) for each in [*script, ("</think>", False), ("c", True)]]
    assert ("".join(piece.reasoning for piece in told), "".join(told)) == ("a", "bc")


def test_stop_texts_are_looked_for_in_the_answer_alone() -> None:
    parts = Parts(TAGS[0], OPENED, StopTexts(["4", "\n"]))
    told = [*map(parts.feed, ["2 + 2 = 4\nso 4\n</think>\n", "\nit is ", "4."])]
    assert ("".join(piece.reasoning for piece in told), "".join(told)) == ("2 + 2 = 4\nso 4", "it is ")


# --- a model


@pytest.fixture(scope="module", params=[False, True, None], ids=["tokens", "special", "many tokens"])
def llm(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> thresher.LanguageModel:
    directory = tmp_path_factory.mktemp("thinker") / "model"
    return thresher.load(write_thinker(directory, tags=request.param), backend="reference")


@pytest.fixture
def says(llm: thresher.LanguageModel, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Makes the model write a text, then its stop token."""

    def set_script(text: str) -> None:
        script = iter([*llm.encode(text), 257])
        monkeypatch.setattr(thresher.generate.Sampling, "draw", lambda *_: next(script))

    return set_script


def prompt(template: str, tags: bool | None = None, **variables: Any) -> str:
    return ChatTemplate({"default": template}, {}).render(MESSAGES, **variables, **switched(template, tags))


def switched(template: str, wanted: bool | None) -> dict[str, Any]:
    return dict(switch(ChatTemplate({"default": template}, {}), wanted))


@pytest.mark.parametrize(
    ("template", "on", "off", "default"),
    [
        (AXK1, "assistant\n<think>", "assistant\n</think>", False),
        (QWEN3, "assistant\n", "assistant\n<think>\n\n</think>\n\n", True),
        (SMOLLM3, "assistant\n", "assistant\n<think>\n\n</think>\n", True),
        (DEEPSEEK, "assistant\n<think>", "assistant\n</think>", False),
    ],
    ids=["axk1", "qwen3", "smollm3", "deepseek"],
)
def test_the_switch_gives_the_two_generation_prompts(template: str, on: str, off: str, default: bool) -> None:
    thinking, plain = prompt(template, True), prompt(template, False)
    assert thinking.endswith(on)
    assert plain.endswith(off)
    assert prompt(template) == (thinking if default else plain) != (plain if default else thinking)
    tokenizer = byte_tokenizer(tags=False)
    ends = [place_after(tokenizer, tokenizer.encode(text).ids, TAGS[0]) for text in (thinking, plain)]
    assert ends == [OPENED if "<think>" in on else BEFORE, CLOSED]


@pytest.mark.parametrize("thinking", [True, False])
def test_a_small_axk1_thinks_or_does_not(tmp_path: Path, thinking: bool) -> None:
    """Latent attention and experts, with a template of its own; the budget holds under eviction too."""
    config, tensors = base_of("axk1-latents")
    config["vocab_size"] = 260
    for name in ("model.embed_tokens.weight", "lm_head.weight"):
        tensors[name] = draw(name, (260, config["hidden_size"]))
    model = thresher.load(write_words(write_files(tmp_path / "model", config, tensors)), backend="reference")
    ids = model.encode(MESSAGES, enable_thinking=thinking)
    end = model.tokenizer.decode(ids, skip_special_tokens=False).removeprefix("<|im_start|>user\n2 + 2?<|im_end|>\n")
    assert end == f"<|im_start|>assistant\n{'<think>' if thinking else '</think>'}"
    policy = thresher.Policy(evict="keydiff:budget=16")
    answer = model.generate(MESSAGES, policy, enable_thinking=thinking, thinking_budget=5, max_new_tokens=12)
    list(answer)
    assert answer.stats.reasoning_tokens <= (5 if thinking else 0)
    assert (model.tokenizer.token_to_id("</think>") in answer.token_ids[:6]) or not thinking
    assert answer.stats.new_tokens == 12 or answer.stats.finish_reason == "stop"


def test_a_template_without_a_switch_says_so(llm: thresher.LanguageModel, tmp_path: Path) -> None:
    plain = thresher.load(write_checkpoint(tmp_path / "plain"), backend="reference")
    assert plain.thinking_tags is None
    for wanted in (True, False):
        with pytest.raises(ValueError, match="enable_thinking: this model's chat template has no switch for thinking"):
            plain.generate(MESSAGES, enable_thinking=wanted)
        with pytest.raises(ValueError, match="no switch for thinking"):
            Conversation(plain, enable_thinking=wanted)
    with pytest.raises(ValueError, match="thinking_budget: got 5, wanted None: nothing here tells reasoning from an"):
        plain.generate(MESSAGES, thinking_budget=5)
    for raw in ("text", [65], llm.prefill("text")):
        with pytest.raises(ValueError, match="enable_thinking: this prompt goes through no chat template"):
            llm.generate(raw, enable_thinking=True)
    with pytest.raises(ValueError, match="enable_thinking: got 'yes', wanted True, False or None"):
        llm.encode(MESSAGES, enable_thinking="yes")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="thinking_budget: got -1, wanted a whole number of at least 0"):
        llm.generate(MESSAGES, thinking_budget=-1)


def test_tags_are_found_in_the_template_or_among_the_tokens() -> None:
    written, silent = (ChatTemplate({"default": text}, {}) for text in (QWEN3, TEMPLATE))
    assert find_tags(byte_tokenizer(), silent) is find_tags(byte_tokenizer(), None) is None
    assert find_tags(byte_tokenizer(), written) == TAGS[0]
    assert find_tags(byte_tokenizer(tags=True), silent) == find_tags(byte_tokenizer(tags=False), None) == TAGS[0]
    mistral = byte_tokenizer()
    mistral.add_special_tokens([*TAGS[1]])
    assert find_tags(mistral, silent) == ("[THINK]", "[/THINK]")


@pytest.mark.parametrize("thinking", [True, False])
def test_an_answer_has_two_parts(llm: thresher.LanguageModel, says: Callable[[str], None], thinking: bool) -> None:
    thoughts = "so: 4.\nYes 4"
    says(f"\n{thoughts}\n</think>\n\nIt is 4." if thinking else "\n\nIt is 4.")
    answer = llm.generate(MESSAGES, enable_thinking=thinking, stop=["Yes", "."])
    pieces = list(answer)
    assert str(answer) == answer.text == "".join(pieces) == "It is 4"
    assert answer.reasoning == "".join(piece.reasoning for piece in pieces) == (thoughts if thinking else "")
    assert all(piece or piece.reasoning for piece in pieces)
    assert answer.stats.finish_reason == "stop"
    assert (answer.stats.reasoning_tokens > 0) is thinking
    says("a</think>b<think>c</think>")
    raw = llm.generate(MESSAGES, enable_thinking=True, separate_reasoning=False)
    shown = str(raw)
    assert (shown.replace("<think>", "").replace("</think>", ""), raw.reasoning) == ("abc", "")


@pytest.mark.parametrize("budget", [0, 1, 5, 6, 30, None])
@pytest.mark.parametrize("opened", [True, False])
def test_a_budget_ends_the_reasoning_and_the_answer_goes_on(
    llm: thresher.LanguageModel, says: Callable[[str], None], budget: int | None, opened: bool
) -> None:
    """Six tokens of reasoning; those beyond the budget are written into the answer, since the script goes on."""
    says(f"{'' if opened else '<think>'}so: 4.</think>It")
    prompt: Any = "Begin <think>" if opened else "Begin"
    answer = llm.generate(prompt, thinking_budget=budget, max_new_tokens=60)
    text, enough = str(answer), budget is None or budget > 6
    assert answer.reasoning == ("so: 4." if enough else "so: 4."[:budget])
    assert answer.stats.reasoning_tokens <= (60 if budget is None else budget)
    assert answer.stats.finish_reason == "stop"
    assert text.replace("</think>", "").removesuffix("It") == "so: 4."[len(answer.reasoning) :].lstrip("\n")
    closing = llm.encode("</think>")
    ids = answer.token_ids
    starts = [n for n in range(len(ids)) if ids[n : n + len(closing)] == closing]
    assert len(starts) == (1 if enough else 2)  # one that was fed, one that the script has
    assert starts[0] == len(answer.reasoning) + (0 if opened else len(llm.encode("<think>")))


def test_a_budget_that_is_not_reached_changes_nothing(llm: thresher.LanguageModel) -> None:
    """And one that is reached leaves what was drawn before; the closing tag is read by the model."""
    free = llm.generate(MESSAGES, enable_thinking=True, max_new_tokens=30)
    kept = llm.generate(MESSAGES, enable_thinking=True, max_new_tokens=30, thinking_budget=30)
    cut = llm.generate(MESSAGES, enable_thinking=True, max_new_tokens=30, thinking_budget=7)
    assert (str(free), free.reasoning, free.token_ids) == (str(kept), kept.reasoning, kept.token_ids)
    list(cut)
    closing = llm.encode("</think>")
    ids = llm.encode(MESSAGES, enable_thinking=True) + free.token_ids[:7] + closing
    assert cut.token_ids[: 7 + len(closing)] == free.token_ids[:7] + closing
    state = llm.prefill(ids)
    after = llm.generate(state, max_new_tokens=30 - 7 - len(closing))
    assert (str(after).lstrip("\n"), after.token_ids) == (cut.text, cut.token_ids[7 + len(closing) :])


@pytest.mark.parametrize("evict", [None, "h2o:budget=24"])
def test_a_batch_thinks_as_each_alone(llm: thresher.LanguageModel, evict: str | None) -> None:
    policy = thresher.Policy(evict=evict)
    prompts = [[{"role": "user", "content": text}] for text in ("a", "some more", "It was a dark and stormy night.")]
    for budget in (0, 6):
        options: Any = {"max_new_tokens": 14, "enable_thinking": True, "thinking_budget": budget}
        batch = llm.generate(Batch(prompts, 2), policy, **options)
        for index, piece in batch:
            assert piece or piece.reasoning, index
        alone = [llm.generate(each, policy, **options) for each in prompts]
        assert batch.texts == [str(each) for each in alone]
        assert batch.reasonings == [each.reasoning for each in alone]
        assert batch.token_ids == [each.token_ids for each in alone]
        assert all(stats.reasoning_tokens <= budget for stats in batch.stats)


@settings(max_examples=15, deadline=None)
@given(st.lists(st.integers(1, 12), min_size=1, max_size=6), st.sampled_from([AXK1, QWEN3]))
@example([8, 1], AXK1)
@example([1, 1, 3], QWEN3)
def test_an_answer_in_parts_is_told_apart_the_same(
    tmp_path_factory: pytest.TempPathFactory, lengths: list[int], template: str
) -> None:
    """Through a file, with tags that are one token each: a tag that is cut by the end of an answer is text. Line ends
    that an answer ends with are told, since nothing says that a tag follows."""
    if template not in MODELS:
        directory = write_thinker(tmp_path_factory.mktemp("parts") / "model", template)
        MODELS[template] = thresher.load(directory, backend="reference")
    llm, file = MODELS[template], tmp_path_factory.mktemp("state") / "state"
    said = "\nso\n\n4\n</think>\n\nIt is </think>4" if template == AXK1 else "\n<think>\nso\n</think>\n\n4<think>"
    drawn = llm.encode(said)
    script = iter(drawn)
    state, told, left = llm.prefill(llm.encode(MESSAGES, enable_thinking=True)), ["", ""], len(drawn)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(thresher.generate.Sampling, "draw", lambda *_: next(script))
        for length in [*lengths, 99]:
            if not left:
                break
            answer = llm.generate(state, max_new_tokens=min(length, left))
            left -= min(length, left)
            told = [told[0] + (str(answer) and answer.text), told[1] + answer.reasoning]
            state.save(file)
            state = thresher.State.load(file)
    reasoning, text = rule(said, inside=template == AXK1)
    assert (told[0] if template == AXK1 else told[0].lstrip("\n")) == text
    assert told[1].rstrip("\n") == reasoning


MODELS: dict[str, thresher.LanguageModel] = {}


def test_an_answer_to_what_is_read_on_begins_anew(llm: thresher.LanguageModel, says: Callable[[str], None]) -> None:
    state = llm.prefill("Begin <think>")
    for reasoning, text in (("a", "b"), ("c", "d")):
        says(f"{reasoning}</think>{text}")
        answer = llm.generate(state)
        assert (str(answer), answer.reasoning) == (text, reasoning)
        llm.prefill("Go on <think>", state=state)


# --- a conversation, and what a person sees


def test_a_chat_forgets_the_reasoning_and_reads_on(
    llm: thresher.LanguageModel, says: Callable[[str], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    talk = Conversation(llm, enable_thinking=True)
    says("so: 4.\n</think>\n\nIt is 4.")
    shown = list(talk.say("2 + 2?"))
    assert ("".join(piece.reasoning for piece in shown), "".join(shown)) == ("so: 4.", "It is 4.")
    assert talk.messages[-1] == {"role": "assistant", "content": "It is 4."}
    lengths, prefill = [], thresher.LanguageModel.prefill

    def counted(self: Any, ids: Any, *arguments: Any, **options: Any) -> thresher.State:
        lengths.append(len(ids))
        return prefill(self, ids, *arguments, **options)

    monkeypatch.setattr(thresher.LanguageModel, "prefill", counted)
    says("Yes.")
    talk.set_thinking(False)
    assert "".join(talk.say("Sure?")) == "Yes."
    ids = llm.encode(talk.messages[:-1], enable_thinking=False)
    assert talk.state.token_ids[: len(ids)] == ids  # no reasoning in it
    opened = llm.encode("<|im_start|>user\n2 + 2?<|im_end|>\n<|im_start|>assistant\n")
    assert lengths == [len(ids) - len(opened)]  # and what stands before it was not read again
    fresh = llm.prefill(ids)
    assert abs(fresh.logits - llm.prefill(ids[-1:], state=cut(talk.state, len(ids) - 1)).logits).max() < 1e-4


def cut(state: thresher.State, length: int) -> thresher.State:
    state.cut(length)
    return state


def test_where_tokens_were_evicted_the_past_is_read_again(
    llm: thresher.LanguageModel, says: Callable[[str], None]
) -> None:
    talk = Conversation(llm, thresher.Policy(evict="keydiff:budget=16"), enable_thinking=True)
    for _ in range(2):
        says("so: 4.</think>It is 4.")
        assert "".join(talk.say("2 + 2?")) == "It is 4."
    ids = llm.encode(talk.messages[:-1], enable_thinking=True)
    assert talk.state.token_ids[: len(ids)] == ids


def test_the_command_line_has_the_switch_and_the_budget(tmp_path: Path) -> None:
    model = write_thinker(tmp_path / "model")
    llm = thresher.load(model, backend="reference")

    def told_by(*words: str) -> Any:
        common = ["--max-new-tokens", "12", "--backend", "reference", "--json"]
        return json.loads(CliRunner().invoke(app, ["generate", str(model), *words, *common]).stdout)

    told = told_by("-p", "2 + 2?", "--think", "--thinking-budget", "4")
    wanted = llm.generate(MESSAGES, max_new_tokens=12, enable_thinking=True, thinking_budget=4)
    assert (told["text"], told["reasoning"]) == (str(wanted), wanted.reasoning)
    assert told["stats"]["reasoning_tokens"] == wanted.stats.reasoning_tokens > 0
    told = told_by("-p", "2 + 2?", "-p", "3?", "--no-think")
    assert (told[0]["text"], told[0]["reasoning"]) == (str(llm.generate(MESSAGES, max_new_tokens=12)), "")
    result = command("generate", write_checkpoint(tmp_path / "plain"), "-p", "x", "--think", "--backend", "reference")
    assert one_line(result) == "thresher: --think: this model's chat template has no switch for thinking\n"


def test_the_chats_command_switches(llm: thresher.LanguageModel, capsys: pytest.CaptureFixture[str]) -> None:
    talk = chat.Talk(Conversation(llm), [])

    def told(text: str) -> str:
        assert talk.take(text)
        return "".join(capsys.readouterr())

    assert told("/think") == "auto\n"
    for word, value in (("on", True), ("off", False), ("auto", None)):
        assert told(f"/think {word}") == ""
        assert talk.conversation.enable_thinking is value
        assert told("/think") == f"{word}\n"
    assert "/think: found 'maybe'; expected one of on, off, auto" in told("/think maybe")


def test_reasoning_is_dim_on_a_terminal_and_not_in_a_pipe(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pieces = [Piece(reasoning="so 2"), Piece(reasoning=" and 2"), Piece("4", " is 4"), Piece("!")]
    wrap.stream(pieces)
    assert capsys.readouterr().out == "4!\n"
    monkeypatch.setattr("sys.stdout.isatty", lambda: True, raising=False)
    wrap.stream(pieces)
    assert capsys.readouterr().out == f"{wrap.DIM}so 2 and 2 is 4{wrap.BRIGHT}\n\n4!\n"
    wrap.stream([*pieces[:1], "plain"])
    wrap.stream(pieces[:1])
    assert capsys.readouterr().out == f"{wrap.DIM}so 2{wrap.BRIGHT}\n\nplain\n{wrap.DIM}so 2{wrap.BRIGHT}\n"
