"""The name that was probably meant."""

from __future__ import annotations

from collections.abc import Sequence
from difflib import get_close_matches

FEW = 4  # letters that a beginning needs to be told from others


def meant(word: str, known: Sequence[str]) -> str:
    """In brackets, with a space before them, the known name that is close to a word or begins like it; or else ""."""
    names = {name: name for name in known}
    if len(word) >= FEW:
        names = {name[: len(word) + 1]: name for name in reversed(known)} | names
    close = get_close_matches(word.lower(), names, n=1)
    return f" (did you mean {names[close[0]]}?)" if close else ""
