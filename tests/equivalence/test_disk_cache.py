"""Compiled code on disk: where it lies, when it is used, and what happens where it cannot be."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

import accel
from accel.cpu.runtime import code

ADD = """
import sys
import numpy as np
from accel import cpu
x = np.ones((3, 5), np.float32)
assert (cpu.add(x, x) == 2).all()
from accel.cpu.layers import _add
from accel.cpu.runtime.image import IMAGES
assert ("numba" in sys.modules) != _add._code.was_kept
assert not IMAGES or ("llvmlite.binding" in sys.modules) != _add._code.was_kept
print(int(_add._code.was_kept))
"""


def run(**environment: str) -> tuple[str, list[str]]:
    """What a process prints, and its lines on standard error; as an environment variable "" is none."""
    given = {**os.environ, "PYTHONDONTWRITEBYTECODE": "1", **environment}
    given = {name: value for name, value in given.items() if value}
    run = subprocess.run([sys.executable, "-c", ADD], env=given, capture_output=True, text=True, cwd="/")
    assert run.returncode == 0, run.stderr
    return run.stdout.strip(), run.stderr.splitlines()


def code_in(folder: Path) -> list[Path]:
    return sorted(folder.rglob("layers._add-*"))


def test_code_is_kept_and_found_again(tmp_path: Path) -> None:
    assert run(NUMBA_CACHE_DIR=str(tmp_path)) == ("0", [])
    (first,) = code_in(tmp_path)
    assert run(NUMBA_CACHE_DIR=str(tmp_path)) == ("1", [])
    assert code_in(tmp_path) == [first]
    assert {path.suffix for path in tmp_path.rglob("*") if path.is_file()} <= {".code", ".machine"}  # none half written


@pytest.mark.parametrize("damage", ["cut", "empty", "bit", "another"])
def test_damaged_code_is_compiled_again(damage: str, tmp_path: Path) -> None:
    run(NUMBA_CACHE_DIR=str(tmp_path))
    (path,) = code_in(tmp_path)
    whole = path.read_bytes()
    middle = len(whole) // 2
    path.write_bytes(
        {
            "cut": whole[:middle],
            "empty": b"",
            "bit": whole[:middle] + bytes([whole[middle] ^ 4]) + whole[middle + 1 :],
            "another": b"not code at all",
        }[damage]
    )
    assert run(NUMBA_CACHE_DIR=str(tmp_path)) == ("0", [])
    assert run(NUMBA_CACHE_DIR=str(tmp_path)) == ("1", [])


@pytest.mark.parametrize("damage", [b"", b"abcd[]"], ids=["empty", "another"])
def test_what_is_known_of_the_processor_is_asked_again_where_it_is_damaged(damage: bytes, tmp_path: Path) -> None:
    run(NUMBA_CACHE_DIR=str(tmp_path))
    known = list(tmp_path.rglob("*.machine"))
    if not known:
        pytest.skip("this system does not say which processor it has")
    whole = known[0].read_bytes()
    known[0].write_bytes(damage)
    machine = "from accel.cpu.simd.machine import MACHINE, _asked; assert MACHINE == _asked()"
    environment = {**os.environ, "NUMBA_CACHE_DIR": str(tmp_path)}
    for _ in range(2):
        subprocess.run([sys.executable, "-c", machine], env=environment, check=True)
        assert known[0].read_bytes() == whole
    assert run(NUMBA_CACHE_DIR=str(tmp_path)) == ("1", [])


def test_machines_that_share_a_folder_keep_their_code_side_by_side(tmp_path: Path) -> None:
    for hits in ("0", "1"):
        for name in ("", "nehalem"):
            assert run(NUMBA_CACHE_DIR=str(tmp_path), NUMBA_CPU_NAME=name) == (hits, [])
    assert len(code_in(tmp_path)) == 2


def copied(folder: Path) -> Path:
    """The packages that kernels need, as another install of them."""
    for name in ("accel", "reference"):
        source = Path(accel.__file__).parents[1] / name
        shutil.copytree(source, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    return folder


@pytest.mark.parametrize("changed", ["simd/words.py", "layers.py", "runtime/team.py"])
def test_code_is_compiled_again_when_any_source_changes(changed: str, tmp_path: Path) -> None:
    """The lower functions too: those of the team call what simd/ emits."""
    copied(tmp_path / "package")
    kept = {"PYTHONPATH": str(tmp_path / "package"), "NUMBA_CACHE_DIR": str(tmp_path / "kept")}
    run(**kept)
    before = set((tmp_path / "kept").rglob("*.code"))
    with (tmp_path / "package/accel/cpu" / changed).open("a") as file:
        file.write("\n# changed\n")
    assert run(**kept) == ("0", [])
    after = set((tmp_path / "kept").rglob("*.code")) - before
    assert {path.name.split("-")[0] for path in after} == {path.name.split("-")[0] for path in before}


def test_where_nothing_can_be_written_code_is_compiled_in_memory(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_text("")
    printed, told = run(NUMBA_CACHE_DIR=str(file / "below"))
    assert printed == "0"
    (line,) = told
    assert line.startswith("compiled kernels cannot be kept, so every start compiles them anew: ")
    assert str(file / "below") in line
    assert line.endswith("set NUMBA_CACHE_DIR to a folder that can be written")


@pytest.mark.parametrize("home", ["/dev/null", ""])
def test_a_package_of_another_user_is_used_with_its_code_and_without(home: str, tmp_path: Path) -> None:
    """A container: root installed the package, and perhaps compiled it; somebody without a home runs it."""
    package = copied(tmp_path)
    forbidden = package / "accel/cpu/__pycache__"
    forbidden.write_text("")  # a file: nothing can be written below it, by root neither
    nobody = {"PYTHONPATH": str(package), "HOME": home, "NUMBA_CACHE_DIR": "", "XDG_CACHE_HOME": "/dev/null"}
    printed, told = run(**nobody)
    assert printed == "0"
    assert len(told) == 1
    forbidden.unlink()
    run(PYTHONPATH=str(package), NUMBA_CACHE_DIR="")  # whoever owns it compiles it
    assert len(code_in(package)) == 1
    assert run(**nobody) == ("1", [])


def test_a_full_disk_is_no_reason_to_fail(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def full(path: Path, data: bytes) -> int:
        with path.open("wb") as file:
            file.write(data[:10])
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(code.Code, "folders", [tmp_path])
    monkeypatch.setattr(code.Code, "told", False)
    monkeypatch.setattr(Path, "write_bytes", full)

    def nothing(word):  # type: ignore[no-untyped-def]
        return

    nothing.__module__ = "accel.cpu.nothing"  # else it would not be kept
    for _ in range(2):
        assert code.Code(nothing, 1).address
    assert list(tmp_path.iterdir()) == []
    assert [record.message for record in caplog.records] == [
        "compiled kernels cannot be kept, so every start compiles them anew: "
        f"{tmp_path} (No space left on device); set NUMBA_CACHE_DIR to a folder that can be written"
    ]


def test_only_what_the_stamp_knows_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A kernel of somebody else's would be found again after its source had changed."""
    monkeypatch.setattr(code.Code, "folders", [tmp_path])
    assert code.Code(lambda word: None, 1).address
    assert list(tmp_path.iterdir()) == []


def test_code_of_another_stamp_goes_when_nobody_loaded_it_for_long(tmp_path: Path) -> None:
    run(NUMBA_CACHE_DIR=str(tmp_path), NUMBA_CPU_NAME="nehalem")
    (old,) = code_in(tmp_path)
    recent = old.with_name("layers._add-1234567890abcdef.code")
    shutil.copy(old, recent)
    long_ago = time.time() - code.UNUSED - 100
    os.utime(old, (long_ago, long_ago))
    run(NUMBA_CACHE_DIR=str(tmp_path))
    assert not old.exists()
    assert len(code_in(tmp_path)) == 2
    os.utime(recent, (long_ago, long_ago))
    assert recent.exists()


def test_loading_counts_as_use(tmp_path: Path) -> None:
    run(NUMBA_CACHE_DIR=str(tmp_path))
    (path,) = code_in(tmp_path)
    os.utime(path, (1e9, 1e9))
    run(NUMBA_CACHE_DIR=str(tmp_path))
    assert path.stat().st_mtime > 1e9 + 1e6
