"""Runs: complete, resumed, in several processes, refused."""

from __future__ import annotations

import itertools
import json
import os
import re
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import thresher
from loaders import catalogue
from thresher.evaluation import cells, data, metrics, run
from thresher.evaluation.cells import Cell
from thresher.evaluation.folder import key, load
from thresher.evaluation.methods import effective, named
from thresher.evaluation.samples import prompt
from thresher.evaluation.tasks import TASKS

METHODS = "dense; quoka:budget=32; keydiff:budget=0.25; keydiff:budget=900; quoka:budget=1000 + h2o:budget=64"
TIMES = ("time_to_first_token", "document_seconds", "seconds")
Request = Callable[..., list[dict[str, Any]]]


@pytest.fixture
def evaluate(directory: Path) -> Request:
    def call(out: Path, **changes: Any) -> list[dict[str, Any]]:
        request: dict[str, Any] = {
            "tasks": ["niah", "qasper", "perplexity"],
            "methods": METHODS,
            "lengths": [400],
            "limit": 2,
            "backend": "reference",
        }
        return run.evaluate(directory, out=out, **{**request, **changes})

    return call


def lines(folder: Path) -> list[dict[str, Any]]:
    """The predictions without what a clock told."""
    rows = map(json.loads, (folder / "predictions.jsonl").read_text().splitlines())
    return [{name: value for name, value in row.items() if name not in TIMES} for row in rows]


def test_a_run_is_a_folder(evaluate: Request, tmp_path: Path, llm: thresher.LanguageModel) -> None:
    summary = evaluate(tmp_path / "run")
    meta, rows = load(tmp_path / "run")
    assert meta["request"]["methods"] == {
        "dense": {},
        "quoka:budget=32": {"select": "quoka:budget=32"},
        "keydiff:budget=0.25": {"evict": "keydiff:budget=0.25"},
        "keydiff:budget=900": {"evict": "keydiff:budget=900"},
        "quoka:budget=1000 + h2o:budget=64": {"select": "quoka:budget=1000", "evict": "h2o:budget=64"},
    }
    assert json.loads((tmp_path / "run" / "metrics.json").read_text()) == {"groups": summary}
    assert len({key(row) for row in rows}) == len(rows)
    assert len(rows) == 5 * (
        2 * 2 + 2 * 2 + 2
    )  # methods × (two needles and one paper's two questions, both ways; texts)
    for found in (row for row in rows if row["task"] == "niah"):
        policy = thresher.Policy(**meta["request"]["methods"][found["method"]])
        document = TASKS["niah"].documents(run.Tools(llm, 0), TASKS["niah"], 400, 2)[int(found["document"])]
        before, after = prompt(llm, document.text, document.asks[0])
        if found["question"] == "known":
            answer = llm.generate(before + after, policy, max_new_tokens=24)
        else:
            answer = llm.generate(llm.prefill(after, state=llm.prefill(before, policy)), max_new_tokens=24)
        assert "".join(answer) == found["answer"]
        assert found["keys_evicted"] == sum(answer.stats.keys_evicted)
        assert found["cache_bytes"] == answer.stats.cache_bytes
        if found["method"] == "keydiff:budget=0.25":
            length = len(before + after)
            assert found["policy"] == {"evict": f"keydiff:budget={-(-length // 4)}"}
            assert found["keys_evicted"] > 0


def test_dense_is_read_once_for_both_ways_and_for_what_comes_to_it(evaluate: Request, tmp_path: Path) -> None:
    evaluate(tmp_path / "run", tasks=["niah"], limit=1)
    found = {(row["question"], row["method"]): row for row in load(tmp_path / "run")[1]}
    dense = found["known", "dense"]
    for other in (found["after", "dense"], found["known", "keydiff:budget=900"], found["after", "keydiff:budget=900"]):
        assert other["answer"] == dense["answer"]
        assert other["document_seconds"] == dense["document_seconds"] > 0
    assert dense["time_to_first_token"] > found["after", "dense"]["time_to_first_token"]


