"""The benchmarks at their smallest: what they tell has the shape that their readers rely on. No figure is judged."""

from __future__ import annotations

import json
import os
import re
from importlib import import_module
from pathlib import Path

import pytest

pytest.importorskip("torch", reason="the competitors are not installed (extra: bench)")
pytest.importorskip("transformers", reason="the competitors are not installed (extra: bench)")
pytest.importorskip("httpx", reason="the load's clients are not installed (extra: test)")

from benchmarks.all import NAMES
from benchmarks.common import RESULTS, Race, Report, spread
from benchmarks.pages import BLOCK, DOCS, PAGES, filled
from tests.checkpoints import write_checkpoint

TARGETS = {  # how many rows stand beside a target
    "attention": 2,
    "selection": 3,
    "eviction": 4,
    "ffn": 6,
    "threads": 0 if "THRESHER_NUM_THREADS" in os.environ else 6,
    "start": 3,
    "memory": 1,
    "decode": 1,
    "shares": 0,
    "ttft": 4,
    "peers": 0,
    "fastforward": 3,
    "load": 0,
    "mixture": 0,
}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(write_checkpoint(tmp_path_factory.mktemp("model") / "small", max_position_embeddings=512))


def check_shape(told: dict) -> None:
    assert {"date", "cpu", "cores", "threads", "numpy", "numba", "torch"} <= told["machine"].keys()
    for row in told["rows"]:
        assert row["low"] <= row["median"] <= row["high"]
        assert row["rounds"] >= 1
        better = (lambda a, b: a <= b) if row["at_most"] else (lambda a, b: a >= b)
        reached = [key for key in ("stretch", "reach") if row[key] is not None and better(row["median"], row[key])]
        has_target = row["reach"] is not None or row["stretch"] is not None
        assert row["met"] == (reached[0] if reached else "short" if has_target else None)
    for points in told["curves"].values():
        contestants = points[0]["seconds"].keys()
        for point in points:
            assert point["seconds"].keys() == contestants
            assert all(0 < s["low"] <= s["median"] <= s["high"] for s in point["seconds"].values())


@pytest.mark.parametrize("name", NAMES)
def test_smallest_size(
    name: str, model: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("benchmarks.common.PAUSE", 0)  # no figure is judged
    report = Report(name, "smallest", model)
    import_module(f"benchmarks.{name}").run(report)
    report.show()
    told = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert (told["benchmark"], told["size"]) == (name, "smallest")
    check_shape(told)
    found = sum(row["reach"] is not None for row in told["rows"])
    crossover_found = "crossover" not in told["settings"]
    skipped = "skipped" in told["settings"]
    if name == "peers":  # a contestant that fails is named, and the others go on
        (failed,) = told["settings"]["failed"].values()
        assert "weights: got none" in failed
        assert told["curves"]["time to first token, float32"][0]["seconds"].keys() == {"dense", "transformers"}
    assert skipped or found >= TARGETS[name] + (name == "selection" and crossover_found)


@pytest.mark.parametrize("path", sorted(RESULTS.glob("*.json")), ids=lambda path: path.stem)
def test_recorded_results(path: Path) -> None:
    told = json.loads(path.read_text(encoding="utf-8"))
    assert told["benchmark"] == path.stem
    assert told["size"] == "full"
    check_shape(told)


def test_contestants_take_turns_after_a_round_that_does_not_count() -> None:
    order: list[str] = []
    race = Race({"a": lambda: order.append("a"), "b": lambda: order.append("b")}, 3, settle=0)
    assert "".join(order) == "ab" * 4
    assert [len(seconds) for seconds in race.seconds.values()] == [3, 3]
    race.seconds = {"a": [6.0, 1.0, 9.0], "b": [2.0, 1.0, 3.0]}
    assert race.ratio("a", "b") == [3.0, 1.0, 3.0]
    assert race.median("a") == 6.0


def test_a_turn_settles_before_the_call_that_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    order: list[str] = []  # every call takes a second
    monkeypatch.setattr("benchmarks.common.perf_counter", lambda: float(len(order)))
    race = Race({"a": lambda: order.append("a"), "b": lambda: order.append("b")}, 2, settle=3)
    assert "".join(order) == "ab" + ("aaa" + "a" + "bbb" + "b") * 2
    assert race.seconds == {"a": [1.0, 1.0], "b": [1.0, 1.0]}


def test_a_row_says_what_it_met() -> None:
    report = Report("attention", "smallest")
    for values in ([1.0, 2.0, 9.0], [1.6], [1.9]):
        report.row("faster", values, reach=1.5, stretch=1.8)
    for values in ([0.9], [1.1], [3.0]):
        report.row("smaller", values, reach=2, stretch=1, at_most=True)
    report.row("bare", [1.0])
    assert [row["met"] for row in report.rows] == ["stretch", "reach", "stretch", "stretch", "reach", "short", None]
    assert spread([3.0, 1.0, 2.0]) == {"median": 2.0, "low": 1.0, "high": 3.0}


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.stem)
def test_the_page_tells_what_was_recorded(path: Path) -> None:
    page = path.read_text(encoding="utf-8")
    assert page.count("<!-- end -->") == len(BLOCK.findall(page)) > 0
    assert filled(page) == page


def test_pictures_are_there_and_small() -> None:
    page = (DOCS / "performance.md").read_text(encoding="utf-8")
    pictures = re.findall(r"\(((?:performance|results)/[\w-]+\.svg)\)", page)
    assert pictures
    assert all((DOCS / picture).stat().st_size < 100_000 for picture in pictures)
