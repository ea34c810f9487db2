"""What a request may say: OpenAI's fields for chat and text completions, a few of the engine's own, and nothing else.

A field that would change the answer in a way that the engine does not know is an error, never left out in silence; so
is a field that nobody knows. What only serves OpenAI's own bookkeeping is accepted and does nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from reference import FastForward, Policy
from reference.specs import METHODS
from thresher.answers.panel import KAPPA

MOST_TOP = 20  # alternatives per token, as OpenAI has it
MOST_STOPS, LONGEST_STOP = 16, 1000  # stop texts, and characters of one: each is looked for after every token
DEFAULT_NEW_TOKENS = 16  # of a text completion, as OpenAI has it

IGNORED = frozenset(
    ("user", "metadata", "store", "service_tier", "safety_identifier", "prompt_cache_key", "parallel_tool_calls")
)
ONLY: dict[str, tuple[Any, ...]] = {  # accepted where they change nothing
    "frequency_penalty": (0,),
    "presence_penalty": (0,),
    "logit_bias": ({},),
    "tools": ([],),
    "tool_choice": ("none", "auto"),
    "response_format": ({"type": "text"},),
    "modalities": (["text"],),
    "echo": (False,),
    "suffix": ("",),
    "best_of": (1,),
}
SAMPLING = ("temperature", "top_p", "top_k", "min_p", "repetition_penalty")


class BadRequest(ValueError):
    """What is wrong with a request: the message, the field, and OpenAI's code for it where there is one."""

    def __init__(self, message: str, param: str | None = None, code: str | None = None, status: int = 400) -> None:
        super().__init__(message)
        self.param, self.code, self.status = param, code, status


@dataclass(frozen=True)
class Request:
    """A request that makes sense by itself: what to answer, and how.

    prompts: texts, token ids or conversations. options: what `LanguageModel.generate` takes. policy: the request's own,
    None for the server's. top: how many alternatives of each token are told, None for no log-probabilities.
    """

    chat: bool
    model: str | None
    prompts: list[Any]
    options: dict[str, Any]
    policy: Policy | None
    copies: int
    stream: bool
    include_usage: bool
    top: int | None

    @classmethod
    def of(cls, body: Any, *, chat: bool, max_new_tokens: int) -> Request:
        """The request that a JSON body makes. BadRequest says what is wrong with it."""
        given = _Fields(body)
        limit = given.take("max_tokens", _whole)
        if chat:
            limit = given.take("max_completion_tokens", _whole, limit)
        options = {"max_new_tokens": limit or (max_new_tokens if chat else DEFAULT_NEW_TOKENS)}
        options |= {"seed": given.take("seed", _seed), "stop": given.take("stop", _stops, [])}
        options |= {name: given.take(name, _number) for name in SAMPLING}
        if chat:
            variables = given.take("chat_template_kwargs", _variables, {})
            thinking = variables.pop("enable_thinking", None)
            options |= {"template_variables": variables, "enable_thinking": thinking}
            options |= {"thinking_budget": given.take("thinking_token_budget", _budget)}
            prompts: list[Any] = [given.needed("messages", _messages)]
            told, top = given.take("logprobs", _flag, False), given.take("top_logprobs", _top)
            if top and not told:
                raise BadRequest("top_logprobs: got some without logprobs, wanted logprobs: true", "top_logprobs")
            top = (top or 0) if told else None
        else:
            options["separate_reasoning"] = False  # a text goes on as it is
            prompts, top = given.needed("prompt", _prompts), given.take("logprobs", _top)
        stream = given.take("stream", _flag, False)
        request = cls(
            chat=chat,
            model=given.take("model", _text),
            prompts=prompts,
            options=options,
            policy=given.take("thresher", _policy),
            copies=given.take("n", _whole, 1),
            stream=stream,
            include_usage=_include_usage(given.take("stream_options", _object), stream),
            top=top,
        )
        given.done()
        return request


@dataclass(frozen=True)
class Question:
    """What /v1/ask is asked. kappa: how many answers are looked for, the most reliable source first."""

    text: str
    model: str | None
    kappa: int

    @classmethod
    def of(cls, body: Any) -> Question:
        """The question that a JSON body makes. BadRequest says what is wrong with it."""
        given = _Fields(body)
        text = given.needed("question", _text)
        _require(bool(text.strip()), "question", text, "a text that is not empty")
        question = cls(text, given.take("model", _text), given.take("kappa", _whole, KAPPA))
        given.done()
        return question


class _Fields:
    """A body's fields, taken one by one; null counts as left out."""

    def __init__(self, body: Any) -> None:
        if not isinstance(body, Mapping):
            raise BadRequest(f"body: got {_kind(body)}, wanted a JSON object")
        self._left = {name: value for name, value in body.items() if value is not None}

    def take(self, name: str, read: Callable[[str, Any], Any], default: Any = None) -> Any:
        return read(name, self._left.pop(name)) if name in self._left else default

    def needed(self, name: str, read: Callable[[str, Any], Any]) -> Any:
        if name not in self._left:
            raise BadRequest(f"{name}: got none, wanted what to answer", name, "missing_required_parameter")
        return self.take(name, read)

    def done(self) -> None:
        """BadRequest for what is left and would change the answer, or means nothing."""
        for name, value in self._left.items():
            if name in IGNORED or (name in ONLY and value in ONLY[name]):
                continue
            if name in ONLY:
                wanted = f"nothing but {' or '.join(repr(each) for each in ONLY[name])}: the engine has no such part"
                raise BadRequest(f"{name}: got {_short(value)}, wanted {wanted}", name, "unsupported_parameter")
            raise BadRequest(f"{_short(name)}: no such field is known here", name, "unknown_parameter")


