"""Tasks without a right answer: how likely a text is, and how far the answers agree with those without any method.

perplexity   exp of the mean of −ln p of each token of an essay, by bands of its position: 0 to 512, to 1,024, …
agreement    the answer is the one that the model gives without a method; the score is the share of its tokens that
             a method finds likeliest as well, each after the same tokens; beside it the mean of KL(dense ‖ method)
"""

from __future__ import annotations

from typing import Any

from thresher.evaluation import data
from thresher.evaluation.samples import Ask, Document, Task, Tools

ABOUT = ("What is this text about?", "Which reasons does the author give?", "How does the text end?")


def _essay(tools: Tools, task: Task, length: int, limit: int) -> list[Document]:
    """Stretches of the essays of `length` tokens, the answer included, each from another place."""
    words = data.essay_words()
    found = []
    for n in range(limit):
        rng = tools.rng(task.name, length, n)
        start = int(rng.integers(len(words)))
        asks = (Ask(f"\n\n{ABOUT[n % len(ABOUT)]}" if task.kind == "agreement" else "", ()),)

        def make(size: int, n: int = n, start: int = start, asks: tuple[Ask, ...] = asks) -> Document:
            repeated = words * (1 + (start + size) // len(words))
            return Document(str(n), " ".join(repeated[start : start + size]), asks)

        found.append(tools.largest(task, make, length))
    return found


def _no_score(answer: str, ask: Ask, facts: dict[str, Any]) -> float:
    raise NotImplementedError


TASKS = (
    Task("perplexity", _essay, _no_score, 0, kind="perplexity", chat=False),
    Task("agreement", _essay, _no_score, 32, kind="agreement"),
)
