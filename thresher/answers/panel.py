"""Sources vote: how reliable each is, estimated without labels, and the answer to a question from the best of them."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from loaders.settings import json_object, shown
from reference.checks import require, whole
from reference.voting import estimate_reliability, weighted_vote
from thresher.answers.reader import Said
from thresher.answers.sources import Source
from thresher.evaluation.folder import write_json

FORMAT = "thresher-weights-1"
KAPPA = 4  # the paper's: answers that are looked for
START = 1.0  # the weight of a source that nothing is known of
Same = Callable[[str, str, str], bool]  # (question, an answer, another) -> whether they mean the same


class Answerer(Protocol):
    """Whatever tells what a source says to a question, such as a `Reader`."""

    def answers(self, asked: Sequence[tuple[Source, str]]) -> list[Said]:
        """One for each pair."""
        ...


@dataclass(frozen=True)
class Verdict:
    """The answer, None where nobody knows; what each source that was read said, and which cluster that is (-1: none);
    its weight; why the others were not read."""

    question: str
    answer: str | None
    said: Mapping[str, Said]
    clusters: Mapping[str, int]
    weights: Mapping[str, float]
    not_read: Mapping[str, str]

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        sources = [
            {"source": name, "weight": self.weights[name], "cluster": self.clusters[name], **vars(said)}
            for name, said in self.said.items()
        ]
        return {"question": self.question, "answer": self.answer, "sources": sources, "not_read": dict(self.not_read)}


def estimate(
    sources: Sequence[Source],
    queries: Sequence[str],
    reader: Answerer,
    same: Same,
    *,
    seed: int = 0,
) -> dict[str, float]:
    """The weight v of each source by name, from its answers to queries whose answers nobody knows."""
    require(bool(queries), "queries: got none, wanted at least one question")
    said = [[each.text for each in reader.answers([(source, query) for query in queries])] for source in sources]
    columns = zip(*said, strict=True)
    table = [clusters(query, column, same) for query, column in zip(queries, columns, strict=True)]
    return weights_of([source.name for source in sources], table, seed)


def weights_of(names: Sequence[str], table: Sequence[Sequence[int]], seed: int = 0) -> dict[str, float]:
    """The weight v of each source by name. table: for each query the cluster of every source's answer, -1 for none."""
    v = estimate_reliability(np.array(table, np.int64).T, seed=seed)
    return dict(zip(names, v.tolist(), strict=True))


def ask(
    sources: Sequence[Source],
    question: str,
    reader: Answerer,
    same: Same,
    *,
    weights: Mapping[str, float] | None = None,
    kappa: int = KAPPA,
    seed: int = 0,
) -> Verdict:
    """Ask the sources by falling weight until `kappa` of them know an answer, and let those vote.

    weights: by name, 1 for a source that is not among them. Ties of weight: the earlier source is asked first.
    """
    whole("kappa", kappa)
    given = {source.name: float((weights or {}).get(source.name, START)) for source in sources}
    waiting = sorted(sources, key=lambda source: -given[source.name])
    said: dict[str, Said] = {}
    while waiting and (wanted := kappa - sum(each.text is not None for each in said.values())) > 0:
        together, waiting = waiting[:wanted], waiting[wanted:]  # all would be asked one after the other as well
        answers = reader.answers([(source, question) for source in together])
        said |= {source.name: answer for source, answer in zip(together, answers, strict=True)}
    numbers = clusters(question, [each.text for each in said.values()], same)
    voted = weighted_vote(np.array(numbers)[:, None], np.array([given[name] for name in said]), seed=seed)[0]
    texts = [each.text for each in said.values()]
    enough = f"{kappa} source{'' if kappa == 1 else 's'} of at least its weight knew an answer"
    return Verdict(
        question,
        None if voted < 0 else texts[numbers.index(voted)],  # the first of the cluster speaks for it
        said,
        dict(zip(said, numbers, strict=True)),
        given,
        dict.fromkeys((source.name for source in waiting), enough),
    )


def clusters(question: str, answers: Sequence[str | None], same: Same) -> list[int]:
    """The number of the cluster of each answer, -1 for None. An answer joins the first cluster whose first member means
    the same."""
    first: list[str] = []
    numbers = []
    for answer in answers:
        if answer is None:
            numbers.append(-1)
            continue
        joined = next((n for n, member in enumerate(first) if same(question, member, answer)), len(first))
        if joined == len(first):
            first.append(answer)
        numbers.append(joined)
    return numbers


def save_weights(path: str | os.PathLike[str], weights: Mapping[str, float], queries: int) -> None:
    """Write the weights as JSON; what stood there stays until the new file is complete."""
    write_json(Path(path), {"format": FORMAT, "queries": queries, "weights": dict(weights)})


def load_weights(path: str | os.PathLike[str]) -> dict[str, float]:
    """Read what `save_weights` wrote. ValueError names the file where it is anything else."""
    text = Path(path).read_text(encoding="utf-8", errors="replace")
    told = json_object(text, str(path))
    require(told.get("format") == FORMAT, f"{path}: got format {shown(told.get('format'))}, wanted {FORMAT}")
    weights = told.get("weights")
    good = isinstance(weights, dict) and all(
        isinstance(value, (int, float)) and not isinstance(value, bool) and np.isfinite(value)
        for value in weights.values()
    )
    require(good, f"{path}: got weights {shown(weights)}, wanted a finite number for each source")
    return {name: float(value) for name, value in weights.items()} if isinstance(weights, dict) else {}


def weights_for(sources: Sequence[Source], path: str | os.PathLike[str] | None) -> dict[str, float]:
    """What the file says of these sources, nothing without a file. ValueError for one that is about others."""
    given = {} if path is None else load_weights(path)
    known = not given or any(source.name in given for source in sources)
    wanted = ", ".join(source.name for source in sources)
    require(known, f"{path}: got weights of {', '.join(given)}, wanted those of {wanted}")
    return given


def read_queries(text: str, where: str) -> list[str]:
    """Questions, one a line; a line that is JSON has it under "question"."""
    found = []
    for n, line in enumerate(text.splitlines(), start=1):
        if not line.strip():
            continue
        if line.lstrip().startswith("{"):
            question = json_object(line, f"{where}: line {n}").get("question")
            require(isinstance(question, str), f"{where}: line {n}: got {shown(question)}, wanted a question")
            found.append(str(question))
        else:
            found.append(line.strip())
    require(bool(found), f"{where}: got no line, wanted a question on each")
    return found
