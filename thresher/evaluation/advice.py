"""Which budget is enough for one text: a ladder of budgets for every method, from the largest down.

A rung holds where every question is answered with the very tokens of the dense answer; a method's ladder ends at the
first rung that does not. The text is read once per rung and its state asked from copies, as by one who reads once and
asks many times.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from time import perf_counter
from typing import TYPE_CHECKING

from reference import CHUNK
from reference.checks import require, whole
from reference.policy import Policy
from thresher.document import split
from thresher.evaluation.methods import policy as spelled
from thresher.evaluation.samples import Ask, following

if TYPE_CHECKING:
    from thresher.model import LanguageModel

METHODS = ("quoka", "keydiff", "snapkv", "caote:base=h2o")
SHARES = (0.75, 0.5, 0.25, 0.125, 0.0625)  # of the text and its questions
Progress = Callable[[int, int], None]  # rungs tried, rungs at most


@dataclass(frozen=True)
class Reading:
    """A text read under one policy, and what was answered.

    share: its budget, of the text. keys_read: by all chunks and layers together. cache_bytes: at the end of the longest
    question. first_token: seconds from the start to the first token of the first answer.
    """

    share: float
    policy: Policy
    answers: tuple[str, ...]
    keys_read: int
    cache_bytes: int
    first_token: float


@dataclass(frozen=True)
class Advice:
    """What a method came to: the `smallest` reading whose answers were the dense ones, None where the largest budget
    was not enough; and the `failed` one below it, None where the ladder held to its end."""

    method: str
    smallest: Reading | None
    failed: Reading | None


def advise(
    llm: LanguageModel,
    text: str,
    questions: Sequence[str],
    *,
    methods: Iterable[str] = METHODS,
    max_new_tokens: int = 64,
    chunk: int = CHUNK,
    progress: Progress | None = None,
) -> tuple[Reading, list[Advice]]:
    """The dense reading of a text, and for each method the smallest budget of SHARES with the same answers.

    methods: specs without a budget, or several joined by " + ", which then share one. ValueError, before anything is
    read, for an unknown method, no method or no question, and a text beyond the model's positions.
    """
    names = [name.strip() for name in methods if name.strip()]
    require(bool(names), f"methods: got none, wanted some, such as {', '.join(METHODS)}")
    for name in names:
        require(
            "budget=" not in name,
            f"methods: got {name!r}, wanted a method without a budget: it is looked for",
        )
    require(bool(questions), "questions: got none, wanted at least one")
    whole("max_new_tokens", max_new_tokens)
    ladders = {name: [(share, spelled(_budgeted(name, share))) for share in SHARES] for name in names}
    for ladder in ladders.values():
        llm.new_state(ladder[0][1])  # which says what is wrong with it
    document, ending = split(llm, text)
    asked = [following(llm, Ask(f"\n\n{question}", ()), ending) for question in questions]
    longest = len(document) + max(map(len, asked)) + max_new_tokens
    most = llm.config.max_positions
    require(
        longest <= most, f"text: got {longest:,} tokens with questions and answers, wanted at most the model's {most:,}"
    )
    report, total = progress or (lambda done, total: None), 1 + len(names) * len(SHARES)

    def read(share: float, policy: Policy) -> Reading:
        return _read(llm, document, asked, share, policy, max_new_tokens, chunk)

    dense = read(1.0, Policy())
    report(1, total)
    found = []
    for n, (name, ladder) in enumerate(ladders.items()):
        smallest = failed = None
        for share, policy in ladder:
            reading = read(share, policy)
            if reading.answers != dense.answers:
                failed = reading
                break
            smallest = reading
            report(2 + n * len(SHARES) + SHARES.index(share), total)
        report(1 + (n + 1) * len(SHARES), total)
        found.append(Advice(name, smallest, failed))
    return dense, found


def _budgeted(method: str, share: float) -> str:
    """The method with its budget, in each of its parts."""
    return " + ".join(f"{part}{',' if ':' in part else ':'}budget={share}" for part in method.split(" + "))


def _read(
    llm: LanguageModel,
    text: list[int],
    asked: list[list[int]],
    share: float,
    policy: Policy,
    max_new_tokens: int,
    chunk: int,
) -> Reading:
    started = perf_counter()
    document = llm.prefill(text, policy, chunk=chunk) if text else llm.new_state(policy)
    seconds, answers, read, held = 0.0, [], 0, 0
    for question in asked:
        state = llm.prefill(question, state=document.copy(), chunk=chunk)
        answer = llm.generate(state, max_new_tokens=max_new_tokens)
        next(answer, None)
        seconds = seconds or perf_counter() - started
        answers.append(str(answer))
        read += int(state.counts.keys_read.sum())
        held = max(held, state.cache.nbytes)
    return Reading(share, document.policy, tuple(answers), read, held, seconds)
