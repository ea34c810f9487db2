"""`verify`, `warmup` and `bench` as a user runs them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

import reference
from reference.backend import NAMES
from tests.thresher.test_cli import one_line, thresher
from thresher.verify.files import find_module

OWN = """
import numpy as np

def rms_norm(x, weight, *, eps):
    x, weight = x.astype(np.float32), weight.astype(np.float32)
    return x / np.sqrt((x * x).mean(axis=-1, keepdims=True) + eps) * weight

def select_neurons(scores, keep):
    return np.sort(np.argsort(-scores, kind="stable")[:keep])
"""


def verify(directory: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """The command run in a directory of its own, as someone who writes kernels does."""
    root = str(Path(__file__).parents[2])
    command = [sys.executable, "-m", "thresher", "verify", *arguments]
    environment = {**os.environ, "PYTHONPATH": root}
    return subprocess.run(
        command, capture_output=True, text=True, timeout=120, cwd=directory, env=environment, check=False
    )


def test_verify_holds_a_module_to_the_reference(tmp_path: Path) -> None:
    (tmp_path / "own.py").write_text(OWN)
    result = verify(tmp_path, "--backend", "own")
    assert result.returncode == 0, result.stderr
    rows = [line.split() for line in result.stdout.splitlines()[1:]]
    assert {row[0] for row in rows} == {"rms_norm", "select_neurons"}
    assert all(row[-1] == "ok" for row in rows)
    assert result.stderr == ""


def test_a_new_folder_passes_as_it_stands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    written = verify(tmp_path, "--new", "mine/kernels")
    assert written.returncode == 0, written.stderr
    folder = tmp_path / "mine" / "kernels"
    assert sorted(path.name for path in folder.iterdir()) == ["README.md", "kernels.py", "test_kernels.py"]
    assert [path.name for path in folder.parent.iterdir()] == ["kernels"]  # nothing is left of the way there
    monkeypatch.setattr(sys, "path", list(sys.path))  # where the folder's test looks for its kernels
    own_test = find_module(str(folder / "test_kernels.py"))
    own_test.test_each_kernel_of_our_own()
    own_test.test_a_whole_model()
    assert all(callable(getattr(own_test.kernels, name)) for name in NAMES)
    own_test.kernels.rms_norm = lambda x, weight, *, eps: reference.rms_norm(x, weight, eps=2 * eps)
    with pytest.raises(AssertionError, match="relative error"):
        own_test.test_each_kernel_of_our_own()


def test_verify_tells_what_is_wrong(tmp_path: Path) -> None:
    (tmp_path / "own.py").write_text(OWN.replace("+ eps", "+ 2 * eps").replace('kind="stable"', ""))
    result = verify(tmp_path, "--backend", "own")
    assert result.returncode == 1
    assert result.stdout.count("FAILED") >= 1
    assert "rms_norm:" in result.stderr
    assert "case:" in result.stderr
    assert "Traceback" not in result.stderr
    answer = json.loads(verify(tmp_path, "--backend", "own", "--function", "rms_norm", "--json").stdout)
    assert answer["module"] == "own"
    assert [f["name"] for f in answer["functions"]] == ["rms_norm"]
    assert "relative error" in answer["functions"][0]["failure"]


def test_verify_keeps_the_case_of_a_failure_and_replays_it(tmp_path: Path) -> None:
    (tmp_path / "own.py").write_text(OWN.replace("+ eps", "+ 2 * eps"))
    found = verify(tmp_path, "--backend", "own.py", "--save", "cases")
    assert found.returncode == 1
    assert "saved: thresher verify --backend own.py --replay cases/rms_norm.npz" in found.stderr
    assert [path.name for path in (tmp_path / "cases").iterdir()] == ["rms_norm.npz"]
    again = verify(tmp_path, "--backend", "own.py", "--replay", "cases/rms_norm.npz")
    assert again.returncode == 1
    assert "case: file=rms_norm.npz, drawn from dtype=" in again.stderr
    (tmp_path / "own.py").write_text(OWN)
    well = verify(tmp_path, "--backend", "own.py", "--replay", "cases/rms_norm.npz")
    assert well.returncode == 0, well.stderr
    assert well.stdout.split("\n")[1].split()[:2] == ["rms_norm", "1"]
    answer = json.loads(verify(tmp_path, "--backend", "own.py", "--save", "more", "--json").stdout)
    assert all("saved" not in f for f in answer["functions"])
    assert not (tmp_path / "more").exists()


def test_verify_a_backend() -> None:
    result = thresher("verify", "--backend", "cpu", "--function", "embed", "--json")
    assert result.returncode == 0, result.stderr
    (found,) = json.loads(result.stdout)["functions"]
    assert found["name"] == "embed"
    assert found["examples"] >= 1
    assert found["worst"] <= 1
    assert not found["failure"]


def test_bench_sets_dense_beside_the_policy(directory: Path) -> None:
    arguments = ["bench", directory, "--prompt-tokens", 96, "--new-tokens", 3, "--runs", 2, "--backend", "reference"]
    policy = ["--select", "quoka:budget=16", "--evict", "keydiff:budget=32", "--chunk", 16]
    shown = thresher(*arguments, *policy)
    assert shown.returncode == 0, shown.stderr
    header, dense, thin = shown.stdout.splitlines()
    assert "first token" in header
    assert dense.startswith("dense")
    assert thin.startswith("quoka:budget=16 + keydiff:budget=32")
    assert shown.stderr == ""
    answer = json.loads(thresher(*arguments, *policy, "--json").stdout)
    caches = [cost["cache_bytes"] for cost in answer["costs"]]
    per_token = 2 * 2 * (2 * 8 * 4 + 8)  # layers · KV heads · (keys and values of 8 float32, a position)
    assert caches == [98 * per_token, 32 * per_token]
    for cost in answer["costs"]:
        for what in ("time_to_first_token", "tokens_per_second"):
            assert len(cost[what]["runs"]) == 2
            assert min(cost[what]["runs"]) <= cost[what]["median"] <= max(cost[what]["runs"])
            assert cost[what]["median"] > 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["verify", "--backend", "tpu"], "--backend takes one of"),
        (["verify", "--backend", "no/such/file.py"], "(FileNotFoundError: no such file)"),
        (["verify", "--backend", "json"], "--backend takes one with some of"),
        (["verify", "--new", "/"], "/: found something there already"),
        (["verify", "--replay", "no_such_case.npz"], "no_such_case.npz: wanted a case"),
        (["verify", "--function", "no_such_function"], "--function takes one of attention,"),
        (["verify", "--function", "warmup"], "--function takes one of attention,"),
        (
            ["bench", "DIRECTORY", "--prompt-tokens", "255"],
            "--prompt-tokens takes at most the model's 256 positions, not 255",
        ),
        (["bench", "DIRECTORY", "--prompt-tokens", "0"], "--prompt-tokens takes a whole number of at least 1"),
        (
            ["bench", "DIRECTORY", "--prompt-tokens", "9", "--new-tokens", "1"],
            "--new-tokens takes a whole number",
        ),
        (
            ["bench", "DIRECTORY", "--prompt-tokens", "9", "--runs", "0"],
            "--runs takes a whole number of at least 1",
        ),
        (["bench", "DIRECTORY", "--evict", "keydiff"], "keydiff has no budget"),
    ],
)
def test_mistakes_are_one_line(directory: Path, arguments: list[str], message: str) -> None:
    here = [str(directory), "--backend", "reference"]
    given = [word for argument in arguments for word in (here if argument == "DIRECTORY" else [argument])]
    assert message in one_line(thresher(*given))
