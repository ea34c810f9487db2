"""Which backend a name or a machine gives, and what is said where it cannot be had."""

from __future__ import annotations

import ctypes
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

import accel
import accel.cpu
import thresher
from tests.checkpoints import write_checkpoint
from thresher.kernels import compile_kernels

GPU = ModuleType("gpu")
GPU.__dict__.update(vars(accel.cpu), device_name=lambda: "a GPU", free_memory=lambda: 10_000_000_000)


@pytest.fixture
def no_driver(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> Any:
        raise OSError(name)

    monkeypatch.setattr(ctypes, "CDLL", missing)


@pytest.mark.usefixtures("no_driver")
def test_without_a_driver_auto_is_the_processor_and_cuda_says_why_not() -> None:
    assert accel.backend("auto") is accel.cpu
    assert accel.gpu() == "none (found no NVIDIA driver on this machine; backend='cpu' needs none)"
    with pytest.raises(ValueError, match="backend: got 'cuda': found no NVIDIA driver on this machine"):
        accel.backend("cuda")


@pytest.mark.parametrize("error", [ImportError("No module named 'numba_cuda'"), RuntimeError("cuda: old driver")])
def test_what_a_gpu_lacks_is_one_line(monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    def fail() -> ModuleType:
        raise error

    monkeypatch.setattr(accel, "_opened", fail)
    wanted = (
        "install what it needs with: pip install 'thresher\\[cuda\\]'" if error.args[0][0] == "N" else "old driver$"
    )
    with pytest.raises(ValueError, match=wanted) as raised:
        accel.backend("cuda")
    assert "\n" not in str(raised.value)
    assert accel.backend("auto") is accel.cpu


def test_auto_takes_a_gpu_with_room_and_says_so(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(accel, "_opened", lambda: GPU)
    directory = write_checkpoint(tmp_path / "small")
    assert accel.backend("auto", 9_999_999_999) is GPU
    assert accel.backend("auto", 10_000_000_000) is accel.cpu
    assert thresher.load(directory).device == "a GPU"
    monkeypatch.setattr(GPU, "free_memory", lambda: 1 << 30)  # what a pass takes besides is more than nothing
    assert thresher.load(directory).device == "cpu"
    assert accel.gpu() == "a GPU"


def test_a_backend_that_compiles_as_it_goes_is_told_how_to_say_so(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    told: list[Any] = []
    backend = ModuleType("gpu")
    backend.__dict__.update(tell_compiling=told.append)
    assert compile_kernels(backend) == 0
    assert not told  # there is no one to be told
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)
    assert compile_kernels(backend) == 0
    told[0]("attend")
    told[0]("")
    assert capsys.readouterr().err == "\r\x1b[KCompiling, once for this machine: attend\r\x1b[K"
