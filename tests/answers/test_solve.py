"""Ways of asking, with texts that a script draws instead of the model; and what is drawn by a small random model."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

import thresher
from tests.thresher.test_cli import one_line
from tests.thresher.test_cli import thresher as command
from thresher.answers import solve
from thresher.answers.problems import Problem, read_problems
from thresher.answers.solve import Solver, program_of, seeds_of
from thresher.evaluation.scorers.maths import boxed


class Scripted(Solver):
    """A solver whose model writes what a list has, and finds yes less likely after "wrong" than after nothing."""

    def __init__(self, llm: thresher.LanguageModel, texts: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
        super().__init__(llm)
        object.__setattr__(self, "texts", texts)
        object.__setattr__(self, "questions", [])
        object.__setattr__(self, "prefixes", [])
        monkeypatch.setattr(solve, "yes", lambda llm, question: self.likely(question))

    def likely(self, question: str) -> float:
        """How likely yes is: after nothing 0.2, after a step that is as good as nothing the same."""
        step = question.partition("step: ")[2]
        return 0.1 if step.startswith("wrong") else 0.2 if step.startswith(("none\n", "idle")) else 0.3

    def _ask(self, question: str) -> Any:
        self.questions.append(question)  # type: ignore[attr-defined]
        return question

    def _go_on(self, state: Any, text: str) -> Any:
        self.prefixes.append(text)  # type: ignore[attr-defined]
        return state + text

    def _draw(self, states: Sequence[Any], *_: Any, **__: Any) -> list[str]:
        return [self.texts.pop(0) for _ in states]  # type: ignore[attr-defined]


def test_text_and_code(llm: thresher.LanguageModel, monkeypatch: pytest.MonkeyPatch) -> None:
    solver = Scripted(llm, ["So it is 3.\n\\boxed{7}", "nothing at all"], monkeypatch)
    assert solver.answers("text", "p", [1, 2]) == ["7", ""]
    programs = [
        "```python\nprint('hm')\nprint(6 * 7)\n```",
        "print(1)",
        "```\nimport os\n```",
        "no program",
        "```python\nprint('x = 2')",
    ]
    assert Scripted(llm, programs, monkeypatch).answers("code", "p", range(5)) == ["42", "1", "", "", "2"]


def test_steps_are_checked_kept_and_built_upon(llm: thresher.LanguageModel, monkeypatch: pytest.MonkeyPatch) -> None:
    texts = ["3 and 4", "wrong turn", "```python\nprint(3 + 4)\n```", "So \\boxed{7}"]
    solver = Scripted(llm, texts, monkeypatch)
    assert solver.answers("cumulative", "p", [5]) == ["7"]
    assert solver.prefixes == [  # type: ignore[attr-defined]
        "Step 1:",
        "Step 1: 3 and 4\nStep 2:",
        "Step 1: 3 and 4\nStep 2:",
        "Step 1: 3 and 4\nStep 2: ```python\nprint(3 + 4)\n```\nOutput: 7\nStep 3:",
    ]
    for forgotten in ("idle", "", "3 + 4 = 8", "```python\nimport os\n```"):
        solver = Scripted(llm, [forgotten, "So \\boxed{7}"], monkeypatch)
        assert solver.answers("cumulative", "p", [5]) == ["7"]
        assert solver.prefixes == ["Step 1:", "Step 1:"]  # type: ignore[attr-defined]
    texts = ["```py\nx = 3\nprint(x)\n```\nOutput: 5", "```\nprint(x + 4)", "```py\nprint(y)\n```", "So \\boxed{7}"]
    built = Scripted(llm, texts, monkeypatch)  # on an earlier program, and not on the output that was made up
    assert built.answers("cumulative", "p", [5]) == ["7"]
    first, second = (
        f"Step {n}: ```python\n{each}\n```\nOutput: {out}\n"
        for n, each, out in [(1, "x = 3\nprint(x)", 3), (2, "print(x + 4)", 7)]
    )
    assert built.prefixes[1:] == [f"{first}Step 2:", *[f"{first}{second}Step 3:"] * 2]  # type: ignore[attr-defined]
    late = Scripted(llm, ["a", "wrong"] * solve.STEPS + ["1}", "\\frac{1}{2}}."], monkeypatch)
    assert late.answers("cumulative", "p", [5, 6]) == ["1", "\\frac{1}{2}"]  # no step had one, so it is asked for
    assert late.prefixes[-1] == solve.ANSWER  # type: ignore[attr-defined]


def test_every_run_follows_from_its_seed(llm: thresher.LanguageModel) -> None:
    solver = Solver(llm, max_new_tokens=6, temperature=2.0, places=2)
    state = llm.prefill("Some problem.")
    seeds = seeds_of(0, 3, "text", 5)
    drawn = solver._draw([state] * 5, seeds)
    assert len(set(drawn)) > 1
    assert drawn == solver._draw([state] * 5, seeds)
    for text, seed in zip(drawn, seeds, strict=True):
        assert text == str(llm.generate(state.copy(), max_new_tokens=6, temperature=2.0, seed=seed))
    assert seeds[:2] == seeds_of(0, 3, "text", 2)
    assert len({*seeds, *seeds_of(0, 4, "text", 5), *seeds_of(0, 3, "code", 5), *seeds_of(1, 3, "text", 5)}) == 20


@pytest.mark.parametrize("template", [solve.TEXT, solve.CUMULATIVE])
def test_a_template_has_nothing_in_the_place_of_an_answer(template: str) -> None:
    """A small model would copy it."""
    asked = template.format(problem="Where {is} it?")
    assert (boxed(asked), asked.count("\\boxed{}")) == ("", 1)
    assert asked.endswith("\n\nProblem: Where {is} it?")


def test_programs_stand_between_fences() -> None:
    assert program_of("a\n```python\nx\n```\nb\n```\ny\n```") == "y\n"
    assert program_of("```py\nx") == "x"
    assert program_of("none") == ""


def test_problems_of_a_file(tmp_path: Path) -> None:
    path = tmp_path / "p.jsonl"
    path.write_text('{"problem": "1 + 1?", "answer": "2"}\n\n{"problem": "b", "answer": "3", "more": 0}\n')
    assert read_problems(str(path), 9) == [Problem("1 + 1?", ("2",)), Problem("b", ("3",))]
    assert len(read_problems(str(path), 1)) == 1
    for text, line in [
        ("", "got no line"),
        ("{", "line 1: got text that is not JSON"),
        ('{"problem": "a"}', "line 1: got answer None"),
        ('{"problem": "a", "answer": 3}', "line 1: got answer 3, wanted a text"),
    ]:
        path.write_text(text)
        with pytest.raises(ValueError, match=rf"p\.jsonl: {line}"):
            read_problems(str(path), 9)
    with pytest.raises(ValueError, match=r"problems: got nothing\.json, wanted gsm8k, math500 or a file"):
        read_problems("nothing.json", 9)


def test_the_command(directory: Path, tmp_path: Path) -> None:
    path, out = tmp_path / "p.jsonl", tmp_path / "run"
    path.write_text('{"problem": "1 + 1?", "answer": "2"}\n{"problem": "2 + 2?", "answer": "4"}\n')
    common = ["solve", directory, "--problems", path, "--backend", "reference", "--max-new-tokens", 4]
    result = command(*common, "--methods", "text,code", "--runs", 2, "--out", out, "--json")
    assert result.returncode == 0, result.stderr
    told = json.loads(result.stdout)
    assert set(told["methods"]) == {"text", "code", "mix"}
    assert json.loads((out / "metrics.json").read_text()) == told
    lines = [json.loads(line) for line in (out / "predictions.jsonl").read_text().splitlines()]
    assert [(line["problem"], line["method"], len(line["answers"])) for line in lines] == [
        (n, method, 2) for n in (0, 1) for method in ("text", "code")
    ]
    plain = command(*common, "--methods", "text", "--runs", 1)
    assert "runs that the mix saves" in plain.stdout
    assert "--methods takes one of text, code, cumulative, not 'magic'" in one_line(
        command(*common, "--methods", "magic")
    )
    assert "--methods takes each method once, not text,text" in one_line(command(*common, "--methods", "text,text"))
    assert "--runs takes" in one_line(command(*common, "--runs", 0))
