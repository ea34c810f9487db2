"""The tables of docs/results.md: what a record holds, and what a line of its table says."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.evaluation.test_run import rows_of
from thresher.evaluation.folder import FORMAT
from thresher.evaluation.methods import named

quality = pytest.importorskip("benchmarks.quality")


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A run of which one document was not finished, and a place for its record."""
    monkeypatch.setattr(quality, "QUALITY", tmp_path / "records")
    rows = rows_of("niah", "dense", [1.0, 0.0, 1.0]) + rows_of("niah", "quoka:budget=0.25", [1.0, 0.0, 0.0])
    rows += rows_of("niah", "quoka:budget=0.125", [0.0, 0.0])
    run = tmp_path / "run"
    run.mkdir()
    meta: dict[str, Any] = {
        "format": FORMAT,
        "request": {"model": {"name": "m"}, "dtype": "bfloat16", "backend": "cpu"},
    }
    (run / "meta.json").write_text(json.dumps(meta), encoding="utf-8")
    (run / "predictions.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return run


def test_a_record_holds_what_every_method_answered(folder: Path) -> None:
    told = json.loads(quality.record(folder, "m").read_text(encoding="utf-8"))
    assert not told["complete"]
    assert told["answers"] == 6  # the third document lacks a method
    lines = quality.table(told, "niah", 400, "known")
    assert lines[0] == "Dense: 50.0 (0 to 100), n = 2 for every method."
    assert lines[2:] == [
        "| method | 25 % | 12.5 % |",
        "|---|---|---|",
        "| quoka | 50.0 (+0.0 to +0.0) | 0.0 (-100.0 to +0.0) |",
    ]


def test_every_method_of_the_grid_is_one() -> None:
    policies = named(quality.METHODS + quality.TRAINED)
    assert len(policies) == len(quality.METHODS + quality.TRAINED)
    assert all(quality._shares(name) for name in policies if name != "dense")
