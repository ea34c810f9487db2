"""The methods by name: how a policy is written in text, on the command line, in Python and in a saved state.

    quoka:budget=1024        keydiff:budget=0.5,sinks=4        caote:base=h2o,budget=2048        fastforward:density=0.5

A spec is a method's name and its parameters; a part left out is dense. A path may hold commas; a path called "none",
or one in which a parameter's name follows a comma, stands in double quotes, as in JSON. `parse` and `spec` undo each
other.
"""

from __future__ import annotations

import json
import re
from dataclasses import MISSING, fields
from typing import Any, get_args, get_type_hints

from reference.baselines import Random, Recent
from reference.caote import Caote
from reference.checks import require
from reference.fastforward import FastForward
from reference.keydiff import KeyDiff
from reference.predictor import FastForwardWeights
from reference.quoka import Quoka
from reference.scores import H2O, SnapKV, Tova

METHODS: dict[str, dict[str, type]] = {
    "select": {"quoka": Quoka},
    "evict": {
        "keydiff": KeyDiff,
        "h2o": H2O,
        "tova": Tova,
        "snapkv": SnapKV,
        "caote": Caote,
        "recent": Recent,
        "random": Random,
    },
    "ffn": {"fastforward": FastForward},
}


# What the forward pass asks of each part: whatever offers these is a method, also one of a reader's own.
_OFFERS = {
    "select": ("resolve", "budget_of", "columns"),
    "evict": ("resolve", "evict"),
    "ffn": ("resolve", "check", "run"),
}


def method(part: str, given: Any) -> Any:
    """The method for the policy part "select", "evict" or "ffn": `given` itself, what it spells, or None.

    ValueError for a spec that is wrong, and for anything that cannot serve there.
    """
    if given is None or given == "":
        return None
    if isinstance(given, str):
        return parse(part, given)
    serves = not isinstance(given, type) and all(callable(getattr(given, name, None)) for name in _OFFERS[part])
    if not serves:  # a method may hold arrays, which take long to write out
        names = [cls.__name__ for cls in METHODS[part].values()]
        example = f"{names[0]}(…) or a spec such as {next(iter(METHODS[part]))}:…"
        raise ValueError(f"{part}: got {given!r}, wanted a method of {', '.join(names)}: {example}")
    return given


def parse(part: str, spec: str) -> Any:
    """The method that a spec names, for the policy part "select", "evict" or "ffn". ValueError says what is wrong."""
    name, _, rest = spec.partition(":")
    known = METHODS[part]
    require(name in known, f"{part}: got {name!r}, wanted one of {', '.join(known)}")
    kinds = get_type_hints(known[name])
    texts: dict[str, str] = {}
    last = ""
    for item in rest.split(","):
        key, equals, text = item.partition("=")
        names = [f.name for f in fields(known[name])]
        if last and (_unclosed(texts[last]) or (key not in names and FastForwardWeights in get_args(kinds[last]))):
            texts[last] += f",{item}"
        elif item:
            require(key in names, f"{part}: {name} got the parameter {key!r}, wanted one of {', '.join(names)}")
            require(bool(equals), f"{part}: {name} got {item!r}, wanted {key}=VALUE")
            texts[key], last = text, key
    values = {key: _value(f"{part}: {name} {key}", text, kinds[key]) for key, text in texts.items()}
    for field in fields(known[name]):
        needed = field.default is MISSING and field.default_factory is MISSING
        require(not needed or field.name in values, f"{part}: {name} got no {field.name}, wanted {name}:{field.name}=…")
    return known[name](**values)


def _value(label: str, text: str, kind: Any) -> Any:
    """`text` as the first of the types in `kind` that can read it."""
    kinds = get_args(kind) or (kind,)
    if type(None) in kinds and text == "none":
        return None
    if bool in kinds and text in ("true", "false"):
        return text == "true"
    for number in (int, float):
        if number in kinds:
            try:
                return number(text)
            except ValueError:
                pass
    require(str in kinds, f"{label}: got {text!r}, wanted {' or '.join(k.__name__ for k in kinds)}")
    if not text.startswith('"'):
        return text
    try:
        return json.loads(text)
    except ValueError:
        raise ValueError(f"{label}: got {text}, wanted text that ends where its quotes do") from None


def _unclosed(text: str) -> bool:
    """Whether a quoted text goes on after a comma."""
    return text.startswith('"') and not re.fullmatch(r'"(\\.|[^"\\])*"', text)


def spec(method: Any) -> str:
    """The spec of a method: its name and every parameter that is not at its default."""
    names = {cls: name for part in METHODS.values() for name, cls in part.items()}
    require(type(method) in names, f"policy: got a {type(method).__name__}, wanted one of {', '.join(names.values())}")
    name = names[type(method)]
    changed = [
        (field.name, getattr(method, field.name))
        for field in fields(method)
        if field.default is MISSING or not _found_anyway(getattr(method, field.name), field.default)
    ]
    return ":".join(filter(None, [name, ",".join(f"{key}={_text(value)}" for key, value in changed)]))


def _found_anyway(value: Any, default: Any) -> bool:
    """Whether a parameter need not be written: it has its default, or is found with the package where it is none."""
    along = isinstance(value, FastForwardWeights) and value.metadata.get("path") == ""
    return along or value == default


def _text(value: Any) -> str:
    if isinstance(value, FastForwardWeights):
        path = value.metadata.get("path")  # where they were read from
        require(path is not None, "weights: got FastForward weights that come from no file, wanted ones that do")
        value = path
    if isinstance(value, str):
        return json.dumps(value) if value in ("", "none") or value[0] == '"' or "," in value else value
    return "none" if value is None else str(value).lower() if isinstance(value, bool) else str(value)
