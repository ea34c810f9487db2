"""Sources whose reliability is known: SQuAD and DROP, with the facts of a share of each source's texts swapped.

A source holds the text of a question with probability 0.6. With probability p_i, its reliability, the text is as it
was; else every right answer in it is replaced by another question's answer of the same kind. Who answers from a swapped
text is wrong, and two that are wrong seldom agree.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from time import perf_counter
from typing import Any

import numpy as np

from benchmarks import voting
from loaders.settings import json_object
from thresher.answers.reader import TOP, alike
from thresher.answers.sources import Source, bm25, cut, read_sources
from thresher.answers.work import Asked
from thresher.evaluation import data
from thresher.evaluation.cells import Row
from thresher.evaluation.folder import write_json
from thresher.evaluation.scorers.words import normalise

PRIORS = {"beta": voting.PRIORS["Beta(3, 2)"], "hammers": voting.PRIORS["adversaries and hammers"]}
LONGEST, MOST = 6, 250  # words of an answer and of a text


@dataclass(frozen=True)
class Question:
    """A question, the text that tells, and the answers that are right, all of which stand in the text."""

    question: str
    text: str
    wanted: tuple[str, ...]

    @property
    def kind(self) -> str:
        """What its answer looks like: digits as 0, or words that begin with a capital letter or do not."""
        answer = self.wanted[0]
        if any(c.isdigit() for c in answer):
            return re.sub(r"\d", "0", answer) if len(answer.split()) == 1 else "number and words"
        return "name" if answer[0].isupper() else "words"


@dataclass(frozen=True)
class Timed(Asked):
    """The same questions again and again: what they cost where passages are read anew, and from kept states."""

    def rows(self) -> list[Row]:
        """Seconds and tokens of each way, and whether the answers are the same."""
        asked = [(source, query) for query in self.queries for source in read_sources(self.folder)]
        found: Row = {"about": self.about, "block": self.block, "asked": len(asked)}
        said = []
        with TemporaryDirectory() as folder:
            # The first way does not count: kernels are made ready. The third writes states down, the last has them.
            for way, states in (
                ("", None),
                ("anew", None),
                ("keeping", (folder, 1 << 40)),
                ("kept", (folder, 1 << 40)),
            ):
                reader, _ = replace(self.reading, states=states).reader()
                started = perf_counter()
                said.append(reader.answers(asked))
                found[way] = {"seconds": perf_counter() - started, **vars(reader.cost)}
            sizes = [path.stat().st_size for path in Path(folder).iterdir()]
        del found[""]
        found |= {"states": len(sizes), "bytes": sum(sizes)}
        return [found | {"same": said[0] == said[1] == said[2] == said[3]}]


def questions(file: Path | None = None) -> list[Question]:
    """One of each text, whose facts can be swapped and whose answer is found: of the package's SQuAD and DROP, or as
    `save` wrote them."""
    if file is not None:
        told = [json_object(line, str(file)) for line in file.read_text(encoding="utf-8").splitlines()]
        return [Question(each["question"], each["text"], tuple(each["wanted"])) for each in told]
    found: dict[str, Question] = {}
    for each in (*_squad(), *_drop()):
        if _swappable(each):
            found.setdefault(each.text, each)
    return _findable(list(found.values()))


def save(found: list[Question], file: Path) -> None:
    """A line of JSON for each, for a machine that has no package."""
    file.write_text("".join(json.dumps(asdict(each)) + "\n" for each in found), encoding="utf-8")


def chosen(found: list[Question], count: int) -> list[Question]:
    """That many, always the same ones."""
    return [found[n] for n in np.random.default_rng(0).permutation(len(found))[:count]]


def build(folder: Path, prior: str, seed: int, sources: int, asked: list[Question], pool: list[Question]) -> None:
    """Write a folder of sources, and beside it what is true of them, unless both are there. pool: whose answers are
    swapped in.

    truth.json: the reliability of each source, and for each question its wanted answers and what each source holds:
    True for the text as it was, False for a swapped one, None for none.
    """
    if (folder / "truth.json").exists():
        return
    rng = np.random.default_rng([seed, list(PRIORS).index(prior)])
    reliability = PRIORS[prior](rng, sources)
    held: list[list[bool | None]] = []
    for n, question in enumerate(asked):
        row: list[bool | None] = []
        for i in range(sources):
            there, right = rng.random() < voting.COVERAGE, bool(rng.random() < reliability[i])
            text = question.text if right else swapped(question, pool, rng)
            path = folder / "sources" / f"source-{i}" / f"{n:04d}.txt"
            if there:
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_text(text, encoding="utf-8")
            row.append(right if there else None)
        held.append(row)
    told = {"reliability": reliability.tolist(), "wanted": [list(each.wanted) for each in asked], "held": held}
    write_json(folder / "truth.json", told)


def swapped(question: Question, pool: list[Question], rng: np.random.Generator) -> str:
    """The text with all that is right replaced by another question's answer of the same kind."""
    known = normalise(question.text)
    others = [
        each.wanted[0] for each in pool if each.kind == question.kind and normalise(each.wanted[0]) not in known
    ] or [each.wanted[0] for each in pool if normalise(each.wanted[0]) not in known]
    other = others[rng.integers(len(others))]
    text = question.text
    for answer in sorted(question.wanted, key=len, reverse=True):
        text = _place(answer).sub(lambda _: other, text)
    return text


def right(answer: str | None, wanted: list[str]) -> bool:
    """Whether one of the wanted answers stands in the answer, or the answer is a part of one, word by word."""
    return answer is not None and normalise(answer) != "" and any(alike(answer, text) for text in wanted)


def _findable(all_of_them: list[Question]) -> list[Question]:
    """Those whose answer stands in one of the three best passages of all texts: "Who won the game?" is about any."""
    passages = [(n, passage) for n, each in enumerate(all_of_them) for passage in cut(each.text)]
    source = Source("all", tuple(passage for _, passage in passages))
    found = []
    for n, each in enumerate(all_of_them):
        best = [passages[i] for i in bm25(source, each.question, TOP)]
        if any(owner == n and _place(each.wanted[0]).search(passage) for owner, passage in best):
            found.append(each)
    return found


def _swappable(question: Question) -> bool:
    short = all(len(text.split()) <= LONGEST for text in question.wanted)
    there = all(_place(text).search(question.text) for text in question.wanted)
    told = any(_place(text).search(question.question) for text in question.wanted)
    return short and there and not told and len(question.text.split()) <= MOST


def _place(text: str) -> re.Pattern[str]:
    """Where a text stands in words or numbers of its own."""
    return re.compile(r"(?<![\w])(?<!\d[.,])" + re.escape(text) + r"(?!\w|[.,]\d)", re.IGNORECASE)


def _squad() -> Iterator[Question]:
    for doc in data.questions("squad"):
        text, _, question = doc["query"].partition("\nBackground: ")[2].rpartition("\nQuestion: ")
        yield Question(question.removesuffix("\nAnswer:"), text, tuple(dict.fromkeys(doc["answers_text"])))


def _drop() -> Iterator[Question]:
    for doc in data.questions("drop"):
        if all(len(spans) == 1 for spans in doc["answers"]):
            wanted = tuple(dict.fromkeys(spans[0] for spans in doc["answers"]))
            yield Question(doc["question"], doc["passage"], wanted)


def truth(folder: Path) -> dict[str, Any]:
    """What `build` wrote down."""
    return json_object((folder / "truth.json").read_text(encoding="utf-8"), str(folder))
