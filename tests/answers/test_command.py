"""`thresher ask` and `thresher sources estimate` as a user runs them."""

from __future__ import annotations

import json
from pathlib import Path

from tests.thresher.test_cli import one_line, thresher


def test_estimate_then_ask(directory: Path, folder: Path, tmp_path: Path) -> None:
    queries, weights = tmp_path / "queries.txt", tmp_path / "weights.json"
    queries.write_text("When was the lighthouse built?\nWho says so of the lighthouse?\n")
    common = ["--backend", "reference", "--max-new-tokens", 4, "--threshold", 0, "--states", tmp_path / "states"]
    result = thresher(
        *("sources", "estimate", folder, "--model", directory, "--queries", queries, "--out", weights),
        *("--run", tmp_path / "run", "--json", *common),
    )
    assert result.returncode == 0, result.stderr
    told = json.loads(result.stdout)
    assert json.loads((tmp_path / "run" / "metrics.json").read_text()) == {"weights": told["weights"]}
    assert told["weights"] == json.loads(weights.read_text())["weights"]
    assert set(told["weights"]) == {"atlas", "diary", "poster"}
    question = ["-p", "When was the lighthouse built?", "--weights", weights, "--kappa", 2, *common]
    result = thresher("ask", directory, "--sources", folder, *question, "--json")
    assert result.returncode == 0, result.stderr
    told = json.loads(result.stdout)
    assert {each["source"] for each in told["sources"]} | set(told["not_read"]) == {"atlas", "diary", "poster"}
    assert told["cost"]["kept"] > 0  # the estimate read the same passages
    plain = thresher("ask", directory, "--sources", folder, *question)
    assert plain.stdout.startswith("I don't know." if told["answer"] is None else told["answer"])
    assert "tokens read" in plain.stdout


def test_mistakes_are_one_line(directory: Path, folder: Path, tmp_path: Path) -> None:
    asked = ["ask", directory, "-p", "When?", "--backend", "reference"]
    assert "nowhere: there is no such folder" in one_line(thresher(*asked, "--sources", tmp_path / "nowhere"))
    other = tmp_path / "weights.json"
    other.write_text('{"format": "thresher-weights-1", "queries": 3, "weights": {"encyclopedia": 2.0}}')
    line = one_line(thresher(*asked, "--sources", folder, "--weights", other))
    assert "found weights of encyclopedia; expected those of atlas, diary, poster" in line
    line = one_line(thresher(*asked, "--sources", folder, "--states-gb", -1))
    assert "--states-gb takes a finite number of at least 0, not -1.0" in line
