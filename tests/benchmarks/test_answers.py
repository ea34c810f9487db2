"""Sources with known reliability, and what the two records of docs/answers.md hold; no model is needed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from thresher.evaluation.folder import FORMAT

library = pytest.importorskip("benchmarks.library")
sources = pytest.importorskip("benchmarks.sources")
mixing = pytest.importorskip("benchmarks.mixing")
common = pytest.importorskip("benchmarks.common")

POOL = [
    library.Question(f"Who built tower {n}?", f"In {1800 + n} Ada{n} built it, not {18 + n}. Ada{n}!", (f"Ada{n}",))
    for n in range(60)
] + [
    library.Question(
        f"When was wall {n} built?", f"It rose in {1900 + n}, or so in {1900 + n}, says Bo{n}.", (f"{1900 + n}",)
    )
    for n in range(60)
]
META: dict[str, Any] = {
    "format": FORMAT,
    "versions": {},
    "machine": {"gpu": "none", "system": "s"},
}


def write_run(folder: Path, request: dict[str, Any], rows: list[dict[str, Any]]) -> None:
    folder.mkdir(parents=True)
    (folder / "meta.json").write_text(json.dumps({**META, "request": request}))
    (folder / "predictions.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def test_a_swapped_text_has_another_answer_of_the_kind_and_nothing_else_changed() -> None:
    rng = np.random.default_rng(0)
    for question in POOL:
        text, answer = library.swapped(question, POOL, rng), question.wanted[0]
        assert answer not in text
        others = [each.wanted[0] for each in POOL if text == question.text.replace(answer, each.wanted[0])]
        assert len(others) == 1
        assert others[0].isdigit() == answer.isdigit()
    nested = library.Question("?", "The Iron Tower, 4 or 14, is the iron tower.", ("Iron Tower", "The Iron Tower"))
    assert library.swapped(nested, POOL[:1], rng) == "Ada0, 4 or 14, is Ada0."
    number = library.Question("?", "4 of 14 in 1,4 at 4.5 and 0.4: 4.", ("4",))
    assert library.swapped(number, POOL[60:61], rng) == "1900 of 14 in 1,4 at 4.5 and 0.4: 1900."


def test_a_question_that_is_about_any_text_is_not_asked() -> None:
    names = "Elm", "Oak", "Ash", "Fir"
    clear = [
        library.Question(f"Who built {name} Hall?", f"Ada {name[0]} built {name} Hall.", (f"Ada {name[0]}",))
        for name in names
    ]
    vague = library.Question("Who built it?", f"{'Much later, ' * 9} Cy built it too.", ("Cy",))
    assert library._findable([*clear, vague]) == clear


def test_what_is_right() -> None:
    assert library.right("It was Ada Lovelace.", ["Ada Lovelace"])
    assert library.right("Lovelace", ["Ada Lovelace"])
    assert not library.right("Love", ["Ada Lovelace"])
    assert not library.right("14", ["4"])
    assert not library.right(None, ["4"])
    assert not library.right("the", ["the sea"])  # an article alone says nothing


def test_sources_hold_what_the_truth_says(tmp_path: Path) -> None:
    library.build(tmp_path, "hammers", 3, 4, POOL, POOL)
    truth = library.truth(tmp_path)
    held = np.array([[-1 if each is None else each for each in row] for row in truth["held"]])
    assert abs((held >= 0).mean() - 0.6) < 0.06
    for i, p in enumerate(truth["reliability"]):
        assert abs((held[held[:, i] >= 0, i] == 1).mean() - p) < 0.15
    for n, question in enumerate(POOL):
        for i in range(4):
            path = tmp_path / "sources" / f"source-{i}" / f"{n:04d}.txt"
            assert path.exists() == (held[n, i] >= 0)
            if path.exists():
                assert (path.read_text() == question.text) == (held[n, i] == 1)
    before = (tmp_path / "truth.json").read_bytes()
    library.build(tmp_path / "again", "hammers", 3, 4, POOL, POOL)
    assert (tmp_path / "again" / "truth.json").read_bytes() == before


def said(texts: list[str | None]) -> list[dict[str, Any]]:
    return [{"text": text, "why": "", "support": None, "passages": []} for text in texts]


def asked(about: str, block: int, answers: list[list[str | None]]) -> dict[str, Any]:
    """A line whose answers are the same where they are equal."""
    numbers = [[-1 if text is None else row.index(text) for text in row] for row in answers]
    return {"about": about, "block": block, "said": [said(row) for row in answers], "clusters": numbers}


def test_votes_of_a_seed_are_judged_on_the_questions_to_test() -> None:
    """Two good sources against one that lies: what each vote comes to is counted by hand."""
    truth = {"reliability": [0.9, 0.8, 0.1], "wanted": [["ox"]] * 4, "held": [[True, True, False]] * 3 + [[None] * 3]}
    rows = [asked("", 0, [["ox", "ox", "b"], ["ox", "ox", "c"], ["ox", None, "d"], [None, "x", None]])]
    found = sources.judged(rows, truth, 0.5, 0)
    # v = 3 w - 1 of the first two questions: 2, 2 and -1; the third is then won by the first, the last is wrong
    assert found["correlation"] == pytest.approx(np.corrcoef([2, 2, -1], [0.9, 0.8, 0.1])[0, 1])
    assert found["estimated"] == found["true"] == found["kappa"] == found["single"] == found["any"] == 0.5
    assert found["from right texts"] == pytest.approx(5 / 6)
    assert found["from swapped texts"] == 1
    assert found["without the text"] == pytest.approx(2 / 3)


def test_an_interrupted_run_of_sources_is_a_smaller_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sources, "RECORDS", tmp_path / "records")
    monkeypatch.setattr(sources, "QUERIES", 2)
    request = {
        "model": "m",
        "dtype": "float32",
        "backend": "cpu",
        "questions": 6,
        "seeds": 2,
        "priors": "beta",
        "policies": {"dense": {}, "keydiff:budget=0.5": {}},
    }
    good: list[list[str | None]] = [["Ada0", "Ada0", None], ["Ada1", "Ada1", "Ada7"]]
    rows = [
        asked(f"beta/{seed}/{policy}", block, good)
        for seed in (0, 1)
        for block in range(3)
        for policy in request["policies"]  # type: ignore[attr-defined]
        if (seed, block, policy) != (1, 2, "dense")
    ]
    cost = {"seconds": 4.0, "read": 40, "kept": 0, "written": 8}
    ways = {"anew": cost, "keeping": cost, "kept": {**cost, "read": 20, "kept": 20}}
    kept = {"states": 2, "bytes": 5_000_000}
    rows.append({"about": "time/24/dense", "block": 0, "asked": 4, "same": True, **kept, **ways})
    write_run(tmp_path / "out" / "run", request, rows)
    for seed in (0, 1):
        library.build(tmp_path / "out" / "library" / f"beta-{seed}", "beta", seed, 3, POOL[:6], POOL)
    told = json.loads(sources.record(tmp_path / "out", "m", 0.5).read_text())
    assert (told["questions"], told["seeds"], told["complete"]) == (4, [0, 1], False)  # 2 seeds of 2 blocks keep most
    assert [(row["prior"], row["policy"], len(row["repeats"])) for row in told["rows"]] == [
        ("beta", "dense", 2),
        ("beta", "keydiff:budget=0.5", 2),
    ]
    lines = sources.block("m")
    assert "| dense | 24 | kept | 1.000 | 5 | 5 | 2.5 |" in lines
    assert "With a kept state no answer changed." in lines
    assert lines[-1] == "*m, float32 on the CPU; 2 questions to estimate, 2 to test, 2 seeds*"


def test_an_interrupted_mix_is_a_smaller_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mixing, "RECORDS", tmp_path / "records")
    request = {
        "model": {"name": "m"},
        "dtype": "float32",
        "backend": "cpu",
        "methods": ["text", "code"],
        "seed": 0,
        "temperature": 0.7,
    }
    rows = [
        {"problem": n, "method": name, "round": r, "answers": ["1", "2"], "wanted": ["1"], "seconds": 2.0}
        for r in range(2)
        for n in range(3)
        for name in ("text", "code")
        if (r, n, name) not in {(1, 1, "text"), (1, 2, "text"), (1, 2, "code")}
    ]
    write_run(tmp_path / "run", request, rows)
    told = json.loads(mixing.record(tmp_path / "run", "m").read_text())
    assert (told["problems"], told["runs"], told["complete"]) == (3, 2, False)  # one problem alone has both rounds
    assert told["seconds"] == {"text": 6.0, "code": 6.0}
    lines = mixing.block("m")
    assert lines[0] == "| | text | code | mix |"
    assert lines[2] == "| pass@1 | 50.0 (50.0 to 50.0) | 50.0 (50.0 to 50.0) | 50.0 (50.0 to 50.0) |"
    assert lines[3] == "| pass@2 | 100.0 (100.0 to 100.0) | 100.0 (100.0 to 100.0) | 75.0 (75.0 to 75.0) |"
    assert "| runs that the mix saves | never reached | never reached |  |" in lines


def test_a_balanced_run_keeps_the_most() -> None:
    assert common.balanced([3, 3, 2]) == 2  # 6 either way: no member is left out for nothing
    assert common.balanced([4, 4, 2]) == 4
    assert common.balanced([3, 1, 1, 1]) == 1
    assert common.balanced([]) == common.balanced([0, 0]) == 0
