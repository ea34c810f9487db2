"""Chat templates: from messages to the text that a model was trained on.

A template is Jinja code that comes with the checkpoint, so it runs in jinja2's sandbox, with what transformers gives
it: loop controls, `raise_exception`, `strftime_now`, a `tojson` that leaves letters as they are, a `generation` block
that renders its body, the special tokens by name, and any other variable that the caller passes.

Source: transformers' utils/chat_template_utils.py, for which names templates rely on.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

from jinja2 import Template, TemplateError, meta, nodes
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

from loaders.settings import Settings
from loaders.source import Source
from loaders.tokenizer import read_settings, special_tokens
from reference.checks import require

Message = Mapping[str, Any]
FOLDER = "additional_chat_templates"
REASONING = ("reasoning_content", "thinking", "reasoning")  # names for the same field; templates read the first


class ChatTemplate:
    """A checkpoint's templates by name and its special tokens. "tool_use" answers calls with tools, "default" all
    others; any other name is asked for. text: of all templates. variables: the names that they read."""

    def __init__(self, templates: Mapping[str, str], tokens: Mapping[str, str]) -> None:
        require(bool(templates), "chat_template: got no templates, wanted at least one")
        self.tokens = dict(tokens)
        self.text = "\n".join(templates.values())
        compiled = {name: _compile(name, text) for name, text in templates.items()}
        self._templates = {name: template for name, (template, _) in compiled.items()}
        self.variables = frozenset[str]().union(*(variables for _, variables in compiled.values()))

    def render(
        self,
        messages: Sequence[Message],
        *,
        add_generation_prompt: bool = True,
        chat_template: str | None = None,
        **variables: Any,
    ) -> str:
        """The text of a conversation, up to where the model's answer starts with `add_generation_prompt`.

        messages: [{"role": "user", "content": "…"}, …]. chat_template: the name of another template. variables:
        whatever the template knows besides (`tools` as JSON schemas, `documents`, `enable_thinking`, …); one called
        like a special token replaces it. Raises ValueError for no messages, for one without a role, for a template
        that there is not, and where the template refuses them.
        """
        require(len(messages) > 0, "messages: got none, wanted at least one")
        for message in messages:
            good = isinstance(message, Mapping) and isinstance(message.get("role"), str)
            require(good, f"messages: got {message!r}, wanted a mapping with a role and content")
        usual = "tool_use" if variables.get("tools") is not None and "tool_use" in self._templates else "default"
        name, there = chat_template or usual, ", ".join(self._templates)
        require(name in self._templates, f"chat_template: got {name!r}, wanted one of the checkpoint's: {there}")
        given = {"tools": None, "documents": None, **self.tokens, **variables}
        try:
            return self._templates[name].render(
                messages=[_plain(message) for message in messages],
                add_generation_prompt=add_generation_prompt,
                **given,
            )
        except Exception as error:  # the template is the checkpoint's code and may fail in any way
            raise ValueError(f"messages: the chat template refuses them ({error})") from None


def load_template(source: Source) -> ChatTemplate | None:
    """The checkpoint's chat templates, or None where it has none. Raises ValueError for one that is not Jinja.

    The first of these that is there counts, as in transformers: files of their own (chat_template.jinja for "default",
    additional_chat_templates/NAME.jinja), what tokenizer_config.json holds, chat_template.json. The last two hold one
    template, a list of {name, template} or an object of templates by name.
    """
    named = {name: source.text(f"{FOLDER}/{name}.jinja") for name in source.texts_in(FOLDER, ".jinja")}
    named |= {"default": source.text("chat_template.jinja")}
    files = {name: text for name, text in named.items() if text is not None}
    settings = read_settings(source, "tokenizer_config.json")
    if not files and settings.get("chat_template") is None:
        settings = read_settings(source, "chat_template.json")
    templates = files or _in_settings(settings)
    if not templates:
        return None
    try:
        return ChatTemplate(templates, special_tokens(source))
    except ValueError as error:
        raise ValueError(f"{source.path}: {error}") from None


def _in_settings(settings: Settings) -> dict[str, str]:
    """The templates by name under "chat_template"."""
    found = settings.get("chat_template")
    named = {} if found is None else {"default": found} if isinstance(found, str) else found
    if isinstance(found, list):
        good = all(isinstance(t, dict) and {"name", "template"} <= t.keys() for t in found)
        settings.require("chat_template", good, "a template or a list of {name, template}")
        named = {t["name"]: t["template"] for t in found}
    good = isinstance(named, dict) and all(isinstance(text, str) for pair in named.items() for text in pair)
    settings.require("chat_template", good, "text")
    return dict(named)


def _plain(message: Message) -> dict[str, Any]:
    """The message without fields that are None, and with its reasoning under the name that templates read."""
    fields = {key: value for key, value in message.items() if value is not None}
    reasoning = next((fields[key] for key in REASONING if key in fields), None)
    return fields if reasoning is None else {"thinking": reasoning, **fields, "reasoning_content": reasoning}


class _Generation(Extension):
    """{% generation %} … {% endgeneration %} marks the model's words for training; here it is its body."""

    tags = {"generation"}  # noqa: RUF012 (jinja2's own way of declaring it)

    def parse(self, parser: Parser) -> list[nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


def _compile(name: str, text: str) -> tuple[Template, set[str]]:
    """The template, and the variables that it reads."""
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, loopcontrols]
    )
    environment.filters["tojson"] = _to_json
    environment.globals["raise_exception"] = _raise
    environment.globals["strftime_now"] = lambda layout: datetime.now().strftime(layout)
    try:
        return environment.from_string(text), meta.find_undeclared_variables(environment.parse(text))
    except Exception as error:  # beside its own errors jinja2 lets out Python's, for text nested without end
        raise ValueError(f"chat_template {name!r}: got text that is not a Jinja template ({error})") from None


def _to_json(value: Any, ensure_ascii: bool = False, **layout: Any) -> str:
    """Jinja's own filter would escape the text for HTML."""
    return json.dumps(value, ensure_ascii=ensure_ascii, **layout)


def _raise(message: str) -> None:
    raise TemplateError(message)
