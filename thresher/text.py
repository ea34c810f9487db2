"""From tokens to text while they come: what each one adds, and where a stop text ends it.

What a token reads like depends on its neighbours: one may hold a part of a character, and some decoders drop the space
before the first. So a token is decoded together with those before it, and what is new in that text is told.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import islice, takewhile

from tokenizers import Tokenizer

from reference.checks import require

CONTEXT = 32  # tokens that are decoded before a new one
BROKEN = "\ufffd"  # what bytes that are no character decode to
LONGEST = 4  # bytes of a character

Tail = tuple[list[int], str]  # the ids that are decoded with the next one, and what has been told of their text


def check_text(name: str, text: str) -> str:
    """`text`, or a ValueError where it cannot be written as UTF-8 (bytes of another encoding, half a character)."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise ValueError(
            f"{name}: got {text[error.start]!r} at character {error.start}, a byte of another encoding or half of a "
            "surrogate pair, wanted text that is valid Unicode (UTF-8 where it comes as bytes)"
        ) from None
    return text


def overlap(held: str, wanted: Sequence[str]) -> int:
    """Length of the longest end of a text that is a beginning, and not all, of one of those that are wanted."""
    return max((n for text in wanted for n in range(1, len(text)) if held.endswith(text[:n])), default=0)


class TextStream:
    """The text that tokens add to a sequence: what `decode` makes of all of them, after what it makes of the first.

    token_ids: the sequence so far, all of whose text has been told; or else `tail`, where another stream stopped.
    Special tokens have no text; `special` maps their ids to their names.
    """

    def __init__(self, tokenizer: Tokenizer, token_ids: Sequence[int], tail: Tail | None = None) -> None:
        self._tokenizer = tokenizer
        self.special = {i: token.content for i, token in tokenizer.get_added_tokens_decoder().items() if token.special}
        self._ids = self._newest(token_ids) if tail is None else list(tail[0])
        self._text = self._decode(self._ids)
        self._told = self._text if tail is None else tail[1]

    def step(self, token: int) -> str:
        """The text that a token completes, often a word, sometimes nothing."""
        if token in self.special:
            return ""
        self._ids.append(token)
        self._text = self._decode(self._ids)
        new = self._tell(len(self._text.rstrip(BROKEN)))  # the next token may make a character of the rest
        if self._told == self._text and len(self._ids) > 2 * CONTEXT:
            self._ids = self._newest(self._ids)
            self._text = self._told = self._decode(self._ids)
        return new

    def finish(self) -> str:
        """What is left to tell where no token can complete it."""
        return self._tell(len(self._text))

    @property
    def tail(self) -> Tail:
        """From where another stream can go on."""
        return list(self._ids), self._told

    def _tell(self, end: int) -> str:
        told = zip(self._told, self._text, strict=False)
        start = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], told))  # what was told and still reads so
        # One broken byte breaks the whole run of bytes before it for some decoders: what was told is not told again.
        again = BROKEN * sum(1 if c == BROKEN else len(c.encode()) for c in self._told[start:])
        start += len(again) if self._text.startswith(again, start) else 0
        if end <= start:
            return ""
        self._told = self._text[:end]
        return self._text[start:end]

    def _newest(self, token_ids: Sequence[int]) -> list[int]:
        """The newest CONTEXT ids that have a text, or up to three fewer, so that they start where a character does."""
        ids = list(islice((token for token in reversed(token_ids) if token not in self.special), CONTEXT + 1))[::-1]
        starts = range(1, LONGEST + 1) if len(ids) > CONTEXT else [0]
        return ids[min(starts, key=lambda n: self._decode(ids[n:]).count(BROKEN)) :]

    def _decode(self, ids: list[int]) -> str:
        return self._tokenizer.decode(ids, skip_special_tokens=True)


class StopTexts:
    """Holds a stream of text back where it may be the beginning of a stop text, and cuts it before one."""

    def __init__(self, texts: Sequence[str]) -> None:
        for text in texts:
            require(isinstance(text, str) and bool(text), f"stop: got {list(texts)!r}, wanted texts that are not empty")
            check_text("stop", text)
        self._texts = texts
        self._held = ""
        self._shown: list[bool] = []  # per character held: a special token's name is looked for, but not shown
        self.found = False

    def feed(self, piece: str, shown: bool = True) -> str:
        """Take a piece of text; returns what may be shown now."""
        self._held += piece
        self._shown += [shown] * len(piece)
        found = [at for at in map(self._held.find, self._texts) if at >= 0]
        self.found = bool(found)
        return self._release(min(found) if found else len(self._held) - overlap(self._held, self._texts))

    def rest(self) -> str:
        """What is still held, where nothing more comes."""
        return self._release(len(self._held))

    def _release(self, end: int) -> str:
        out = "".join(c for c, shown in zip(self._held[:end], self._shown[:end], strict=True) if shown)
        self._held, self._shown = self._held[end:], self._shown[end:]
        return out
