"""`sources estimate` and `solve` in cells: whichever process does them, and however often they are interrupted."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import thresher
from thresher.answers import panel, work
from thresher.answers.problems import Problem
from thresher.answers.sources import read_sources
from thresher.evaluation.cells import Engine

QUERIES = ["When was the lighthouse built?", "Who says so of the lighthouse?", "Who nests on the roof?"]


@pytest.fixture
def reading(directory: Path) -> work.Reading:
    policy = thresher.Policy(evict=thresher.KeyDiff(budget=0.5))
    return work.Reading(Engine(str(directory), "reference", chunk=64), policy, threshold=0.0, max_new_tokens=3)


@pytest.fixture
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(work, "QUERIES", 1)
    monkeypatch.setattr(work, "RUNS", 2)


def lines(out: Path) -> list[dict[str, Any]]:
    """The lines of a run without what took how long."""
    found = [json.loads(line) for line in (out / "predictions.jsonl").read_text().splitlines()]
    return [{name: value for name, value in each.items() if name != "seconds"} for each in found]


@pytest.mark.usefixtures("small_blocks")
def test_an_estimate_in_cells_is_the_estimate(reading: work.Reading, folder: Path, tmp_path: Path) -> None:
    reader, same = reading.reader()
    wanted = panel.estimate(read_sources(folder), QUERIES, reader, same)
    weights, cost = work.estimate(reading, folder, QUERIES, out=tmp_path / "one")
    assert weights == wanted
    assert cost.written == reader.cost.written
    assert json.loads((tmp_path / "one" / "metrics.json").read_text()) == {"weights": weights}
    again, _ = work.estimate(reading, folder, QUERIES, out=tmp_path / "two", jobs=work.Jobs(2))
    assert again == weights
    assert lines(tmp_path / "one") == lines(tmp_path / "two")


@pytest.mark.usefixtures("small_blocks")
@pytest.mark.parametrize("stop", [2])
def test_what_was_killed_goes_on(
    reading: work.Reading, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stop: int
) -> None:
    problems = [Problem("1 + 1?", ("2",)), Problem("2 + 2?", ("4",))]

    def estimate(out: Path) -> object:
        return work.estimate(reading, folder, QUERIES, out=out)[0]

    def solve(out: Path) -> object:
        return work.solve(reading.engine, problems, ["text", "code"], runs=3, max_new_tokens=3, out=out)

    for kind, run in ((work.Asked, estimate), (work.Tried, solve)):
        wanted, done, rows = run(tmp_path / kind.__name__), [], kind.rows

        def killed(cell: Any, done: list[Any] = done, rows: Any = rows) -> Any:
            if len(done) == stop:
                raise KeyboardInterrupt
            done.append(cell.key)
            return rows(cell)

        part = tmp_path / f"{kind.__name__}-part"
        with monkeypatch.context() as patched:
            patched.setattr(kind, "rows", killed)
            with pytest.raises(KeyboardInterrupt):
                run(part)
        with (part / "predictions.jsonl").open("ab") as file:
            file.write(b'{"about": "est')  # what a killed process was writing
        with monkeypatch.context() as patched:
            patched.setattr(kind, "rows", lambda cell, done=done, rows=rows: done.append(cell.key) or rows(cell))
            assert run(part) == wanted
        assert len(done) == len(set(done)) == len(lines(part))  # nothing was computed twice
        assert lines(part) == lines(tmp_path / kind.__name__)


@pytest.mark.usefixtures("small_blocks")
def test_rounds_go_over_all_problems(reading: work.Reading, tmp_path: Path) -> None:
    """The runs of two rounds are those of one: a run follows from its seed."""
    problems = [Problem("1 + 1?", ("2",)), Problem("2 + 2?", ("4",))]
    work.solve(reading.engine, problems, ["text"], runs=3, max_new_tokens=4, out=tmp_path / "run")
    rows = lines(tmp_path / "run")
    assert [(row["problem"], row["round"], len(row["answers"])) for row in rows] == [
        (0, 0, 2),
        (1, 0, 2),
        (0, 1, 1),
        (1, 1, 1),
    ]
    solver = work.Solver(reading.engine.load(), max_new_tokens=4, chunk=64)
    for n, problem in enumerate(problems):
        assert work.tries(rows)["text"][n] == solver.text(problem.text, work.seeds_of(0, n, "text", 3))


def test_another_run_and_bad_settings_are_refused(reading: work.Reading, folder: Path, tmp_path: Path) -> None:
    work.estimate(reading, folder, QUERIES[:1], out=tmp_path / "run")
    with pytest.raises(ValueError, match="a folder of another run, whose queries is"):
        work.estimate(reading, folder, QUERIES, out=tmp_path / "run")
    (folder / "poster" / "text.txt").write_text("Another text.")
    with pytest.raises(ValueError, match="a folder of another run, whose sources is"):
        work.estimate(reading, folder, QUERIES[:1], out=tmp_path / "run")
    with pytest.raises(ValueError, match="queries: got none"):
        work.estimate(reading, folder, [], out=tmp_path / "new")
    problems = [Problem("1 + 1?", ("2",))]
    for bad, message in (
        ({"temperature": -1}, "temperature: got -1"),
        ({"max_new_tokens": 0}, "max_new_tokens: got 0"),
    ):
        with pytest.raises(ValueError, match=message):
            work.solve(reading.engine, problems, ["text"], out=tmp_path / "new", **bad)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="threshold: got 2"):
        work.Reading(reading.engine, threshold=2)
    with pytest.raises(ValueError, match="jobs: got 0"):
        work.Jobs(0)
    with pytest.raises(ValueError, match="joblib_backend: got 'threads'"):
        work.Jobs(backend="threads")
    assert not (tmp_path / "new").exists()
