"""`pull`, `list` and `remove` with models of the Hugging Face hub, for which a server on this machine stands."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.checkpoints import write_checkpoint
from tests.loaders.fake_hub import Hub, serve
from tests.thresher.test_cli import COMMAND

NAME = "org/small-1.5"


@pytest.fixture
def hub(tmp_path: Path) -> Hub:
    folder = write_checkpoint(tmp_path / "source")
    (folder / "pytorch_model.bin").write_bytes(b"x" * 5000)  # must not be fetched
    bare = tmp_path / "bare"
    bare.mkdir()
    (bare / "model.gguf").write_bytes(b"GGUF")
    return Hub({NAME: folder, "org/bare": bare})


class Shell:
    def __init__(self, folder: Path, address: str) -> None:
        self.folder, self.address = folder, address

    def __call__(self, *arguments: object) -> subprocess.CompletedProcess[str]:
        places = {"HF_ENDPOINT": self.address, "HF_HOME": "hf", "THRESHER_CACHE": "cache", "HF_HUB_DISABLE_XET": "1"}
        return subprocess.run(
            [*COMMAND, *map(str, arguments)],
            env={**os.environ, **places, "PYTHONPATH": str(Path(__file__).parents[2])},
            cwd=self.folder,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
        )


@pytest.fixture
def thresher(hub: Hub, tmp_path: Path) -> Iterator[Shell]:
    (tmp_path / "work").mkdir()
    with serve(hub) as address:
        yield Shell(tmp_path / "work", address)


def test_pull_list_use_remove(hub: Hub, thresher: Shell) -> None:
    before = thresher("generate", NAME, "Hello")
    assert before.returncode == 1
    assert f"try `thresher pull {NAME}`" in before.stderr
    assert hub.requests == []  # nothing is fetched without being asked for
    pulled = thresher("pull", NAME)
    assert pulled.returncode == 0, pulled.stderr
    said = pulled.stderr.splitlines()
    assert said[0].startswith(f"Fetching {NAME}: ")
    assert said[0].endswith("48.2 KiB in memory as float32.")  # four bytes for each of 12,345 parameters
    assert said[1] == "Licence: cc0-1.0."
    assert not any(request.endswith(".bin") for request in hub.requests)
    (row,) = [row for row in json.loads(thresher("list", "--json").stdout) if row["name"] == NAME]
    assert row["pulled"]
    assert f"{NAME}  " in thresher("list").stdout
    asked = len(hub.requests)
    answer = thresher("generate", NAME, "Hello", "--backend", "reference", "--max-new-tokens", 3, "--json")
    assert len(json.loads(answer.stdout)["token_ids"]) == 3
    assert len(hub.requests) == asked  # what is here is used as it is
    assert thresher("remove", NAME).returncode == 0
    assert NAME not in thresher("list").stdout
    gone = thresher("remove", NAME)
    assert gone.returncode == 1
    assert "it is not on this machine; `thresher list` shows what is" in gone.stderr


def test_an_interrupted_pull_goes_on(hub: Hub, thresher: Shell) -> None:
    write_checkpoint(hub.models[NAME], intermediate_size=20_000)
    hub.cut = 11 << 20  # the library keeps what comes in pieces of 10 MiB, and goes on by itself
    assert thresher("pull", NAME).returncode == 0
    assert [int(wanted.split("-")[0]) for wanted in hub.ranges] == [10 << 20]
    assert json.loads(thresher("info", NAME, "--json").stdout)["family"] == "llama"


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("org/missing", "org/missing: the Hugging Face hub has no such model, or does not show it to you"),
        ("org/gated", "org/gated: its authors want to be asked first: accept their terms on its page"),
        ("org/bare", "org/bare: found a model without .safetensors files; expected one with"),
        ("smollm2-135m-instrct", "(did you mean smollm2-135m-instruct?), or a hub id such as org/name"),
    ],
)
def test_what_cannot_be_pulled_is_one_line(thresher: Shell, name: str, message: str) -> None:
    result = thresher("pull", name)
    assert result.returncode == 1
    assert message in result.stderr
    assert result.stderr.count("\n") == 1, result.stderr


def test_a_licence_that_is_not_stated_is_said_before_anything_is_fetched(hub: Hub, thresher: Shell) -> None:
    del hub.facts["cardData"]
    assert "Its licence is not stated where it comes from" in thresher("pull", NAME).stderr.splitlines()[1]
    listed = thresher("list").stdout
    assert any(line.startswith("qwen2.5-coder") and "not stated" in line for line in listed.splitlines())


def test_no_hub_at_all(thresher: Shell) -> None:
    thresher.address = "http://127.0.0.1:9"
    result = thresher("pull", NAME)
    assert result.returncode == 1
    assert f"{NAME}: the Hugging Face hub does not give it (" in result.stderr
