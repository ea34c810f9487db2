"""`thresher sources estimate` and `thresher solve` as cells that any process can do, through joblib.

A run has a folder, as an evaluation has, and goes on there when it was interrupted. A line of it is a cell.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from time import perf_counter
from typing import Any, Protocol

from reference import Policy, Sampling
from reference.checks import require, whole
from thresher.answers.coverage import coverage
from thresher.answers.nli import Entailment
from thresher.answers.panel import Same, clusters, weights_of
from thresher.answers.problems import Problem
from thresher.answers.reader import TOP, Cost, Reader, check_settings
from thresher.answers.shelf import Shelf
from thresher.answers.solve import Solver, check_methods, seeds_of
from thresher.answers.sources import read_sources
from thresher.evaluation.cells import Engine, Row, Work
from thresher.evaluation.folder import Folder, key
from thresher.evaluation.run import Progress, compute, fingerprint, surroundings
from thresher.workers import check_backend

ASKED = ("about", "block")  # what tells the lines of `Asked` apart
TRIED = ("problem", "method", "round")
QUERIES, RUNS = 8, 8  # of a cell at most


class Keyed(Work, Protocol):
    """A cell that is one line."""

    @property
    def key(self) -> tuple[Any, ...]:
        """What its line is about."""
        ...


@dataclass(frozen=True)
class Jobs:
    """Where cells are done: `jobs` at a time by joblib's `backend`, loky, dask at the address `scheduler`, or ray."""

    jobs: int = 1
    backend: str = "loky"
    scheduler: str | None = None

    def __post_init__(self) -> None:
        whole("jobs", self.jobs)
        check_backend(self.backend)


@dataclass(frozen=True)
class Reading:
    """How sources are read, in words that travel: every process makes a `Reader` of it.

    states: the folder where states are kept, and the bytes that they may take. nli: a model of entailment that judges
    support and sameness.
    """

    engine: Engine
    policy: Policy = field(default_factory=Policy)
    states: tuple[str, int] | None = None
    nli: str | None = None
    top: int = TOP
    threshold: float | None = None
    max_new_tokens: int = 24

    def __post_init__(self) -> None:
        check_settings(self.top, self.threshold, self.max_new_tokens)

    def reader(self) -> tuple[Reader, Same]:
        """The reader, and what tells whether two answers mean the same."""
        judge = None if self.nli is None else _judge(self.nli)
        reader = Reader(
            self.engine.load(),
            self.policy,
            None if self.states is None else Shelf(*self.states),
            top=self.top,
            support=None if judge is None else judge.support,
            threshold=self.threshold,
            max_new_tokens=self.max_new_tokens,
            chunk=self.engine.chunk,
        )
        return reader, reader.same if judge is None else judge.same

    @property
    def words(self) -> dict[str, Any]:
        """What answers follow from, for JSON: the folder of the states is no part of it."""
        settings = {name: getattr(self, name) for name in ("nli", "top", "threshold", "max_new_tokens")}
        return {**_engine_words(self.engine), "policy": self.policy.specs, **settings}


@dataclass(frozen=True)
class Asked:
    """Queries that all sources of a folder are asked. about: what the answers are for, in the words of the line."""

    reading: Reading
    folder: str
    about: str
    block: int
    queries: tuple[str, ...]

    @property
    def key(self) -> tuple[Any, ...]:
        """In the order of ASKED."""
        return self.about, self.block

    def rows(self) -> list[Row]:
        """What every source says to each query, and the clusters: per query, one for each source."""
        reader, same = self.reading.reader()
        sources, started = read_sources(self.folder), perf_counter()
        answers = iter(reader.answers([(source, query) for query in self.queries for source in sources]))
        said = [[next(answers) for _ in sources] for _ in self.queries]
        read = perf_counter() - started
        table = [
            clusters(query, [each.text for each in told], same) for query, told in zip(self.queries, said, strict=True)
        ]
        found = {
            "about": self.about,
            "block": self.block,
            "queries": list(self.queries),
            "sources": [source.name for source in sources],
            "said": [[vars(each) for each in told] for told in said],
            "clusters": table,
            "cost": vars(reader.cost),
            "seconds": {"reading": read, "sameness": perf_counter() - started - read},
        }
        return [found]


@dataclass(frozen=True)
class Tried:
    """Runs of one method on a problem."""

    engine: Engine
    policy: Policy
    temperature: float
    max_new_tokens: int
    number: int
    problem: Problem
    method: str
    round: int
    seeds: tuple[int, ...]

    @property
    def key(self) -> tuple[Any, ...]:
        """In the order of TRIED."""
        return self.number, self.method, self.round

    def rows(self) -> list[Row]:
        """What each run comes to."""
        settings = {"temperature": self.temperature, "max_new_tokens": self.max_new_tokens}
        solver, started = Solver(self.engine.load(), self.policy, chunk=self.engine.chunk, **settings), perf_counter()  # type: ignore[arg-type]
        answers = solver.answers(self.method, self.problem.text, self.seeds)
        found = dict(zip(TRIED, self.key, strict=True)) | {"wanted": list(self.problem.wanted), "answers": answers}
        return [found | {"seconds": perf_counter() - started}]


