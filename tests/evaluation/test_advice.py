"""Advice: the rung that is named holds, the one below it does not, and both are what `generate` says."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import thresher
from tests.evaluation.test_command import thresher as command
from thresher.evaluation.advice import SHARES, advise
from thresher.evaluation.samples import Ask, prompt

TEXT = "Rain fell on the quay. Nobody spoke! Was it late? The boats came home one by one. " * 6
QUESTIONS = ["What fell?", "Who spoke?"]
METHODS = ["quoka", "keydiff", "caote:base=tova", "quoka + recent"]


def asked(llm: thresher.LanguageModel, spec: str, share: float) -> tuple[str, ...]:
    """The answers under a method with that budget, each from a state of its own."""
    parts = {
        "select" if part.startswith("quoka") else "evict": f"{part}{',' if ':' in part else ':'}budget={share}"
        for part in spec.split(" + ")
        if spec
    }
    answers = []
    for question in QUESTIONS:
        before, after = prompt(llm, TEXT, Ask(f"\n\n{question}", ()))
        state = llm.prefill(before, thresher.Policy(**parts), chunk=16)
        answers.append(str(llm.generate(llm.prefill(after, state=state, chunk=16), max_new_tokens=1)))
    return tuple(answers)


def test_the_smallest_budget_that_holds(llm: thresher.LanguageModel) -> None:
    done: list[tuple[int, int]] = []
    report = lambda *each: done.append(each)  # noqa: E731
    dense, found = advise(llm, TEXT, QUESTIONS, methods=METHODS, max_new_tokens=1, chunk=16, progress=report)
    assert dense.answers == asked(llm, "", 1.0)
    assert [each.method for each in found] == METHODS
    ends = set()
    for each in found:
        held = SHARES[: 0 if each.smallest is None else SHARES.index(each.smallest.share) + 1]
        assert all(asked(llm, each.method, share) == dense.answers for share in held)
        assert (each.failed is None) == (held == SHARES)
        if each.failed is not None:
            assert each.failed.share == SHARES[len(held)]
            assert each.failed.answers == asked(llm, each.method, each.failed.share) != dense.answers
        if each.smallest is not None:
            assert each.smallest.keys_read < dense.keys_read
            assert (each.smallest.cache_bytes < dense.cache_bytes) == (each.method != "quoka")
        ends.add(len(held))
    assert len(ends) > 1  # the methods differ here, so that the ladder is climbed down and left early
    total = 1 + len(METHODS) * len(SHARES)
    assert done[-1] == (total, total)
    assert done == sorted(done)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["-p", "Who?", "--methods", ";"],
            "--methods takes some, such as quoka, keydiff",
        ),
        (["-p", "Who?", "--methods", "quoca"], "(did you mean quoka?), not 'quoca'"),
        (
            ["-p", "Who?", "--methods", "quoka:budget=8"],
            "--methods takes a method without a budget",
        ),
        (["-p", "Who? " * 4000], "expected at most the model's 6,000"),
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
    assert run(monkeypatch, directory, tmp_path, *arguments) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert message in line


def test_the_command(
    directory: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["-p", QUESTIONS[0], "-p", QUESTIONS[1], "--methods", "quoka; keydiff", "--max-new-tokens", "1"]
    assert run(monkeypatch, directory, tmp_path, *arguments) == 0
    shown = capsys.readouterr().out.splitlines()
    assert shown[0] == QUESTIONS[0]
    assert any(line.startswith("dense") for line in shown)
    assert run(monkeypatch, directory, tmp_path, *arguments, "--json") == 0
    found = json.loads(capsys.readouterr().out)
    assert [each["method"] for each in found["methods"]] == ["quoka", "keydiff"]
    assert len(found["dense"]["answers"]) == 2


def run(monkeypatch: pytest.MonkeyPatch, directory: Path, folder: Path, *arguments: str) -> int:
    file = folder / "text.txt"
    file.write_text(TEXT, encoding="utf-8")
    fixed = ["advise", str(directory), "-f", str(file), "--backend", "reference", "--chunk", "16"]
    return command(monkeypatch, *fixed, *arguments)
