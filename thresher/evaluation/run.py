"""A whole comparison: plan the cells, compute those that are not there yet, sum up."""

from __future__ import annotations

import hashlib
import os
import platform
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

from joblib import delayed

import accel
from reference.checks import one_of, require, whole
from reference.policy import Policy
from thresher.evaluation import cells as work
from thresher.evaluation import methods as spelled
from thresher.evaluation.cells import Cell, Engine, Row, Work
from thresher.evaluation.folder import Folder, Key, key
from thresher.evaluation.metrics import summarise
from thresher.evaluation.samples import QUESTIONS, Document, Task, Tools, prompt
from thresher.evaluation.tasks import chosen
from thresher.workers import check_backend, workers

TRIES = 3  # rounds in which not one cell came back, before a lost worker counts as an error
Progress = Callable[[int, int], None]  # cells done, cells in all


def evaluate(
    model: str | os.PathLike[str],
    *,
    tasks: Sequence[str],
    methods: str | Iterable[str],
    out: str | os.PathLike[str],
    lengths: Sequence[int] = (4096,),
    limit: int = 10,
    seed: int = 0,
    questions: Sequence[str] = QUESTIONS,
    data: str | os.PathLike[str] | None = None,
    backend: str = "auto",
    dtype: str = "float32",
    chunk: int = 128,
    jobs: int = 1,
    joblib_backend: str = "loky",
    scheduler: str | None = None,
    progress: Progress | None = None,
) -> list[dict[str, Any]]:
    """Run every method on every task and length, and return the summary, which the folder `out` holds besides.

    tasks: names as in `thresher.evaluation.tasks`. methods: "dense; quoka:budget=1024; …", or a list of such.
    lengths: tokens of prompt and answer. limit: documents per task and length. questions: "known" while the document
    is read (one prompt), "after" it (its state is kept), or both. data: a folder with files that no package has.
    jobs: cells that are computed at a time, by `joblib_backend`: loky, or dask at the address `scheduler`, or ray; on a
    cluster 1 stands for as many as it has workers.

    A folder that holds a part of the same run is completed. Raises ValueError and FileNotFoundError, in one line,
    before anything is written: for no methods or tasks, an unknown one, a length beyond the model's positions, data
    that is missing or has another checksum, and a folder of another run.
    """
    policies, found = spelled.named(methods), chosen(tasks)
    require(bool(lengths), "lengths: got none, wanted at least one")
    require(bool(questions), f"questions: got none, wanted some of {', '.join(QUESTIONS)}")
    for number in (*lengths, limit, jobs, chunk):
        whole("lengths, limit, jobs, chunk", number)
    whole("seed", seed, least=0)
    for question in questions:
        one_of("questions", question, QUESTIONS)
    check_backend(joblib_backend)
    engine = Engine.of(model, backend, dtype, chunk)
    path = Path(engine.model)
    from thresher.model import load

    llm = load(path, backend="reference", dtype=dtype)  # reads prompts alone: its weights stay on disk
    most = llm.config.max_positions
    require(max(lengths) <= most, f"lengths: got {max(lengths)}, wanted at most the model's {most} positions")
    for policy in policies.values():
        llm.new_state(policy)  # which says what is wrong with it, or that weights are missing
    request: dict[str, Any] = {
        "model": {"name": os.fspath(model), "sha256": fingerprint(path)},
        "tasks": [task.name for task in found],
        "lengths": sorted(set(lengths)),
        "methods": {name: policy.specs for name, policy in policies.items()},
        "limit": limit,
        "seed": seed,
        "questions": sorted(set(questions), key=QUESTIONS.index),
        "dtype": dtype,
        "chunk": chunk,
        "backend": backend,
    }
    tools = Tools(llm, seed, Path(data) if data is not None else None)
    documents = [each for task in found for each in _documents(task, tools, request["lengths"], limit)]
    request["documents"] = hashlib.sha256(repr([document for *_, document in documents]).encode()).hexdigest()
    folder = Folder(out, request, surroundings())
    done = {key(row) for row in folder.rows}
    order: dict[Key, int] = {}
    waiting: list[tuple[int, Cell]] = []
    ranks = Counter[tuple[str, int]]()
    for task, length, document in documents:
        planned = list(plan(engine, tools, task, length, document, policies, request["questions"]))
        for each in (each for cell in planned for each in _keys(cell)):
            order[each] = len(order)
        rank = ranks[task.name, length]
        ranks[task.name, length] += 1
        waiting += [(rank, cell) for each in planned if (cell := _without(each, done)) is not None]
    # The first document of every task, then the second: what an interrupted run has is a smaller run.
    waiting.sort(key=lambda pair: pair[0])
    compute([cell for _, cell in waiting], folder.add, jobs, joblib_backend, scheduler, progress)
    folder.rows.sort(key=lambda row: order[key(row)])
    metrics = summarise(folder.rows)
    folder.finish({"groups": metrics})
    return metrics