def test_the_same_seed_gives_the_same_predictions(evaluate: Request, tmp_path: Path) -> None:
    few = "dense; keydiff:budget=64"
    first, second = (
        evaluate(tmp_path / "a", tasks=["niah"], methods=few),
        evaluate(tmp_path / "b", tasks=["niah"], methods=few),
    )
    assert lines(tmp_path / "a") == lines(tmp_path / "b")
    assert [group["score"] for group in first] == [group["score"] for group in second]
    evaluate(tmp_path / "c", tasks=["niah"], methods=few, seed=1)
    assert lines(tmp_path / "c") != lines(tmp_path / "a")


@pytest.mark.parametrize("stop", [0, 1, 4])
def test_killed_and_resumed_equals_uninterrupted(
    evaluate: Request, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stop: int
) -> None:
    few = {"tasks": ["niah", "qasper"], "methods": "dense; keydiff:budget=0.25; keydiff:budget=900", "limit": 1}
    evaluate(tmp_path / "whole", **few)
    measured: list[Cell] = []
    measure = cells.measure

    def counted(cell: Cell) -> list[dict[str, Any]]:
        if len(measured) == stop:
            raise KeyboardInterrupt
        measured.append(cell)
        return measure(cell)

    monkeypatch.setattr(cells, "measure", counted)
    with pytest.raises(KeyboardInterrupt):
        evaluate(tmp_path / "part", **few)
    with (tmp_path / "part" / "predictions.jsonl").open("ab") as file:
        file.write(b'{"task": "niah", "leng')  # what a killed process was writing
    stop += 1
    with pytest.raises(KeyboardInterrupt):  # and once more
        evaluate(tmp_path / "part", **few)
    assert len(load(tmp_path / "part")[1]) == sum(len(run._keys(cell)) for cell in measured)
    monkeypatch.setattr(cells, "measure", lambda cell: measured.append(cell) or measure(cell))
    evaluate(tmp_path / "part", **few)
    assert lines(tmp_path / "part") == lines(tmp_path / "whole")
    asked = [k for cell in measured for k in run._keys(cell)]
    assert len(asked) == len(set(asked)) == len(lines(tmp_path / "whole"))  # nothing was computed twice
    before = len(measured)
    evaluate(tmp_path / "part", **few)
    assert len(measured) == before


