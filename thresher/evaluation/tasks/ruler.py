"""RULER's 13 tasks, generated here: retrieval, tracing, aggregation, question answering.

Wording, numbers of needles, lengths of answers and scores are those of Hsieh et al., RULER (2024), and of the program
that its authors published. What differs (chosen): sentences end at a full stop, question or exclamation mark and a
space; where a tokenizer makes too many tokens of the long lists of common words, the short ones are taken; the second
questions are DROP's unless the user's folder has HotpotQA's file, which comes in no package.
"""

from __future__ import annotations

import json
import string
import uuid
from collections.abc import Callable
from functools import partial
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np

from loaders.settings import shown
from reference.checks import require
from thresher.evaluation import data
from thresher.evaluation.samples import Ask, Document, Task, Tools
from thresher.evaluation.scorers.words import contains_all, contains_any
from thresher.evaluation.tasks.needles import insert, sentences

NOISE = "The grass is green. The sky is blue. The sun is yellow. Here we go. There and back again."
NEEDLE = "One of the special magic {kind} for {key} is: {value}."
HOTPOT = "hotpot_dev_distractor_v1.json"
SHORT = 4096  # below this length, or where a tokenizer makes more tokens of it, lists of words repeat less often
Rng = np.random.Generator
Make = Callable[[Tools, Task, int, int], Document]


def _generated(make: Make) -> Callable[[Tools, Task, int, int], list[Document]]:
    return lambda tools, task, length, limit: [make(tools, task, length, n) for n in range(limit)]


def _all(answer: str, ask: Ask, facts: dict[str, Any]) -> float:
    return contains_all(answer, ask.wanted)


def _any(answer: str, ask: Ask, facts: dict[str, Any]) -> float:
    return contains_any(answer, ask.wanted)


# Retrieval


def _draw(rng: Rng, kind: str) -> str:
    if kind == "numbers":
        return str(rng.integers(10**6, 10**7))
    if kind == "uuids":
        return str(uuid.UUID(bytes=rng.bytes(16), version=4))
    nouns, adjectives, _ = data.word_lists()
    return f"{adjectives[rng.integers(len(adjectives))]}-{nouns[rng.integers(len(nouns))]}"


def _places(rng: Rng, size: int, count: int) -> list[int]:
    """Places that differ, in no order."""
    return [int(place) for place in rng.choice(size, count, replace=False)]


def _retrieval(haystack: str, keys_are: str, values_are: str, keys: int, values: int, queries: int) -> Make:
    """A document in which each of `keys` has `values` values, and `queries` of them are asked for."""
    single = values * queries == 1
    kind = values_are[:-1] if single else values_are
    opening = (
        f"{'A' if single else 'Some'} special magic {kind} {'is' if single else 'are'} hidden within the following "
        f"text. Make sure to memorize it. I will quiz you about the {kind} afterwards.\n"
    )

    def document(tools: Tools, task: Task, length: int, n: int) -> Document:
        def make(size: int) -> Document:
            rng = tools.rng(task.name, length, n)
            names = [_draw(rng, keys_are) for _ in range(keys)]
            found = {name: [_draw(rng, values_are) for _ in range(values)] for name in names}
            needles = [NEEDLE.format(kind=values_are, key=key, value=v) for key in names for v in found[key]]
            rng.shuffle(needles)
            asked = [names[i] for i in rng.choice(keys, queries, replace=False)]
            query = asked[0] if queries == 1 else f"{', '.join(asked[:-1])}, and {asked[-1]}"
            if haystack == "essay":
                hay = sentences(size)
                depths = rng.choice(40, len(needles), replace=False) / 39
                context = " ".join(insert(hay, needles, [int(len(hay) * depth) for depth in depths]))
            else:
                size = size + len(needles) - 1  # places that differ
                hay = [NOISE] * size if haystack == "noise" else [_distractor(rng) for _ in range(size)]
                context = "\n".join(insert(hay, needles, _places(rng, size, len(needles))))
            question = (
                f"\nWhat {'is' if single else 'are all'} the special magic {kind} for {query} mentioned in the "
                "provided text?"
            )
            begun = f"The special magic {kind} for {query} mentioned in the provided text {'is' if single else 'are'}"
            wanted = tuple(value for key in asked for value in found[key])
            return Document(str(n), opening + context, (Ask(question, wanted, begun),))

        return tools.largest(task, make, length)

    def _distractor(rng: Rng) -> str:
        return NEEDLE.format(kind=values_are, key=_draw(rng, keys_are), value=_draw(rng, values_are))

    return document


# Tracing

TRACKING = "Memorize and track the chain(s) of variable assignment hidden in the following text.\n\n"
HOPS = 4
EXAMPLE_NOISE = 5  # sentences of the example that stands before the text


