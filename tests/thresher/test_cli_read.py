"""A document that is read once and asked often, from the command line; what is too long; where defaults come from."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import pytest

from tests.thresher.test_cli import COMMAND, one_line, thresher

FEW = ("--max-new-tokens", 6, "--backend", "reference")
TEXT = "Mara keeps bees on the roof. Otto repairs clocks in the cellar."


@pytest.fixture
def document(tmp_path: Path) -> Path:
    file = tmp_path / "house.txt"
    file.write_text(TEXT)
    return file


def answer(*arguments: object, **options: object) -> dict:
    result = thresher("generate", *arguments, *FEW, "--json", **options)  # type: ignore[arg-type]
    assert result.returncode == 0, result.stderr
    return json.loads(result.stdout)


@pytest.mark.parametrize("methods", [[], ["--evict", "keydiff:budget=40", "--chunk", 16]])
def test_a_document_is_read_once_and_asked_often(directory: Path, document: Path, methods: list[object]) -> None:
    state = document.with_name("house.state")
    read = thresher("read", directory, "-f", document, "-o", state, "--backend", "reference", *methods)
    assert read.returncode == 0, read.stderr
    tokens = len("<user\n") + len(TEXT)  # each chat mark is one token
    assert read.stderr.startswith(f"{tokens} tokens read into {state}, cache ")
    assert (", dense " in read.stderr) == bool(methods)
    questions = ["Who keeps bees?", "And clocks?"]
    alone = [answer(directory, "--state", state, "-p", question) for question in questions]
    both = answer(directory, "--state", state, "-p", questions[0], "-p", questions[1])
    assert [each["token_ids"] for each in both] == [each["token_ids"] for each in alone]
    assert [each["prompt"] for each in both] == questions
    if not methods:  # nothing was evicted, so it is the answer to one whole prompt
        whole = answer(directory, "-f", document, "-p", questions[0])
        assert whole["token_ids"] == alone[0]["token_ids"]
        assert whole["stats"]["prompt_tokens"] == alone[0]["stats"]["prompt_tokens"]


def test_prompts_by_position_by_option_from_a_file_and_piped(directory: Path, document: Path) -> None:
    by_position = answer(directory, TEXT)
    assert by_position["token_ids"] == answer(directory, "-p", TEXT)["token_ids"]
    assert by_position["token_ids"] == answer(directory, stdin=TEXT)["token_ids"]
    asked = answer(directory, "-f", document, "-p", "Who?")
    assert asked["token_ids"] == answer(directory, "Who?", stdin=TEXT)["token_ids"]
    questions = document.with_name("questions.txt")
    questions.write_text("Who?\n\nWhere?\n")
    many = answer(directory, "-f", document, "--prompts", questions)
    assert [each["prompt"] for each in many] == ["Who?", "Where?"]
    assert many[0]["token_ids"] == asked["token_ids"]
    alone = answer(directory, "--prompts", "-", stdin="Who?\nWhere?\n")
    assert [each["token_ids"] for each in alone] == [answer(directory, q)["token_ids"] for q in ("Who?", "Where?")]


def test_several_answers_are_told_in_the_order_asked(directory: Path) -> None:
    words = [f"-p{n}" for n in range(10)]  # more than share a pass
    result = thresher("generate", directory, *words, "--max-new-tokens", 2, "--backend", "reference")
    assert [line for line in result.stdout.splitlines() if line.startswith("> ")] == [f"> {n}" for n in range(10)]
    assert result.stderr.count("prompt tokens") == 10


def test_a_cut_answer_says_why(directory: Path) -> None:
    result = thresher("generate", directory, "Hello", *FEW)
    assert result.stderr.rstrip().endswith("cut after --max-new-tokens 6")
    long = thresher("generate", directory, "x" * 230, "--max-new-tokens", 99, "--backend", "reference")
    assert long.stderr.rstrip().endswith("cut: the model has no more positions")


def test_a_text_too_long_names_the_file_and_the_ways_out(directory: Path, document: Path) -> None:
    document.write_text("abc " * 100)
    line = one_line(thresher("generate", directory, "-f", document, "-p", "Who?", "--backend", "reference"))
    assert line.startswith(f"thresher: {document} has 4")
    assert "tokens and this model reads 256. Ways out: --truncate middle, a shorter text, or a model that reads" in line
    state = document.with_name("state")
    assert "--truncate middle" in one_line(thresher("read", directory, "-f", document, "-o", state))
    assert not state.exists()


def test_truncate_leaves_out_the_middle(directory: Path, document: Path) -> None:
    text = "".join(f"{n:03} " for n in range(200))
    document.write_text(text)
    common = ["-f", document, "-p", "Who?", "--truncate", "middle", *FEW]
    cut = thresher("generate", directory, *common, "--json")
    assert cut.returncode == 0, cut.stderr
    stats = json.loads(cut.stdout)["stats"]
    assert stats["prompt_tokens"] == 256 - 6
    missing = int(cut.stderr.split(" tokens in the middle of ")[0])
    kept = len(text) - missing
    back = kept // 2
    shorter = document.with_name("shorter.txt")
    shorter.write_text(text[: kept - back] + text[-back:])
    assert answer(directory, "-f", shorter, "-p", "Who?")["token_ids"] == json.loads(cut.stdout)["token_ids"]
    short = thresher("generate", directory, "Hello", "--truncate", "middle", *FEW)
    assert "left out" not in short.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--state", "STATE", "-p", "x", "--evict", "keydiff:budget=3"], "--evict: decided when"),
        (["--state", "nowhere", "-p", "x"], "nowhere: there is no such file; `thresher read` writes one"),
        (["--state", "STATE", "-p", "x" * 300], "with the prompt has "),
        (["-p", "x", "--truncate", "end"], "--truncate takes one of middle, not 'end'"),
        (["-p", "x", "--max-new-tokens", "0"], "--max-new-tokens takes a whole number of at least 1, not 0"),
        (["-p", "x", "--min-new-tokens", "9"], "--min-new-tokens takes at most --max-new-tokens, 6, not 9"),
        (["-p", "x", "--sampling", "best"], "--sampling takes one of greedy, model, not 'best'"),
        (["-p", "x", "--top-p", "2"], "--top-p takes a number in (0, 1], not 2.0"),
        (["-p", "x", "--evict", "keydif:budget=3"], "(did you mean keydiff?), not 'keydif'"),
        (["-p", "x", "--nonsense"], "No such option: --nonsense"),
        (["-p", "x", "--max-new-tokens", "many"], "Invalid value for '--max-new-tokens'"),
    ],
)
def test_mistakes_are_one_line(directory: Path, document: Path, arguments: list[str], message: str) -> None:
    state = document.with_name("state")
    if "STATE" in arguments:
        assert thresher("read", directory, "-f", document, "-o", state, "--backend", "reference").returncode == 0
    words = [str(state) if word == "STATE" else word for word in arguments]
    line = one_line(thresher("generate", directory, "--max-new-tokens", 6, *words))
    assert line.startswith("thresher: ")
    assert message in line


def test_options_are_checked_before_a_model_is_looked_for() -> None:
    line = one_line(thresher("generate", "no-such-model", "-p", "x", "--top-k", 0))
    assert "--top-k takes a whole number of at least 1" in line


def run(folder: Path, *arguments: object, **environment: str) -> subprocess.CompletedProcess[str]:
    root = str(Path(__file__).parents[2])
    return subprocess.run(
        [*COMMAND, *map(str, arguments)],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": root, **environment},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )


def test_the_model_by_environment_and_by_project(directory: Path, tmp_path: Path) -> None:
    plain = run(tmp_path, "generate", directory, "Hello", *FEW, "--json")
    named = run(tmp_path, "generate", "Hello", *FEW, "--json", THRESHER_MODEL=str(directory))
    assert json.loads(named.stdout)["token_ids"] == json.loads(plain.stdout)["token_ids"]
    (tmp_path / "pyproject.toml").write_text(
        f'[tool.thresher]\nmodel = "{directory}"\nbackend = "reference"\nmax-new-tokens = 6\n'
    )
    inner = tmp_path / "inner"
    inner.mkdir()
    project = run(inner, "generate", "Hello", "--json")
    assert json.loads(project.stdout)["token_ids"] == json.loads(plain.stdout)["token_ids"]
    assert json.loads(run(inner, "info", "--json").stdout)["family"] == "llama"
    assert "nowhere" in run(tmp_path, "generate", "nowhere", "Hello").stderr  # what is typed counts
    (tmp_path / "pyproject.toml").write_text('[tool.thresher]\nmodle = "x"\n')
    wrong = run(tmp_path, "info")
    assert wrong.returncode == 1
    assert "pyproject.toml: [tool.thresher] has modle, and no command has such an option" in wrong.stderr


def test_version_help_and_completion() -> None:
    assert thresher("--version").stdout.startswith("thresher 0.")
    assert thresher("-h").stdout == thresher("--help").stdout
    assert "--truncate" in thresher("generate", "-h").stdout
    completed = subprocess.run(
        COMMAND,
        env={
            **os.environ,
            "_PYTHON _M THRESHER_COMPLETE": "",
            "_THRESHER_COMPLETE": "complete_bash",
            "COMP_WORDS": "thresher generate x --backend re",
            "COMP_CWORD": "4",
        },
        capture_output=True,
        text=True,
        check=False,
    )
    assert completed.stdout.split() == ["reference"]


def test_log_level(directory: Path) -> None:
    words = ["generate", directory, "Hello", *FEW]
    assert "is ready after" in thresher("--log-level", "info", *words).stderr
    assert "is ready after" not in thresher(*words).stderr
    failed = thresher("--log-level", "debug", "info", "nowhere")
    assert "Traceback" in failed.stderr
    assert failed.stderr.splitlines()[-1].startswith("thresher: nowhere: ")
    assert "'loud' is not one of debug, info" in one_line(thresher("--log-level", "loud", "info", "x"))
