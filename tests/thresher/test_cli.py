"""The command as a user runs it: a process of its own, its output, its exit status."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.checkpoints import write_checkpoint

COMMAND = [sys.executable, "-m", "thresher"]


def thresher(
    *arguments: object, stdin: str | None = None, cache: Path | None = None
) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, **({"THRESHER_CACHE": str(cache)} if cache else {})}
    return subprocess.run(
        [*COMMAND, *map(str, arguments)],
        **({"stdin": subprocess.DEVNULL} if stdin is None else {"input": stdin}),
        capture_output=True,
        text=True,
        timeout=120,
        env=environment,
        check=False,
    )


def one_line(result: subprocess.CompletedProcess[str]) -> str:
    """The error of a command that failed as it should: exit status not 0, one line, no stack trace."""
    assert result.returncode != 0
    assert result.stdout == ""
    assert result.stderr.count("\n") == 1, result.stderr
    assert "Traceback" not in result.stderr
    return result.stderr


def test_help_lists_the_commands() -> None:
    result = thresher("--help")
    assert result.returncode == 0
    for command in ("pull", "generate", "chat", "info", "methods", "convert", "demo"):
        assert command in result.stdout


def test_help_and_import_load_nothing_heavy() -> None:
    heavy = "'numba', 'numpy', 'tokenizers', 'jinja2', 'prompt_toolkit', 'huggingface_hub'"
    code = f"import sys, thresher.cli.app; print([m for m in ({heavy}) if m in sys.modules])"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"


def test_generate_streams_text_and_tells_stats_apart(directory: Path) -> None:
    result = thresher("generate", directory, "-p", "Hello", "--max-new-tokens", 5, "--backend", "reference")
    assert result.returncode == 0, result.stderr
    assert "prompt tokens" in result.stderr
    assert "prompt tokens" not in result.stdout
    assert "\x1b" not in result.stderr  # no bar, no colours in a pipe
    again = thresher("generate", directory, "-p", "Hello", "--max-new-tokens", 5, "--backend", "reference", "--json")
    answer = json.loads(again.stdout)
    assert answer["text"] + "\n" == result.stdout
    assert answer["stats"]["new_tokens"] == len(answer["token_ids"]) == 5
    assert again.stderr == ""


def test_generate_takes_files_and_methods(directory: Path, tmp_path: Path) -> None:
    text = tmp_path / "text.txt"
    text.write_text("All work and no play makes Jack a dull boy. " * 4)
    options = ["--select", "quoka:budget=16", "--evict", "keydiff:budget=48", "--ffn", "fastforward:neurons=griffin"]
    common = ["-p", "Go on.", "--max-new-tokens", 3, "--chunk", 16, "--backend", "reference", "--raw", "--json"]
    from_file = json.loads(thresher("generate", directory, "--file", text, *common, *options).stdout)
    piped = json.loads(thresher("generate", directory, "--file", "-", *common, *options, stdin=text.read_text()).stdout)
    assert from_file["text"] == piped["text"]
    stats = from_file["stats"]
    assert stats["prompt_tokens"] == len(text.read_text() + "\n\nGo on.")
    assert 0 < sum(stats["keys_read"]) < sum(stats["keys_visible"])
    assert all(evicted == stats["prompt_tokens"] + 2 - 48 for evicted in stats["keys_evicted"])


def test_chat_reads_only_what_is_new(directory: Path) -> None:
    result = thresher("chat", directory, "--max-new-tokens", 4, "--backend", "reference", stdin="Hello\nAnd now?\n")
    assert result.returncode == 0, result.stderr
    one_turn = thresher("chat", directory, "--max-new-tokens", 4, "--backend", "reference", stdin="Hello\n")
    assert result.stdout.startswith(one_turn.stdout)
    assert len(result.stdout) > len(one_turn.stdout)


def test_info(directory: Path) -> None:
    facts = json.loads(thresher("info", directory, "--json").stdout)
    assert facts["family"] == "llama"
    assert facts["parameters"] == 258 * 32 + 32 + 2 * (2 * 32 + 2 * 32 * 32 + 2 * 16 * 32 + 3 * 32 * 48)
    assert facts["cache_bytes_per_token"] == 2 * 2 * (2 * 8 * 4 + 8)
    assert sum(facts["bytes"].values()) == 4 * facts["parameters"]
    shown = thresher("info", directory).stdout
    assert "head dim" in shown
    assert f"{facts['parameters']:,}" in shown


def test_methods_lists_every_method() -> None:
    listing = json.loads(thresher("methods", "--json").stdout)
    published = ["quoka", "keydiff", "h2o", "tova", "snapkv", "caote", "fastforward"]
    assert [m["name"] for m in listing if "arXiv" in m["summary"]] == published
    assert {m["name"] for m in listing} - set(published) == {"recent", "random"}  # what any method must beat
    assert listing[0]["parameters"]["n_queries"] == 16
    shown = thresher("methods").stdout
    assert "--evict keydiff:budget,sinks=0,recent=0,anchor=normalised" in shown
    assert "arXiv 2504.15364" in shown


def test_a_model_that_is_not_there(tmp_path: Path) -> None:
    line = one_line(thresher("generate", "nowhere", "-p", "x", cache=tmp_path))
    assert line.startswith("thresher: nowhere: ")
    assert "thresher pull" in line
    line = one_line(thresher("generate", "smollm2-135m-instruct", "-p", "x", cache=tmp_path))
    assert "thresher pull smollm2-135m-instruct" in line
    assert "nowhere" in one_line(thresher("pull", "nowhere", cache=tmp_path))


def test_damaged_checkpoints_are_named(tmp_path: Path) -> None:
    directory = write_checkpoint(tmp_path / "model")
    weights = directory / "model.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(whole[: len(whole) // 2])
    assert "model.safetensors" in one_line(thresher("info", directory))
    weights.unlink()
    assert "model.safetensors" in one_line(thresher("info", directory))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "--prompt takes a PROMPT, --file PATH, or piped text, not nothing"),
        (["-p", "x", "--evict", "keydiff"], "--evict: keydiff has no budget; expected keydiff:budget=…"),
        (["-p", "x", "--select", "magic:budget=3"], "--select takes one of quoka, not 'magic'"),
        (["-p", "x", "--backend", "tpu"], "tpu"),
        (["-p", "x", "--dtype", "int4"], "int4"),
        (["-p", "x", "--temperature", "-1"], "temperature"),
        (["-p", "x" * 300], "The prompt has 319 tokens and this model reads 256. Ways out: --truncate middle"),
        (["-f", "no-such-file.txt"], "no-such-file.txt"),
    ],
)
def test_mistakes_are_one_line(directory: Path, arguments: list[str], message: str) -> None:
    assert message in one_line(thresher("generate", directory, "--backend", "reference", *arguments))


def test_convert_refuses_what_is_not_gguf(tmp_path: Path) -> None:
    fake = tmp_path / "model.gguf"
    fake.write_bytes(b"not a model")
    assert "model.gguf" in one_line(thresher("convert", fake, tmp_path / "out"))
    assert not (tmp_path / "out").exists()


def test_ctrl_c_ends_cleanly(directory: Path) -> None:
    process = subprocess.Popen(
        [*COMMAND, "chat", str(directory), "--backend", "reference"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        # A shell starts its background jobs with SIGINT ignored, and what they start inherits that.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.write("Hello\n")
    process.stdin.flush()
    assert process.stdout.read(1)  # it is answering
    process.send_signal(signal.SIGINT)
    _, error = process.communicate(timeout=60)
    assert (process.returncode, error) == (130, "")


def test_a_closed_pipe_is_no_error(directory: Path) -> None:
    command = f"{' '.join(COMMAND)} methods | head -n 1"
    result = subprocess.run(["bash", "-c", f"set -o pipefail; {command}"], capture_output=True, text=True, check=False)
    assert "Traceback" not in result.stderr
    assert "Exception" not in result.stderr