def _chain(rng: Rng, letters: int, noise: int) -> tuple[str, str, list[str]]:
    """A text with one chain of assignments in it, the value that they pass on, and the variables."""
    names: list[str] = []
    while len(names) <= HOPS:
        name = "".join(rng.choice(list(string.ascii_uppercase), letters))
        names += [name] if name not in names else []
    value = str(rng.integers(10_000, 99_999))
    steps = [f"VAR {names[0]} = {value}"]
    steps += [f"VAR {new} = VAR {old}" for old, new in pairwise(names)]
    noise += HOPS
    return "\n".join(insert([NOISE] * noise, steps, sorted(_places(rng, noise, len(steps))))), value, names


def _tracking(tools: Tools, task: Task, length: int, n: int) -> Document:
    def question(value: str) -> str:
        return f"\nQuestion: Find all variables that are assigned the value {value} in the text above."

    def begun(value: str) -> str:
        return (
            "Answer: According to the chain(s) of variable assignment in the text above, "
            f"{HOPS + 1} variables are assigned the value {value}, they are:"
        )

    def make(size: int) -> Document:
        rng = tools.rng(task.name, length, n)
        text, value, names = _chain(rng, 3, EXAMPLE_NOISE)
        example = f"{TRACKING}{text}{question(value)} {begun(value)} {' '.join(names)}\n\n"
        text, value, names = _chain(rng, 5, size)
        ask = Ask(question(value), tuple(names), begun(value))
        return Document(str(n), f"{example}{TRACKING}{text}", (ask,))

    return tools.largest(task, make, length)


# Aggregation

LISTING = (
    "Below is a numbered list of words. In these words, some appear more often than others. Memorize the ones that "
    "appear most often.\n"
)
COMMON = "\nQuestion: What are the 10 most common words in the above list?"
COMMON_BEGUN = "Answer: The top 10 words that appear most often in the list are:"
CODED = (
    "Read the following coded text and track the frequency of each coded word. Find the three most frequently appeared "
    "coded words. "
)
FREQUENT = (
    "\nQuestion: Do not provide any explanation. Please ignore the dots '....'. What are the three most frequently "
    "appeared words in the above coded text?"
)
FREQUENT_BEGUN = "Answer: According to the coded text above, the three most frequently appeared words are:"
ZETA = np.pi**2 / 6  # of 2, the exponent of the frequencies


def _numbered(words: list[str]) -> str:
    return " ".join(f"{n + 1}. {word}" for n, word in enumerate(words))


def _word_list(rng: Rng, vocabulary: list[str], size: int, often: int, seldom: int) -> tuple[str, list[str]]:
    """A shuffled list in which ten words stand `often` times and the others `seldom`, and those ten."""
    drawn = [vocabulary[i] for i in rng.choice(len(vocabulary), size, replace=False)]
    words = drawn[:10] * often + drawn[10:] * seldom
    rng.shuffle(words)
    return _numbered(words), drawn[:10]


def _common(tools: Tools, task: Task, length: int, n: int) -> Document:
    vocabulary = sorted({word for words in data.word_lists() for word in words})

    def make(size: int, example: tuple[int, int, int], often: int, seldom: int) -> Document:
        rng = tools.rng(task.name, length, n)
        listed, answer = _word_list(rng, vocabulary, *example)
        head = f"{LISTING}{listed}{COMMON} {COMMON_BEGUN} {_numbered(answer)}\n"
        text, wanted = _word_list(rng, vocabulary, size + 10, often, seldom)
        ask = Ask(COMMON, tuple(wanted), COMMON_BEGUN)
        return Document(str(n), f"{head}{LISTING}{text}", (ask,), {"often": often, "seldom": seldom})

    long = partial(make, example=(40, 10, 3), often=30, seldom=3)
    short = partial(make, example=(20, 3, 1), often=6, seldom=1)
    fits = length >= SHORT and tools.tokens(task, long(1)) <= length
    return tools.largest(task, long if fits else short, length, most=len(vocabulary) - 10)


