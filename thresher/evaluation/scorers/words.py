"""Answers in words: what they contain, how many of their words are right, whether they say yes or no."""

from __future__ import annotations

import re
import string
from collections import Counter
from collections.abc import Sequence

PUNCTUATION = str.maketrans("", "", string.punctuation)
ARTICLES = re.compile(r"\b(a|an|the)\b")


def normalise(text: str) -> str:
    """Lower case, without ASCII punctuation, English articles and spare white space, as SQuAD compares answers."""
    return " ".join(ARTICLES.sub(" ", text.lower().translate(PUNCTUATION)).split())


def token_f1(answer: Sequence[str], wanted: Sequence[str]) -> float:
    """2 · precision · recall / (precision + recall) of the tokens as bags; 0 where they share none."""
    same = sum((Counter(answer) & Counter(wanted)).values())
    if same == 0:
        return 0.0
    precision, recall = same / len(answer), same / len(wanted)
    return 2 * precision * recall / (precision + recall)


def qa_f1(answer: str, wanted: str) -> float:
    """`token_f1` of the normalised words."""
    return token_f1(normalise(answer).split(), normalise(wanted).split())


def contains_all(answer: str, wanted: Sequence[str]) -> float:
    """The share of the wanted texts that occur in the answer, in any case: RULER's score for all but questions."""
    return sum(text.lower() in answer.lower() for text in wanted) / len(wanted)


def contains_any(answer: str, wanted: Sequence[str]) -> float:
    """1 where one of the wanted texts occurs in the answer, in any case: RULER's score for questions."""
    return float(any(text.lower() in answer.lower() for text in wanted))


def says(answer: str, wanted: Sequence[str]) -> float:
    """1 where the first "yes" or "no" that stands in the answer as a word is one of the wanted ones."""
    found = next((word for word in normalise(answer).split() if word in ("yes", "no")), None)
    return float(found in {word.lower() for word in wanted})
