"""Chat templates against transformers: its text as recorded, and live where it is installed."""

from __future__ import annotations

import json
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest

from loaders.chat import ChatTemplate, load_template
from tests.loaders.chats import CASES, CHATML, CONVERSATIONS, QWEN3, TOKENS, case
from tests.loaders.test_tokenizer import Files

RECORDED = json.loads(Path(__file__).with_name("chats.json").read_text(encoding="utf-8"))
HELLO = CONVERSATIONS["one"]


def check(name: str, wanted: str | None) -> None:
    text, messages, variables = case(name)
    template = ChatTemplate({"default": text}, TOKENS)
    if wanted is None:
        with pytest.raises(ValueError, match="messages: the chat template refuses them") as caught:
            template.render(messages, **variables)
        assert "\n" not in str(caught.value)
    else:
        assert template.render(messages, **variables) == wanted


@pytest.mark.parametrize("name", CASES)
def test_text_is_the_recorded_one(name: str) -> None:
    check(name, RECORDED[name])


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning")
def test_text_is_that_of_transformers_here() -> None:
    pytest.importorskip("transformers")
    from tests.loaders.record_chats import render

    for name in CASES:
        check(name, render(*case(name)))


def test_a_refusal_says_what_the_template_says() -> None:
    text, messages, _ = case("gemma upside-down plain")
    with pytest.raises(ValueError, match="roles must alternate user/assistant"):
        ChatTemplate({"default": text}, TOKENS).render(messages)


def test_the_answer_is_opened_unless_told_otherwise() -> None:
    template = ChatTemplate({"default": CHATML}, {})
    opened = template.render(HELLO)
    assert opened == template.render(HELLO, add_generation_prompt=False) + "<|im_start|>assistant\n"


def test_messages_stay_as_they_are() -> None:
    messages: list[dict[str, Any]] = [*HELLO, {"role": "assistant", "content": "x", "thinking": "y", "name": None}]
    before = json.dumps(messages)
    assert "<think>\ny\n</think>" in ChatTemplate({"default": QWEN3}, {}).render(messages)
    assert json.dumps(messages) == before


def test_dates_are_todays() -> None:
    before = datetime.now().strftime("%d %b %Y")
    text = ChatTemplate({"default": "{{ strftime_now('%d %b %Y') }}"}, {}).render(HELLO)
    assert text in (before, datetime.now().strftime("%d %b %Y"))


@pytest.mark.parametrize(
    "attack",
    [
        "{{ ''.__class__.__mro__[1].__subclasses__() }}",
        "{{ messages.append({'role': 'user', 'content': 'x'}) }}",
        "{{ cycler.__init__.__globals__ }}",
        "{{ raise_exception.__globals__['json'] }}",
    ],
)
def test_templates_run_in_a_sandbox(attack: str) -> None:
    with pytest.raises(ValueError, match="the chat template refuses them"):
        ChatTemplate({"default": attack}, {}).render(HELLO)


@pytest.mark.parametrize(
    ("messages", "line"),
    [
        ([], "messages: got none, wanted at least one"),
        (["hello"], "messages: got 'hello', wanted a mapping with a role"),
        ([{"content": "x"}], "messages: got {'content': 'x'}, wanted a mapping with a role"),
    ],
)
def test_wrong_messages_are_named(messages: list[Any], line: str) -> None:
    with pytest.raises(ValueError, match=line):
        ChatTemplate({"default": CHATML}, {}).render(messages)


def from_config(**config: Any) -> ChatTemplate:
    template = load_template(Files({"tokenizer_config.json": config}))
    assert template is not None
    return template


def test_templates_are_found_where_checkpoints_keep_them() -> None:
    assert load_template(Files({})) is None
    assert load_template(Files({"tokenizer_config.json": {"chat_template": None}})) is None
    assert from_config(chat_template="plain").render(HELLO) == "plain"
    both = Files({"tokenizer_config.json": {"chat_template": "older"}, "chat_template.jinja": "newer"})
    template = load_template(both)
    assert template is not None
    assert template.render(HELLO) == "newer"
    named = [{"name": "default", "template": "d"}, {"name": "tool_use", "template": "t"}]
    assert from_config(chat_template=named).render(HELLO) == "d"
    assert from_config(chat_template=named).render(HELLO, tools=[]) == "t"
    assert from_config(chat_template=named[:1]).render(HELLO, tools=[]) == "d"
    assert load_template(Files({"tokenizer_config.json": {"chat_template": []}})) is None


@pytest.mark.parametrize(
    ("texts", "default", "with_tools"),
    [
        ({"chat_template.jinja": "A"}, "A", "A"),
        ({"chat_template.jinja": ""}, "", ""),
        ({"chat_template.jinja": "A", "additional_chat_templates/tool_use.jinja": "T"}, "A", "T"),
        ({"additional_chat_templates/tool_use.jinja": "T"}, None, "T"),
        ({"additional_chat_templates/rag.jinja": "R"}, None, None),
        ({"chat_template.json": {"chat_template": "J"}}, "C", "C"),  # the tokenizer's config goes before it
    ],
)
def test_files_of_templates_count_as_in_transformers(
    texts: dict[str, Any], default: str | None, with_tools: str | None, tmp_path: Path
) -> None:
    files = Files({"tokenizer_config.json": {"chat_template": "C"}, **texts})
    template = load_template(files)
    assert template is not None
    for tools, wanted in ((None, default), ([], with_tools)):
        if wanted is None:
            with pytest.raises(ValueError, match="chat_template: got 'default', wanted one of the checkpoint's: "):
                template.render(HELLO, tools=tools)
        else:
            assert template.render(HELLO, tools=tools) == wanted


def test_a_template_of_another_name_is_asked_for() -> None:
    files = Files({"chat_template.jinja": "A", "additional_chat_templates/rag.jinja": "R {{ documents }}"})
    template = load_template(files)
    assert template is not None
    assert template.render(HELLO, chat_template="rag", documents=7) == "R 7"
    with pytest.raises(ValueError, match="chat_template: got 'poem', wanted one of the checkpoint's: rag, default"):
        template.render(HELLO, chat_template="poem")


def test_a_processors_template_is_better_than_none() -> None:
    template = load_template(Files({"chat_template.json": {"chat_template": "J"}}))
    assert template is not None
    assert template.render(HELLO) == "J"


def test_special_tokens_are_the_checkpoints_unless_given() -> None:
    template = from_config(
        chat_template="{{ bos_token }}{{ eos_token }}", bos_token="<s>", eos_token={"content": "</s>"}
    )
    assert template.render(HELLO) == "<s></s>"
    assert template.render(HELLO, bos_token="!") == "!</s>"


@pytest.mark.parametrize(
    ("found", "line"),
    [
        ("{% for %}", "chat_template 'default': got text that is not a Jinja template"),
        (7, "tokenizer_config.json: chat_template: got 7, wanted text"),
        ([{"name": "default"}], "chat_template: got .* wanted a template or a list of {name, template}"),
        ({"default": 3}, "chat_template: got {'default': 3}, wanted text"),
        ("{{ " + "(" * 5000 + " }}", "chat_template 'default': got text that is not a Jinja template"),
    ],
)
def test_wrong_templates_are_named(found: Any, line: str) -> None:
    with pytest.raises(ValueError, match=f"some-model: .*{line}"):
        from_config(chat_template=found)