def _frequent(tools: Tools, task: Task, length: int, n: int) -> Document:
    def make(size: int) -> Document:
        rng = tools.rng(task.name, length, n)
        codes: dict[str, None] = {}
        while len(codes) < max(5, length // 50):
            codes["".join(rng.choice(list(string.ascii_lowercase), 6))] = None
        vocabulary = ["...", *codes]
        counts = (20 * size / np.arange(1, len(vocabulary) + 1) ** 2 / ZETA).astype(int)
        words = [word for word, count in zip(vocabulary, counts, strict=True) for _ in range(count)]
        rng.shuffle(words)
        ask = Ask(FREQUENT, tuple(vocabulary[1:4]), FREQUENT_BEGUN)
        return Document(str(n), CODED + " ".join(words), (ask,))

    return tools.largest(task, make, length)


# Question answering

ORDERS = "Answer the question based on the given documents. Only give me the answer and do not output any other words."


class Question(NamedTuple):
    """A question, its answers, the passages that it is about, and others of the same article."""

    text: str
    wanted: tuple[str, ...]
    own: list[str]
    related: list[str]


def _squad(tools: Tools) -> tuple[str, list[Question]]:
    found, articles = [], dict[str, dict[str, None]]()
    for doc in data.questions("squad"):
        passage, _, rest = doc["query"].partition("\nBackground: ")[2].rpartition("\nQuestion: ")
        articles.setdefault(doc["title"], {})[passage] = None
        found.append((doc, rest.removesuffix("\nAnswer:"), passage))
    return "squad", [
        Question(question, tuple(doc["answers_text"]), [own], [p for p in articles[doc["title"]] if p != own])
        for doc, question, own in found
    ]


def _two_hops(tools: Tools) -> tuple[str, list[Question]]:
    path = tools.data / HOTPOT if tools.data else None
    if path is None or not path.exists():
        rows = data.questions("drop")
        return "drop", [
            Question(d["question"], tuple(" ".join(a) for a in d["answers"]), [d["passage"]], []) for d in rows
        ]
    try:
        return "hotpotqa", [
            Question(d["question"], (d["answer"],), [f"{title}\n{''.join(parts)}" for title, parts in d["context"]], [])
            for d in json.loads(path.read_text(encoding="utf-8"))
        ]
    except (ValueError, TypeError, KeyError) as error:
        raise ValueError(f"{path}: got something else ({shown(error)}), wanted HotpotQA's own file") from None


def _answering(source: Callable[[Tools], tuple[str, list[Question]]]) -> Callable[..., list[Document]]:
    def documents(tools: Tools, task: Task, length: int, limit: int) -> list[Document]:
        name, questions = source(tools)
        require(bool(questions), f"{task.name}: got no questions in {name}, wanted at least one")
        passages = list(dict.fromkeys(passage for question in questions for passage in question.own))
        order = tools.rng(task.name).permutation(len(questions))[:limit].tolist()
        return [_asked(tools, task, length, number, questions[number], passages, name) for number in order]

    return documents


def _asked(
    tools: Tools, task: Task, length: int, number: int, asked: Question, passages: list[str], source: str
) -> Document:
    """A question among as many passages as fit, those of the same article before all others."""
    near = {*asked.own, *asked.related}
    far = [passage for passage in passages if passage not in near]

    def make(size: int) -> Document:
        rng = tools.rng(task.name, length, number)
        others = [part[i] for part in (asked.related, far) for i in rng.permutation(len(part))]
        drawn = asked.own + others[: size - 1]
        rng.shuffle(drawn)
        context = "\n\n".join(f"Document {n + 1}:\n{passage}" for n, passage in enumerate(drawn))
        text = f"{ORDERS}\n\nThe following are given documents.\n\n{context}"
        ask = Ask(f"\n\n{ORDERS}\n\nQuestion: {asked.text}", asked.wanted, "Answer:")
        return Document(str(number), text, (ask,), {"source": source})

    return tools.largest(task, make, length, most=len(asked.related) + len(far) + 1)


RETRIEVAL: dict[str, tuple[str, str, str, int, int, int]] = {
    "niah_single_1": ("noise", "words", "numbers", 1, 1, 1),
    "niah_single_2": ("essay", "words", "numbers", 1, 1, 1),
    "niah_single_3": ("essay", "words", "uuids", 1, 1, 1),
    "niah_multikey_1": ("essay", "words", "numbers", 4, 1, 1),
    "niah_multikey_2": ("needle", "words", "numbers", 1, 1, 1),
    "niah_multikey_3": ("needle", "uuids", "uuids", 1, 1, 1),
    "niah_multivalue": ("essay", "words", "numbers", 1, 4, 1),
    "niah_multiquery": ("essay", "words", "numbers", 4, 1, 4),
}
TASKS = (
    *(Task(f"ruler/{name}", _generated(_retrieval(*how)), _all, 128) for name, how in RETRIEVAL.items()),
    Task("ruler/vt", _generated(_tracking), _all, 30),
    Task("ruler/cwe", _generated(_common), _all, 120),
    Task("ruler/fwe", _generated(_frequent), _all, 50),
    Task("ruler/qa_1", _answering(_squad), _any, 32),
    Task("ruler/qa_2", _answering(_two_hops), _any, 32),
)
