"""The command on machines as they are: streams closed or full, other encodings, bytes of any kind, no home."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.checkpoints import write_checkpoint
from tests.thresher.test_cli import COMMAND

EMOJI = "\U0001f999"


def shell(line: str, *arguments: object, stdin: bytes = b"", **environment: str) -> tuple[int, bytes, str]:
    """Status, output and errors of a line of bash, in which "$@" stands for the command with its arguments."""
    command = ["bash", "-c", line, "bash", *COMMAND, *map(os.fspath, map(str, arguments))]
    result = subprocess.run(command, input=stdin, capture_output=True, env={**os.environ, **environment}, check=False)
    error = result.stderr.decode(errors="backslashreplace")
    assert "Traceback" not in error, error
    return result.returncode, result.stdout, error


def generate(directory: Path, *options: object) -> list[object]:
    return ["generate", directory, "--backend", "reference", "--max-new-tokens", 4, *options]


@pytest.mark.parametrize(
    ("line", "arguments", "message"),
    [
        ('"$@" >&-', ["methods"], "standard output: it is closed, wanted it open"),
        ('"$@" >&-', ["-p", "x"], "standard output: it is closed"),
        ('"$@" <&-', ["-f", "-"], "standard input: it is closed"),
        ('"$@" >/dev/full', ["methods", "--json"], "standard input or output: No space left on device"),
        ('"$@" >/dev/full', ["-p", "x"], "standard input or output: No space left on device"),
        (
            "\"$@\" --stop $'caf\\xe9'",
            ["-p", "x"],
            r"--stop takes text .*, not '\\udce9' at character 3",
        ),
        (
            "\"$@\" -p $'caf\\xe9'",
            ["--raw"],
            r"--prompt takes text .*, not '\\udce9' at character 3",
        ),
        ("\"$@\" -p $'caf\\xe9'", [], r"--prompt takes text .*, not '\\udce9' at character 3"),
        ('printf "caf\\xe9" | "$@"', ["-f", "-"], r"standard input: not UTF-8 text \(unexpected end of data at byte 3"),
        (
            'printf "caf\\xe9!\\n" | "$@"',
            ["chat"],
            r"standard input: not UTF-8 text \(invalid continuation byte at byte 3",
        ),
        ('"$@" <&-', ["chat"], "standard input: it is closed"),
    ],
)
def test_what_cannot_be_done_is_one_line(directory: Path, line: str, arguments: list[str], message: str) -> None:
    words: list[object] = list(arguments)
    if arguments[:1] == ["chat"]:
        words = ["chat", directory, "--backend", "reference"]
    elif arguments[:1] != ["methods"]:
        words = generate(directory, *arguments)
    status, _, error = shell(line, *words)
    assert status == 1
    assert error.count("\n") == 1, error
    assert re.match(f"thresher: {message}", error), error


@pytest.mark.parametrize("closed", ["2>&-", "<&-", "2>&- <&-"])
def test_closed_streams_that_are_not_needed_do_not_matter(directory: Path, closed: str) -> None:
    # With 0 free, a file that is opened would become standard input, with 2 free it would take the errors.
    words = generate(directory, "-p", "Hello", "--json")
    whole = json.loads(shell('"$@"', *words)[1])
    status, out, error = shell(f'"$@" {closed}', *words)
    assert (status, error) == (0, "")
    assert json.loads(out)["token_ids"] == whole["token_ids"]


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "cp1252", "utf-8"])
def test_any_terminal_shows_something_and_json_stays_json(tmp_path: Path, encoding: str) -> None:
    model = write_checkpoint(tmp_path / f"l{EMOJI}m é" / "model")
    status, out, error = shell('"$@"', "info", model, PYTHONIOENCODING=encoding)
    assert (status, error) == (0, "")
    assert (f"l{EMOJI}m é" in out.decode(encoding)) == (encoding == "utf-8")
    assert ("é" in out.decode(encoding)) == (encoding != "ascii")
    status, out, error = shell('"$@"', "info", model, "--json", PYTHONIOENCODING=encoding)
    assert (status, error) == (0, "")
    assert json.loads(out.decode(encoding))["path"] == str(model)
    assert (EMOJI in out.decode(encoding)) == (encoding == "utf-8")


def test_a_path_in_latin_1_stays_json(directory: Path, tmp_path: Path) -> None:
    path = os.fsencode(tmp_path) + b"/caf\xe9"
    os.symlink(directory, path)
    for encoding in ("utf-8", "ascii"):
        status, out, _ = shell(f"\"$@\" --json $'{tmp_path}/caf\\xe9'", "info", PYTHONIOENCODING=encoding)
        assert status == 0
        assert os.fsencode(json.loads(out)["path"]) == path


def test_texts_of_all_systems_read_alike(directory: Path, tmp_path: Path) -> None:
    text = "one line\nand twé\n\nmore"
    windows = text.replace("\n", "\r\n")
    copies = {
        "plain": text.encode(),
        "crlf": windows.encode(),
        "cr": text.replace("\n", "\r").encode(),
        "marked": windows.encode("utf-8-sig"),
        "utf-16": windows.encode("utf-16"),
    }
    words = generate(directory, "--raw", "--json")
    found = []
    for name, data in copies.items():
        file = tmp_path / name
        file.write_bytes(data)
        found.append(shell('"$@"', *words, "--file", file)[1])
        found.append(shell('"$@"', *words, "--file", "-", stdin=data)[1])
    answers = [json.loads(out) for out in found]
    assert answers[0]["stats"]["prompt_tokens"] == len(text.encode())
    assert all(answer["token_ids"] == answers[0]["token_ids"] for answer in answers)
    chats = [
        shell('"$@"', "chat", directory, "--backend", "reference", "--max-new-tokens", 40, stdin=data)[1]
        for data in (b"Hello\nAnd now?\n", b"\xef\xbb\xbfHello\r\nAnd now?\r\n", b"Hello\nAnd now?")
    ]
    assert chats[0] == chats[1] == chats[2] != b""


def test_a_cut_that_does_nothing_is_told(directory: Path) -> None:
    status, _, error = shell('"$@"', *generate(directory, "-p", "x", "--top-k", 5))
    assert status == 0
    assert error.startswith("thresher: --top-k: does nothing at temperature 0")
    assert "--top-k" not in shell('"$@"', *generate(directory, "-p", "x", "--top-k", 5, "--temperature", 1))[2]


def test_the_authors_sampling(tmp_path: Path) -> None:
    model = write_checkpoint(tmp_path / "model")
    settings = {"do_sample": True, "temperature": 1.3, "top_k": 9, "eos_token_id": 257}
    (model / "generation_config.json").write_text(json.dumps(settings), encoding="utf-8")
    words = generate(model, "-p", "x", "--seed", 2, "--json")
    same = [*words, "--sampling", "model"], [*words, "--temperature", 1.3, "--top-k", 9]
    answers = [json.loads(shell('"$@"', *w)[1])["token_ids"] for w in (*same, words)]
    assert answers[0] == answers[1] != answers[2]


def test_an_empty_system_message_replaces_the_templates_own(tmp_path: Path) -> None:
    model = write_checkpoint(tmp_path / "model")
    template = (
        "{% if messages[0].role != 'system' %}Be good. {% endif %}{% for m in messages %}{{ m.content }}{% endfor %}"
    )
    (model / "tokenizer_config.json").write_text(json.dumps({"chat_template": template}), encoding="utf-8")
    words = generate(model, "-p", "abc", "--json")
    read = [json.loads(shell('"$@"', *words, *more)[1])["stats"]["prompt_tokens"] for more in ([], ["--system", ""])]
    assert read == [len("Be good. abc"), len("abc")]


def test_chat_ends_an_answer_before_a_stop_text(directory: Path) -> None:
    words = ["chat", directory, "--backend", "reference", "--max-new-tokens", 30, "--temperature", 2, "--seed", 3]
    whole = shell('"$@"', *words, stdin=b"Hello\n")[1].decode().removesuffix("\n")
    stop = whole[3:5]
    assert shell('"$@"', *words, "--stop", stop, stdin=b"Hello\n")[1].decode() == whole.split(stop)[0] + "\n"


def test_pull_without_a_home_says_what_to_set(tmp_path: Path) -> None:
    blocked = tmp_path / "file"
    blocked.touch()
    status, _, error = shell('"$@"', "pull", "smollm2-135m-instruct", THRESHER_CACHE=str(blocked / "cache"))
    assert status == 1
    assert error.splitlines()[-1].endswith("set THRESHER_CACHE to a folder that can be written to")


def test_a_bug_is_shown_with_where_to_report_it(directory: Path) -> None:
    code = (
        "import sys, thresher.info; thresher.info.describe = lambda *_: [][0]\n"
        "from thresher.cli import main; sys.argv = ['thresher', 'info', 'x']; main()"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert result.returncode == 1
    assert "Traceback" in result.stderr
    last = result.stderr.splitlines()[-1]
    assert last.startswith("thresher: this is a bug in thresher (IndexError), not a mistake of yours. Please report it")
    assert f"Python {sys.version.split()[0]}" in last


def test_too_little_memory_is_one_line() -> None:
    code = (
        "import sys, numpy, thresher.info; thresher.info.describe = lambda *_: numpy.zeros(2**58)\n"
        "from thresher.cli import main; sys.argv = ['thresher', 'info', 'x']; main()"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (result.returncode, result.stderr.count("\n")) == (1, 1)
    assert result.stderr.startswith("thresher: this machine has not enough memory (Unable to allocate 2.00 EiB")