def _documents(task: Task, tools: Tools, lengths: list[int], limit: int) -> Iterator[tuple[Task, int, Document]]:
    for length in lengths[-1:] if task.fixed else lengths:
        for document in task.documents(tools, task, length, limit):
            yield task, length, document


def plan(
    engine: Engine,
    tools: Tools,
    task: Task,
    length: int,
    document: Document,
    policies: dict[str, Policy],
    questions: Sequence[str],
) -> Iterator[Cell]:
    """The cells of a document. Methods that come to the same policy on it share one, and so do, without a method, the
    two ways of asking."""
    ways = work.ways(task, document, questions)
    if task.kind == "agreement":
        for question in ways:
            pairs = tuple((question, name) for name in policies)
            yield Cell(engine, task.name, length, document, question, policies, (pairs,) * len(document.asks))
        return
    groups: dict[tuple[str, str], list[tuple[int, str, str]]] = {}
    meanings: dict[str, Policy] = {}
    for n, ask in enumerate(document.asks):
        tokens = sum(map(len, prompt(tools.llm, document.text, ask, task.chat)))
        for question in ways:
            for name, policy in policies.items():
                meant = spelled.effective(policy, tokens, tokens + task.max_new_tokens)
                label = spelled.name(meant)
                meanings[label] = meant
                way = ways[0] if meant == Policy() else question
                groups.setdefault((way, label), []).append((n, question, name))
    for (question, label), members in groups.items():
        wanted = tuple(
            tuple((way, name) for n, way, name in members if n == number) for number in range(len(document.asks))
        )
        yield Cell(engine, task.name, length, document, question, {label: meanings[label]}, wanted)


def _keys(cell: Cell) -> list[Key]:
    """The lines that a cell writes."""
    about = (cell.task, cell.length, cell.document.name)
    return [(*about, n, question, method) for n, pairs in enumerate(cell.wanted) for question, method in pairs]


def _without(cell: Cell, done: set[Key]) -> Cell | None:
    """The cell without what is known already, or None where nothing is left."""
    about = (cell.task, cell.length, cell.document.name)
    wanted = tuple(
        tuple(pair for pair in pairs if (*about, n, *pair) not in done) for n, pairs in enumerate(cell.wanted)
    )
    return Cell(**{**vars(cell), "wanted": wanted}) if any(wanted) else None


def compute(
    cells: Sequence[Work],
    write: Callable[[list[Row]], None],
    jobs: int = 1,
    joblib_backend: str = "loky",
    scheduler: str | None = None,
    progress: Progress | None = None,
) -> None:
    """Measure all cells and hand their rows to `write` as they come. A worker that is lost costs its cell, which is
    tried again; ChildProcessError where no cell comes back in TRIES rounds."""
    report = progress or (lambda done, total: None)
    if jobs == 1 and joblib_backend == "loky":
        for n, cell in enumerate(cells, start=1):
            write(cell.rows())
            report(n, len(cells))
        return
    left, fruitless = dict(enumerate(cells)), 0
    while left:
        before = len(left)
        try:
            with workers(joblib_backend, jobs if joblib_backend == "loky" or jobs > 1 else -1, scheduler) as parallel:
                for number, rows in parallel(delayed(_numbered)(*each) for each in list(left.items())):
                    write(rows)
                    del left[number]
                    report(len(cells) - len(left), len(cells))
        except _lost() as error:
            fruitless = fruitless + 1 if len(left) == before else 0
            if fruitless == TRIES:
                raise ChildProcessError(f"{len(left)} cells: lost every worker {TRIES} times over ({error})") from None


def _lost() -> tuple[type[BaseException], ...]:
    """What joblib raises where a worker is gone."""
    from joblib.externals.loky.process_executor import BrokenProcessPool

    return (BrokenProcessPool,)


def _numbered(number: int, cell: Work) -> tuple[int, list[Row]]:
    return number, cell.rows()


def fingerprint(path: Path) -> str:
    """A sha256 over the names, sizes and first MiB of a model's files: enough to tell one model from another."""
    files = sorted(f for f in path.iterdir() if f.suffix in (".json", ".safetensors")) if path.is_dir() else [path]
    digest = hashlib.sha256()
    for file in files:
        digest.update(f"{file.name} {file.stat().st_size}\n".encode())
        with file.open("rb") as opened:
            digest.update(opened.read(1 << 20))
    return digest.hexdigest()


def surroundings() -> dict[str, Any]:
    """Versions and machine, for meta.json."""
    return {
        "versions": {
            "python": platform.python_version(),
            **{name: version(name) for name in ("thresher", "numpy", "numba", "tokenizers")},
        },
        "machine": {
            "system": platform.platform(),
            "processor": platform.machine(),
            "cores": os.cpu_count(),
            "gpu": accel.gpu(),
        },
    }
