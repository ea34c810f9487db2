"""Tasks whose questions come in a package: Qasper's yes and no over whole papers, MATH-500, GSM8K.

The mathematics has no document: what is asked is all that is read, and a budget shows in what the model still knows of
its own solution. Which questions are taken follows from the seed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from thresher.evaluation import data
from thresher.evaluation.samples import Ask, Document, Task, Tools
from thresher.evaluation.scorers.maths import boxed, solves
from thresher.evaluation.scorers.words import says

PAPER = "You are given a scientific article and a question about it.\n\nArticle: "
YES_OR_NO = (
    "\n\nAnswer the question based on the article above with yes or no alone.\n\nQuestion: {question}\n\nAnswer:"
)
MATHS = "Solve the problem step by step and put your final answer within \\boxed{{}}.\n\nProblem: {problem}"
SCHOOL = "Solve the problem step by step and end with the line #### NUMBER.\n\nProblem: {question}"


def _picked(source: Callable[[], Iterator[Document]]) -> Callable[[Tools, Task, int, int], list[Document]]:
    def documents(tools: Tools, task: Task, length: int, limit: int) -> list[Document]:
        found = list(source())
        order = tools.rng(task.name).permutation(len(found))[:limit]
        return [tools.cut(task, found[n], length) for n in order]

    return documents


def _papers() -> Iterator[Document]:
    """Every paper with all the questions about it."""
    papers: dict[str, tuple[str, dict[str, Ask]]] = {}
    for doc in data.questions("qasper"):
        name = doc["id"].rpartition("_")[0]
        _, asks = papers.setdefault(name, (_paper(doc), {}))
        asks[doc["question_id"]] = Ask(YES_OR_NO.format(question=doc["question"]), (doc["answer"],))
    for name, (text, asks) in papers.items():
        yield Document(name, text, tuple(asks.values()))


def _paper(doc: dict[str, Any]) -> str:
    text = doc["full_text"]
    sections = [
        "\n".join([heading or "", *paragraphs])
        for heading, paragraphs in zip(text["section_name"], text["paragraphs"], strict=True)
    ]
    return PAPER + "\n\n".join([doc["title"], doc["abstract"], *sections])


def _problems() -> Iterator[Document]:
    for doc in data.questions("math500"):  # its field "answer" lost the word \left
        ask = Ask(MATHS.format(problem=doc["problem"]), (boxed(doc["solution"]),))
        yield Document(str(doc["index"]), "", (ask,), {"level": doc["level"]})


def _sums() -> Iterator[Document]:
    for doc in data.questions("gsm8k"):
        yield Document(str(doc["id"]), "", (Ask(SCHOOL.format(question=doc["question"]), (doc["short_answer"],)),))


def _says(answer: str, ask: Ask, facts: dict[str, Any]) -> float:
    return says(answer, ask.wanted)


def _solves(answer: str, ask: Ask, facts: dict[str, Any]) -> float:
    return solves(answer, ask.wanted)


TASKS = (
    Task("qasper", _picked(_papers), _says, max_new_tokens=8, fixed=True),
    Task("math500", _picked(_problems), _solves, max_new_tokens=512, fixed=True),
    Task("gsm8k", _picked(_sums), _solves, max_new_tokens=320, fixed=True),
)