def _short(value: Any) -> str:
    told = repr(value)
    return told if len(told) <= 60 else f"{told[:57]}…"


def _kind(value: Any) -> str:
    kinds: dict[type, str] = {dict: "an object", list: "a list", str: "a text", bool: "true or false"}
    return kinds.get(type(value), "null" if value is None else "a number")


def _require(holds: bool, name: str, value: Any, wanted: str) -> None:
    if not holds:
        raise BadRequest(f"{name}: got {_short(value)}, wanted {wanted}", name)


def _text(name: str, value: Any) -> str:
    _require(isinstance(value, str), name, value, "a text")
    return str(value)


def _flag(name: str, value: Any) -> bool:
    _require(isinstance(value, bool), name, value, "true or false")
    return bool(value)


def _whole(name: str, value: Any) -> int:
    _require(type(value) is int and value >= 1, name, value, "a whole number of at least 1")
    return int(value)


def _budget(name: str, value: Any) -> int:
    _require(type(value) is int and value >= 0, name, value, "a whole number of at least 0")
    return int(value)


def _seed(name: str, value: Any) -> int:
    """A generator takes no seed below 0, and OpenAI's interface does."""
    _require(type(value) is int and abs(value) < 2**63, name, value, "a whole number of 64 bits")
    return value % 2**64


def _number(name: str, value: Any) -> float:
    _require(type(value) in (int, float), name, value, "a number")
    return value


def _top(name: str, value: Any) -> int:
    _require(type(value) is int and 0 <= value <= MOST_TOP, name, value, f"a whole number from 0 to {MOST_TOP}")
    return int(value)


def _object(name: str, value: Any) -> dict[str, Any]:
    _require(isinstance(value, Mapping), name, value, "an object")
    return dict(value)


def _variables(name: str, value: Any) -> dict[str, Any]:
    """What a chat template is given besides the messages."""
    variables = _object(name, value)
    _require("messages" not in variables, name, variables, "other names than messages")
    _text(f"{name}.chat_template", variables.get("chat_template", ""))
    if variables.get("enable_thinking") is not None:
        _flag(f"{name}.enable_thinking", variables["enable_thinking"])
    return variables


def _stops(name: str, value: Any) -> list[str]:
    texts = [value] if isinstance(value, str) else value
    good = isinstance(texts, list) and len(texts) <= MOST_STOPS
    good = good and all(isinstance(text, str) and 0 < len(text) <= LONGEST_STOP for text in texts)
    _require(good, name, value, f"up to {MOST_STOPS} texts of 1 to {LONGEST_STOP} characters")
    return list(texts)


def _include_usage(options: dict[str, Any] | None, stream: bool) -> bool:
    if options is None:
        return False
    if not stream:
        raise BadRequest("stream_options: got some for an answer that is not streamed, wanted none", "stream_options")
    options.pop("include_obfuscation", None)  # padding against listeners: there is none here
    usage = options.pop("include_usage", False)
    _require(not options, "stream_options", options, "include_usage alone")
    return _flag("stream_options.include_usage", usage)


def _policy(name: str, value: Any) -> Policy:
    """The methods of one request. Files are the server's own: a request may not name one."""
    _require(isinstance(value, Mapping), name, value, '{"evict": "keydiff:budget=2048", …}')
    parts = dict(value)
    unknown = [part for part in parts if part not in METHODS]
    _require(not unknown, name, unknown, f"{', '.join(METHODS)}")
    for part, words in parts.items():
        _require(words is None or isinstance(words, str), f"{name}.{part}", words, "a method's text")
    try:
        policy = Policy(**parts)
    except ValueError as error:
        raise BadRequest(f"{name}.{error}", name) from None
    if isinstance(policy.ffn, FastForward) and policy.ffn.weights is not None:
        raise BadRequest("thresher.ffn: got weights, wanted none: which files are read is the server's matter", name)
    return policy


def _messages(name: str, value: Any) -> list[dict[str, Any]]:
    _require(isinstance(value, list) and len(value) > 0, name, value, "a list of at least one message")
    return [_message(f"{name}[{n}]", message) for n, message in enumerate(value)]


def _message(name: str, value: Any) -> dict[str, Any]:
    good = isinstance(value, Mapping) and isinstance(value.get("role"), str)
    _require(good, name, value, "an object with a role and content")
    role = "system" if value["role"] == "developer" else value["role"]  # the newer word for the same
    return {**value, "role": role, "content": _content(f"{name}.content", value.get("content"))}


def _content(name: str, value: Any) -> str:
    """A text, or the text of all parts."""
    if isinstance(value, str):
        return value
    _require(isinstance(value, list), name, value, "a text, or a list of parts of type text")
    for n, part in enumerate(value):
        good = isinstance(part, Mapping) and part.get("type") == "text" and isinstance(part.get("text"), str)
        _require(good, f"{name}[{n}]", part, "a part of type text: the engine reads nothing else")
    return "".join(part["text"] for part in value)


def _prompts(name: str, value: Any) -> list[Any]:
    """One prompt or several, each a text or token ids."""
    if isinstance(value, str):
        return [value]
    wanted = "a text, token ids, or a list of one of them"
    _require(isinstance(value, list) and len(value) > 0, name, value, wanted)
    if all(type(item) is int for item in value):
        return [_ids(name, value)]
    for item in value:
        _require(isinstance(item, (str, list)), name, item, wanted)
    return [item if isinstance(item, str) else _ids(name, item) for item in value]


def _ids(name: str, value: Sequence[Any]) -> list[int]:
    good = len(value) > 0 and all(type(item) is int and 0 <= item < 2**31 for item in value)
    _require(good, name, value, "token ids")
    return list(value)
