"""Reasoning that a model writes before its answer: how it is switched, and how a stream of text is told apart.

A chat template may have a switch for it, and may end the prompt with an opened tag. The reasoning stands between two
tags at the very beginning of what a model writes. Whatever comes after the first closing tag is the answer, further
tags included, and so is all of a text that does not begin with the opening tag.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

from reference.checks import require
from thresher.text import CONTEXT, StopTexts, overlap

if TYPE_CHECKING:
    from tokenizers import Tokenizer

    from loaders.chat import ChatTemplate

SWITCHES = ("enable_thinking", "thinking")  # a template reads one of them: the second in DeepSeek-V3.1 and Granite

# Where a text stands. A place that is OPENED or CLOSED has told nothing since its tag, and drops line ends.
BEFORE, OPENED, REASONING, CLOSED, ANSWER = "before", "opened", "reasoning", "closed", "answer"


class Tags(NamedTuple):
    """What stands before and after the reasoning."""

    opening: str
    closing: str


TAGS = (Tags("<think>", "</think>"), Tags("[THINK]", "[/THINK]"))  # the second is Mistral's


def find_tags(tokenizer: Tokenizer, template: ChatTemplate | None) -> Tags | None:
    """The tags of a model: those that its template writes, or that are tokens of its own; None for a model without."""

    def has(tags: Tags) -> bool:
        tokens = all(tokenizer.token_to_id(tag) is not None for tag in tags)
        return tokens or (template is not None and any(tag in template.text for tag in tags))

    def writes(tag: str) -> bool:
        return bool(tokenizer.decode(closing_ids(tokenizer, tag), skip_special_tokens=False).strip() == tag)

    return next((tags for tags in TAGS if has(tags) and writes(tags.closing)), None)


def closing_ids(tokenizer: Tokenizer, tag: str) -> list[int]:
    """The ids of a tag."""
    return list(tokenizer.encode(tag, add_special_tokens=False).ids)


def switch(template: ChatTemplate | None, wanted: bool | None) -> dict[str, bool]:
    """What turns thinking on or off in a template, as variables of it; none where nothing is wanted. template: None
    for a prompt that goes through none. ValueError where there is no switch."""
    if wanted is None:
        return {}
    require(isinstance(wanted, bool), f"enable_thinking: got {wanted!r}, wanted True, False or None")
    if template is None:
        raise ValueError("enable_thinking: this prompt goes through no chat template, which has the switch")
    names = [name for name in SWITCHES if name in template.variables]
    require(bool(names), "enable_thinking: this model's chat template has no switch for thinking")
    return dict.fromkeys(names, wanted)


def check_budget(budget: int | None, tags: Tags | None) -> None:
    """ValueError for a budget where nothing has tags to keep it by."""
    told = f"thinking_budget: got {budget}, wanted None: nothing here tells reasoning from an answer"
    require(budget is None or tags is not None, told)


def place_after(tokenizer: Tokenizer, token_ids: Sequence[int], tags: Tags) -> str:
    """Where an answer to a prompt begins: a prompt may end in a tag."""
    end = tokenizer.decode(list(token_ids[-CONTEXT:]), skip_special_tokens=False).rstrip()
    return OPENED if end.endswith(tags.opening) else CLOSED if end.endswith(tags.closing) else BEFORE


class Piece(str):
    """A piece of an answer's text, often a word, with what its tokens add to the reasoning. One of the two is usually
    empty."""

    reasoning: str

    def __new__(cls, text: str = "", reasoning: str = "") -> Piece:
        """A piece of both."""
        piece = super().__new__(cls, text)
        piece.reasoning = reasoning
        return piece

    def then(self, other: Piece) -> Piece:
        """Both pieces as one."""
        return Piece(self + other, self.reasoning + other.reasoning)


class Parts:
    """Tells the reasoning in a stream of text from the answer, in which stop texts are looked for.

    Line ends beside a tag belong to neither part. What may be the beginning of a tag is held back. tags: None for a
    text that is all answer. place: where the text begins.
    """

    def __init__(self, tags: Tags | None, place: str, stops: StopTexts) -> None:
        self._tags, self._stops = tags or Tags("", ""), stops
        self.place = place if tags else ANSWER
        self._held = ""

    @property
    def inside(self) -> bool:
        """Whether what comes next is reasoning."""
        return self.place in (OPENED, REASONING)

    def feed(self, piece: str, shown: bool = True) -> Piece:
        """Take a piece of text, or with shown=False the name of a special token; returns what may be shown now."""
        awaited = self._tags.opening if self.place == BEFORE else self._tags.closing if self.inside else None
        if shown or piece == awaited:
            self._held += piece
            return self._settle()
        return Piece() if self.inside else Piece(self._answer() + self._stops.feed(piece, shown=False))

    def rest(self) -> Piece:
        """What is still held, where nothing more comes."""
        held, self._held = self._held, ""
        if self.inside:
            return Piece(reasoning=held)
        if held.strip():
            self.place = ANSWER
        return Piece(self._stops.feed(held) + self._stops.rest())

    def _settle(self) -> Piece:
        """Move what is held to the part that it belongs to, as far as that is known."""
        reasoning = ""
        if self.place == BEFORE:
            start = self._held.lstrip()
            if start.startswith(self._tags.opening):
                self.place, self._held = OPENED, start.removeprefix(self._tags.opening)
            elif self._tags.opening.startswith(start):
                return Piece()
        if self.inside:
            reasoning = self._reasoning()
        if self.place == CLOSED:
            self._held = self._held.lstrip("\n")
        return Piece("" if self.inside or not self._held else self._answer(), reasoning)

    def _reasoning(self) -> str:
        """What is held, up to the closing tag or what may become one."""
        if self.place == OPENED:
            self._held = self._held.lstrip("\n")
        thoughts, tag, after = self._held.partition(self._tags.closing)
        if tag:
            self.place, self._held = CLOSED, after
            return thoughts.rstrip("\n")
        told = thoughts[: len(thoughts) - overlap(thoughts, [self._tags.closing])].rstrip("\n")
        self._held = self._held[len(told) :]
        self.place = REASONING if told else self.place
        return told

    def _answer(self) -> str:
        """What is held, of the answer."""
        held, self._held = self._held, ""
        self.place = ANSWER
        return self._stops.feed(held)