def estimate(
    reading: Reading,
    folder: str | os.PathLike[str],
    queries: Sequence[str],
    *,
    out: str | os.PathLike[str] | None = None,
    jobs: Jobs | None = None,
    seed: int = 0,
    progress: Progress | None = None,
) -> tuple[dict[str, float], Cost]:
    """The weight v of each source of a folder by name, and what it cost.

    out: the folder of the run, which goes on there. ValueError and FileNotFoundError before anything is written, for
    sources that cannot be read, no query, a policy that the model cannot run under, and the folder of another run.
    """
    require(bool(queries), "queries: got none, wanted at least one question")
    path = os.path.abspath(folder)
    sources = read_sources(path)
    check(reading.engine, reading.policy)
    request = {
        "kind": "sources estimate",
        **reading.words,
        "sources": {source.name: _digest(source.passages) for source in sources},
        "queries": _digest(queries),
    }
    cells = blocks(reading, path, "estimate", queries)
    rows, kept = completed(cells, ASKED, request, out, jobs, progress)
    table = [numbers for row in rows for numbers in row["clusters"]]
    weights = weights_of([source.name for source in sources], table, seed)
    if kept is not None:
        kept.finish({"weights": weights})
    return weights, Cost(**{name: sum(row["cost"][name] for row in rows) for name in vars(Cost())})


def solve(
    engine: Engine,
    problems: Sequence[Problem],
    methods: Sequence[str],
    *,
    policy: Policy | None = None,
    runs: int = 6,
    temperature: float = 0.7,
    max_new_tokens: int = 320,
    seed: int = 0,
    out: str | os.PathLike[str] | None = None,
    jobs: Jobs | None = None,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """What `coverage` tells of `runs` runs of each method on each problem.

    Rounds of at most RUNS runs come one after the other, each over all problems, so that an interrupted run has less of
    every problem. out, and the errors: as in `estimate`.
    """
    names, policy = check_methods(methods), policy or Policy()
    Sampling(temperature=temperature)
    whole("max_new_tokens", max_new_tokens)
    seeds = {(n, name): seeds_of(seed, n, name, runs) for n in range(len(problems)) for name in names}
    check(engine, policy)
    cells = [
        Tried(engine, policy, temperature, max_new_tokens, n, problem, name, start // RUNS, tuple(part))
        for start in range(0, runs, RUNS)
        for n, problem in enumerate(problems)
        for name in names
        if (part := seeds[n, name][start : start + RUNS])
    ]
    request = {
        "kind": "solve",
        **_engine_words(engine),
        "policy": policy.specs,
        "problems": _digest([text for problem in problems for text in (problem.text, *problem.wanted)]),
        "methods": names,
        "runs": runs,
        "temperature": temperature,
        "max_new_tokens": max_new_tokens,
        "seed": seed,
    }
    rows, kept = completed(cells, TRIED, request, out, jobs, progress)
    told = coverage(tries(rows), [problem.wanted for problem in problems], seed)
    if kept is not None:
        kept.finish(told)
    return told


def tries(rows: Iterable[Row]) -> dict[str, list[list[str]]]:
    """The answers of lines of `Tried`: by method, for each problem in its order, those of all rounds."""
    found: dict[str, dict[int, list[str]]] = {}
    for row in sorted(rows, key=lambda row: row["round"]):
        found.setdefault(row["method"], {}).setdefault(row["problem"], []).extend(row["answers"])
    return {name: [answers for _, answers in sorted(table.items())] for name, table in found.items()}


def blocks(reading: Reading, folder: str, about: str, queries: Sequence[str]) -> list[Asked]:
    """The cells of all queries to the sources of a folder."""
    parts = [tuple(queries[start : start + QUERIES]) for start in range(0, len(queries), QUERIES)]
    return [Asked(reading, folder, about, n, part) for n, part in enumerate(parts)]


def completed(
    cells: Sequence[Keyed],
    names: Sequence[str],
    request: Mapping[str, Any],
    out: str | os.PathLike[str] | None,
    jobs: Jobs | None = None,
    progress: Progress | None = None,
) -> tuple[list[Row], Folder | None]:
    """The lines of all cells in their order, and their folder, which then waits for its summary.

    Those that the folder has are not computed again. names: the fields of a line that are its cell's key.
    """
    jobs = jobs or Jobs()
    folder = None if out is None else Folder(out, dict(request), surroundings(), names)
    rows: list[Row] = [] if folder is None else folder.rows
    done = {key(row, names) for row in rows}
    waiting = [cell for cell in cells if cell.key not in done]
    write: Callable[[list[Row]], Any] = rows.extend if folder is None else folder.add
    compute(waiting, write, jobs.jobs, jobs.backend, jobs.scheduler, progress)
    order = {cell.key: n for n, cell in enumerate(cells)}
    rows.sort(key=lambda row: order[key(row, names)])
    return rows, folder


def check(engine: Engine, policy: Policy) -> None:
    """ValueError for a policy that the model cannot run under; its weights stay on disk."""
    from thresher.model import load

    load(engine.model, backend="reference", dtype=engine.dtype).new_state(policy)


def _engine_words(engine: Engine) -> dict[str, Any]:
    path = Path(engine.model)
    settings = {name: getattr(engine, name) for name in ("backend", "dtype", "chunk")}
    return {"model": {"name": path.name, "sha256": fingerprint(path)}, **settings}


def _digest(texts: Sequence[str]) -> str:
    return hashlib.sha256(json.dumps(list(texts)).encode()).hexdigest()


@lru_cache(maxsize=1)
def _judge(name: str) -> Entailment:
    return Entailment(name)
