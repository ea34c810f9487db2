"""The needle in a haystack: one sentence in a long text, at every depth.

The grid is depth × length: document n of a length has depth n mod 5 of 0, 25, 50, 75 and 100 %.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

from thresher.evaluation import data
from thresher.evaluation.samples import Ask, Document, Task, Tools
from thresher.evaluation.scorers.words import contains_all

DEPTHS = (0.0, 0.25, 0.5, 0.75, 1.0)
SENTENCE = re.compile(r"(?<=[.!?]) ")
QUESTION = "\n\nWhat is the password to {place}? Answer with the number alone."
PLACES = ("the treasure vault", "the old library", "the north gate", "the wine cellar", "the clock tower")


def sentences(words: int) -> list[str]:
    """So many words of the essays, from their beginning and again where they end, as sentences."""
    source = data.essay_words()
    text = " ".join((source * (words // len(source) + 1))[:words])
    return SENTENCE.split(text)


def insert(parts: list[str], needles: list[str], places: Iterable[int]) -> list[str]:
    """The parts with each needle before the part whose index is its place."""
    for place, needle in sorted(zip(places, needles, strict=True), key=lambda pair: -pair[0]):
        parts[place:place] = [needle]
    return parts


def _documents(tools: Tools, task: Task, length: int, limit: int) -> list[Document]:
    found = []
    for n in range(limit):
        rng = tools.rng(task.name, length, n)
        number, place = str(rng.integers(10_000, 100_000)), PLACES[rng.integers(len(PLACES))]
        found.append(_document(tools, task, length, n, number, place))
    return found


def _document(tools: Tools, task: Task, length: int, n: int, number: str, place: str) -> Document:
    depth = DEPTHS[n % len(DEPTHS)]
    ask = Ask(QUESTION.format(place=place), (number,))
    needle = f"The password to {place} is {number}."

    def make(words: int) -> Document:
        hay = sentences(words)
        text = " ".join(insert(hay, [needle], [int(len(hay) * depth)]))
        return Document(str(n), text, (ask,), {"depth": depth})

    return tools.largest(task, make, length)


def _score(answer: str, ask: Ask, facts: dict[str, Any]) -> float:
    return contains_all(answer, ask.wanted)


NIAH = Task("niah", _documents, _score, max_new_tokens=24)
