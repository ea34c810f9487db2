"""`thresher eval` and `thresher plot` as a user runs them, in this process so that the data are the tests' own."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from thresher.cli import main

FEW = ["--methods", "dense; keydiff:budget=0.25", "--lengths", "400", "--limit", "1", "--backend", "reference"]


def thresher(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    monkeypatch.setattr(sys, "argv", ["thresher", *arguments])
    with pytest.raises(SystemExit) as ended:
        main()
    return int(ended.value.code or 0)


def test_a_small_run_and_its_pictures(
    directory: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run = str(tmp_path / "run")
    arguments = ["eval", str(directory), "--out", run, "--tasks", "niah,perplexity", *FEW]
    assert thresher(monkeypatch, *arguments) == 0
    header, *rows = capsys.readouterr().out.splitlines()
    assert header.split()[:4] == ["task", "tokens", "question", "method"]
    assert len(rows) == 2 * 2 + 2
    assert {path.name for path in Path(run).iterdir()} == {"meta.json", "predictions.jsonl", "metrics.json"}
    assert thresher(monkeypatch, *arguments, "--json") == 0
    shown = json.loads(capsys.readouterr().out)
    assert shown["groups"] == json.loads((Path(run) / "metrics.json").read_text())["groups"]
    pytest.importorskip("matplotlib")
    assert thresher(monkeypatch, "plot", run) == 0
    files = capsys.readouterr().out.splitlines()
    assert len(files) == 2 * (2 * 4 + 1)
    assert all(Path(file).exists() for file in files)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--methods", ""], "--methods takes some, such as"),
        (["--tasks", "poetry"], "--tasks takes some of niah"),
        (["--lengths", "4k"], "--lengths takes whole numbers such as 4096,8192, not '4k'"),
        (["--lengths", "9000"], "--lengths takes at most the model's 6000 positions, not 9000"),
    ],
)
def test_a_mistake_is_one_line(
    directory: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    message: str,
) -> None:
    status = thresher(monkeypatch, "eval", str(directory), "--out", str(tmp_path / "run"), *FEW, *arguments)
    assert status == 1
    told = capsys.readouterr().err
    assert told.startswith(f"thresher: {message}")
    assert told.count("\n") == 1
    assert not (tmp_path / "run").exists()


def test_what_is_not_installed_is_one_line_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    about = {"task": "niah", "length": 9, "document": "0", "ask": 0, "question": "known", "method": "dense"}
    (tmp_path / "predictions.jsonl").write_text(json.dumps(about) + "\n")
    (tmp_path / "meta.json").write_text('{"format": "thresher-run-1"}')
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    assert thresher(monkeypatch, "plot", str(tmp_path)) == 1
    assert capsys.readouterr().err == "thresher: plot: matplotlib is not installed: pip install 'thresher[plot]'\n"
