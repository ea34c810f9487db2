"""What the command says of a mistake, in words of its own.

The library says "max_new_tokens: got 0, wanted a whole number of at least 1". Who types a command knows options and
files, so here that reads "--max-new-tokens takes a whole number of at least 1, not 0". One rule rewrites every message,
so that none has to be written twice.
"""

from __future__ import annotations

import re

SAID = re.compile(r"(?P<place>.+?)(?P<joint>:? )got (?P<got>.*?), wanted (?P<wanted>.*)", re.DOTALL)
# How each parameter of a command is typed: {"top_k": "--top-k", "model": "MODEL"}. Commands add theirs; this one has
# another name in the library.
TYPED = {"enable_thinking": "--think"}
CHOICE = re.compile(r"'(?P<word>[^']*)'.*?one of (?P<known>[\w.,/ -]+)", re.DOTALL)


def plain(message: str) -> str:
    """The message of an error as the command tells it."""
    said = SAID.fullmatch(message)
    if said is None:
        name, colon, rest = message.partition(":")
        return f"{TYPED.get(name, name)}{colon}{_typed(rest)}"
    place, got = said["place"], said["got"]
    wanted = _typed(said["wanted"]) + _suggestion(f"{got} one of {said['wanted'].partition('one of ')[2]}")
    if place in TYPED and said["joint"] == ": ":
        return f"{TYPED[place]} takes {wanted}, not {got}"
    name, colon, rest = place.partition(":")
    verb = ": found" if said["joint"] == ": " else " has"
    return f"{TYPED.get(name, name)}{colon}{rest}{verb} {got}; expected {wanted}"


def _suggestion(message: str) -> str:
    from loaders.meant import meant

    found = CHOICE.search(message)
    return meant(found["word"], re.split(r",\s*", found["known"].strip())) if found else ""


def _typed(text: str) -> str:
    """Parameters with an underscore are named as they are typed."""
    return re.sub(r"\b[a-z]+(?:_[a-z]+)+\b", lambda name: TYPED.get(name[0], name[0]), text)