def test_a_paper_whose_first_question_is_known_asks_the_second_alone(
    evaluate: Request, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    evaluate(tmp_path / "run", tasks=["qasper"])
    whole = lines(tmp_path / "run")
    path = tmp_path / "run" / "predictions.jsonl"
    path.write_text("".join(line for line in path.read_text().splitlines(True) if json.loads(line)["ask"] == 0))
    asked: list[Any] = []
    measure = cells.measure
    monkeypatch.setattr(cells, "measure", lambda cell: asked.extend(run._keys(cell)) or measure(cell))
    evaluate(tmp_path / "run", tasks=["qasper"])
    assert {ask for *_, ask, _, _ in asked} == {1}
    assert lines(tmp_path / "run") == whole


def test_agreement_is_whole_for_dense_and_counts_from_the_start(evaluate: Request, tmp_path: Path) -> None:
    evaluate(tmp_path / "run", tasks=["agreement"], limit=1, questions=["known"])
    for found in load(tmp_path / "run")[1]:
        exact = found["method"] in ("dense", "keydiff:budget=900")
        assert found["kl"] >= 0
        assert not exact or (found["score"], found["kl"]) == (1, pytest.approx(0, abs=1e-9))
        assert found["same_from_start"] <= 32
        assert found["score"] * 32 >= found["same_from_start"] * (len(found["answer"]) > 0) or exact
    assert any(found["kl"] > 1e-4 for found in load(tmp_path / "run")[1])


def test_perplexity_by_bands(evaluate: Request, tmp_path: Path, llm: thresher.LanguageModel) -> None:
    (group,) = evaluate(tmp_path / "run", tasks=["perplexity"], methods="dense", lengths=[1200], limit=1)
    (document,) = TASKS["perplexity"].documents(run.Tools(llm, 0), TASKS["perplexity"], 1200, 1)
    ids = np.array(llm.encode(document.text))
    logits = llm.logits(ids).astype(np.float64)[:-1]
    chances = np.exp(logits)[np.arange(len(ids) - 1), ids[1:]] / np.exp(logits).sum(axis=1)  # of tokens 1, 2, …
    for label, part in {"0-512": chances[:511], "512-1024": chances[511:1023], "1024-2048": chances[1023:]}.items():
        assert group["perplexity"][label] == pytest.approx(np.prod(part ** (-1 / len(part))), rel=1e-6)
    assert group["perplexity"]["all"] == pytest.approx(np.prod(chances ** (-1 / len(chances))), rel=1e-6)


def _killed_once(cell: Cell, marker: str) -> list[dict[str, Any]]:
    try:
        os.close(os.open(marker, os.O_CREAT | os.O_EXCL))
    except FileExistsError:
        return cells._answers(cell.engine.load(), TASKS[cell.task], cell)
    os.kill(os.getpid(), signal.SIGKILL)
    raise AssertionError


@pytest.fixture
def planned(directory: Path, llm: thresher.LanguageModel) -> list[Cell]:
    engine = cells.Engine(str(directory), "reference")
    tools, task = run.Tools(llm, 0), TASKS["niah"]
    documents = task.documents(tools, task, 400, 2)
    policies = named("dense; keydiff:budget=64")
    return [cell for d in documents for cell in run.plan(engine, tools, task, 400, d, policies, ["known"])]


def test_several_processes_and_a_lost_one(planned: list[Cell], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wanted = sorted(map(key, [row for cell in planned for row in cells.measure(cell)]))
    rows: list[dict[str, Any]] = []
    marker = str(tmp_path / "killed")
    monkeypatch.setattr(run, "_numbered", lambda number, cell: (number, _killed_once(cell, marker)))
    run.compute(planned, rows.extend, jobs=2)
    assert Path(marker).exists()
    assert sorted(map(key, rows)) == wanted


def test_a_dask_cluster_of_processes_loses_one(
    planned: list[Cell], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    distributed = pytest.importorskip("distributed")
    wanted = sorted(map(key, [row for cell in planned for row in cells.measure(cell)]))
    rows: list[dict[str, Any]] = []
    marker = str(tmp_path / "killed")
    monkeypatch.setattr(run, "_numbered", lambda number, cell: (number, _killed_once(cell, marker)))
    with distributed.LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=None) as cluster:
        run.compute(planned, rows.extend, jobs=2, joblib_backend="dask", scheduler=cluster.scheduler_address)
    assert Path(marker).exists()
    assert sorted(map(key, rows)) == wanted


def test_workers_that_are_always_lost_are_an_error(planned: list[Cell], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run, "_numbered", lambda number, cell: os.kill(os.getpid(), signal.SIGKILL))
    with pytest.raises(ChildProcessError, match="4 cells: lost every worker 3 times over"):
        run.compute(planned, list.extend, jobs=2)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"methods": ""}, "methods: got none, wanted some, such as 'dense; quoka"),
        ({"methods": " ; "}, "methods: got none"),
        ({"methods": "quok:budget=3"}, "methods: got 'quok', wanted one of dense, quoka, keydiff"),
        ({"methods": "h2o:budget=3 + tova:budget=4"}, "methods: got two methods of one kind (evict)"),
        ({"tasks": []}, "tasks: got none"),
        ({"tasks": ["needle"]}, "tasks: got 'needle', wanted some of niah, ruler, qasper"),
        ({"lengths": [400, 7000]}, "lengths: got 7000, wanted at most the model's 6000 positions"),
        ({"lengths": []}, "lengths: got none"),
        ({"lengths": [0]}, "got 0"),
        ({"limit": 0}, "got 0"),
        ({"questions": ["before"]}, "questions: got 'before'"),
        ({"tasks": ["longbench"]}, "longbench/narrativeqa: got no folder"),
        ({"joblib_backend": "threads"}, "joblib_backend: got 'threads'"),
    ],
)
def test_what_cannot_be_run_is_refused_before_anything_is_written(
    evaluate: Request, tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises((ValueError, FileNotFoundError), match=re.escape(message)):
        evaluate(tmp_path / "run", **changes)
    assert not (tmp_path / "run").exists()


def test_the_folder_of_another_run_is_left_alone(
    evaluate: Request, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    evaluate(tmp_path / "run", tasks=["gsm8k"], methods="dense", limit=1, lengths=[600])
    before = {path.name: path.read_bytes() for path in (tmp_path / "run").iterdir()}
    for changes, name in (
        ({"seed": 5}, "seed"),
        ({"methods": "dense; tova:budget=9"}, "methods"),
        ({"limit": 2}, "limit"),
    ):
        with pytest.raises(ValueError, match=f"got a folder of another run, whose {name} is"):
            evaluate(
                tmp_path / "run", **{"tasks": ["gsm8k"], "methods": "dense", "limit": 1, "lengths": [600], **changes}
            )
    changed = [{"id": 0, "question": "1 + 1?", "short_answer": "2"}]
    monkeypatch.setattr(data, "questions", lambda name: iter(changed))
    with pytest.raises(ValueError, match="another run, whose documents is"):
        evaluate(tmp_path / "run", tasks=["gsm8k"], methods="dense", limit=1, lengths=[600])
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "letter.txt").write_text("Dear")
    with pytest.raises(ValueError, match="got a folder with other files in it"):
        evaluate(tmp_path / "other", tasks=["gsm8k"], lengths=[600])
    assert {path.name: path.read_bytes() for path in (tmp_path / "run").iterdir()} == before
    assert [path.name for path in (tmp_path / "other").iterdir()] == ["letter.txt"]
    with pytest.raises(FileNotFoundError, match=r"got no meta.json"):
        load(tmp_path / "other")


@pytest.mark.parametrize(
    ("spec", "left"),
    [
        ("dense", "dense"),
        ("keydiff:budget=120", "dense"),
        ("keydiff:budget=119", "keydiff:budget=119"),
        ("keydiff:budget=1.0", "keydiff:budget=1.0"),  # the prompt fits, its answer does not
        ("quoka:budget=120", "dense"),
        ("quoka:budget=1.0", "quoka:budget=1.0"),
        ("quoka:budget=1.0,of=past", "dense"),
        ("quoka:budget=0.5,of=past", "quoka:budget=0.5,of=past"),
        ("quoka:budget=120 + keydiff:budget=50", "keydiff:budget=50"),
        ("fastforward:density=0.5,neurons=griffin", "fastforward:density=0.5,neurons=griffin"),
    ],
)
def test_what_a_policy_comes_to_where_budgets_have_room(spec: str, left: str) -> None:
    (policy,) = named(spec).values()
    (wanted,) = named(left).values()
    assert effective(policy, 100, 120) == wanted


def test_methods_are_spelled_one_way() -> None:
    assert list(named("dense;quoka:budget=8,n_queries=16 ; quoka:budget=8")) == ["dense", "quoka:budget=8"]


def test_intervals_come_from_whole_documents() -> None:
    assert metrics.interval([("a", 1.0)] * 9) == (1, 1)
    low, high = metrics.interval([("a", 1.0), ("a", 1.0), ("b", 0.0), ("b", 0.0)])
    assert (low, high) == (0, 1)  # a quarter of the draws takes one document twice
    scores = [(str(n), float(n % 2)) for n in range(400)]
    low, high = metrics.interval(scores)
    half = 1.96 * 0.5 / 400**0.5  # the normal approximation of a share of one half
    assert low == pytest.approx(0.5 - half, abs=0.012)
    assert high == pytest.approx(0.5 + half, abs=0.012)
    assert metrics.interval(scores) == (low, high)


def rows_of(task: str, method: str, scores: list[float]) -> list[dict[str, Any]]:
    """Lines as a run writes them, a document each."""
    about = {"task": task, "length": 400, "ask": 0, "question": "known", "method": method, "facts": {}}
    work = {"keys_read": 1, "keys_visible": 2}
    return [{**about, **work, "document": str(n), "score": score} for n, score in enumerate(scores)]


def test_a_method_is_held_against_dense_question_by_question() -> None:
    hard = [1.0, 0.0] * 30  # half of the questions are too hard for the model
    rows = rows_of("niah", "dense", hard) + rows_of("niah", "quoka:budget=9", hard)
    rows += rows_of("niah", "h2o:budget=9", [0.0] * 6 + hard[6:])
    dense, same, worse = metrics.summarise(rows)
    assert "difference" not in dense
    assert same["difference"] == {"mean": 0, "low": 0, "high": 0}  # though both scores are known to ± 13 points
    assert same["high"] - same["low"] > 0.2
    assert worse["difference"]["mean"] == pytest.approx(-3 / 60)
    assert -0.15 < worse["difference"]["low"] < -3 / 60 < worse["difference"]["high"] <= 0


def test_a_difference_needs_the_same_questions() -> None:
    rows = rows_of("niah", "dense", [1.0, 0.0]) + rows_of("niah", "quoka:budget=9", [1.0, 0.0, 1.0])
    assert "difference" not in metrics.summarise(rows)[1]


def test_a_suite_has_an_entry_of_its_own() -> None:
    rows = rows_of("ruler/vt", "dense", [1.0, 1.0]) + rows_of("ruler/cwe", "dense", [0.0, 0.5])
    found = metrics.summarise(rows + rows_of("niah", "dense", [1.0]))
    assert [(entry["task"], entry["n"], entry["score"]) for entry in found] == [
        ("ruler/vt", 2, 1.0),
        ("ruler/cwe", 2, 0.25),
        ("ruler", 4, 0.625),
        ("niah", 1, 1.0),
    ]
    draws = [sum(each) / 4 for each in itertools.product([1.0, 1.0, 0.0, 0.5], repeat=4)]
    assert found[2]["low"] == pytest.approx(np.quantile(draws, 0.025), abs=0.13)


@pytest.mark.real
@pytest.mark.skipif(not catalogue.is_pulled("smollm2-135m-instruct"), reason="smollm2-135m-instruct is not pulled")
def test_weights_that_come_along_are_found(tmp_path: Path) -> None:
    methods = "dense; fastforward:density=0.5"
    dense, thinned = run.evaluate(
        "smollm2-135m-instruct", tasks=["perplexity"], methods=methods, lengths=[700], limit=1, out=tmp_path / "run"
    )
    assert 1 < dense["perplexity"]["all"] < thinned["perplexity"]["all"]


def test_what_an_interrupted_run_has_is_a_smaller_run(
    evaluate: Request, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    planned: list[Cell] = []
    monkeypatch.setattr(run, "compute", lambda cells, *rest: planned.extend(cells))
    monkeypatch.setattr(run, "summarise", lambda rows: [])
    evaluate(tmp_path / "run", limit=3, tasks=["niah", "perplexity"], methods="dense; h2o:budget=32")
    begun = [(cell.document.name, cell.task) for cell in planned]
    assert list(dict.fromkeys(begun)) == [(str(n), task) for n in range(3) for task in ("niah", "perplexity")]
