"""Kernels compiled before they are called: which, in how many processes, and what if one of those fails."""

from __future__ import annotations

import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import pytest

from accel import cpu
from accel.cpu.runtime import ahead
from accel.cpu.runtime.code import Code
from accel.cpu.runtime.kernels import Kernel
from accel.cpu.runtime.needed import needed
from reference import Policy
from tests.equivalence.test_forward import POLICIES, logits_of, on

SERVE = "from accel.cpu.runtime.ahead import serve; serve()"
NAMES = ["layers.add", "ffn.call.join"]


def code_in(folder: Path) -> list[str]:
    assert {path.suffix for path in folder.rglob("*") if path.is_file()} <= {".code", ".machine"}  # none half written
    return sorted(path.name.split("-")[0].replace("._", ".") for path in folder.rglob("*.code"))


def test_another_process_leaves_what_it_compiles_on_disk(tmp_path: Path) -> None:
    """Two at once, and for the same kernels: each writes whole files or none."""
    environment = {**os.environ, "NUMBA_CACHE_DIR": str(tmp_path)}
    asked = "".join(f"{name}\n" for name in NAMES)

    def serve(_: int) -> str:
        command = [sys.executable, "-c", SERVE]
        run = subprocess.run(command, env=environment, input=asked, text=True, capture_output=True, check=True)
        return run.stdout

    with ThreadPoolExecutor(2) as pool:
        assert list(pool.map(serve, range(2))) == ["\n" * (1 + len(NAMES))] * 2
    assert code_in(tmp_path) == sorted(NAMES)


@dataclass
class Pretended:
    """A kernel that costs nothing."""

    name: str
    compiled: int = 0

    def is_kept(self) -> bool:
        return self.compiled > 0

    @property
    def address(self) -> int:
        self.compiled += 1
        return 1


@pytest.mark.parametrize(
    "other",
    [
        "raise SystemExit(1)",
        "print(flush=True)",
        "import sys; print(flush=True); [print(flush=True) for _ in sys.stdin]",
    ],
    ids=["does not start", "dies", "compiles nothing"],
)
def test_what_another_process_does_not_compile_is_compiled_here(other: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ahead, "_OTHER", other)
    kernels = [Pretended(f"kernel {n}") for n in range(9)]
    told: list[tuple[str, int, int]] = []
    assert ahead.compile_all(kernels, lambda *step: told.append(step), processes=3) == 9  # type: ignore[arg-type]
    assert all(kernel.compiled for kernel in kernels)
    assert told[0] == ("kernel 0", 0, 9)
    assert told[-1] == ("", 9, 9)
    assert [done for _, done, _ in told] == sorted(done for _, done, _ in told)


def test_without_a_place_for_code_no_other_process_is_started(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setattr(Code, "folders", [tmp_path / "file" / "below"])
    monkeypatch.setattr(subprocess, "Popen", None)
    kernels = [Pretended(f"kernel {n}") for n in range(9)]
    ahead.compile_all(kernels, processes=3)  # type: ignore[arg-type]
    assert [kernel.compiled for kernel in kernels] == [2] * 9  # and asked for once more at the end


def test_nothing_is_told_of_kernels_that_are_there() -> None:
    cpu.warmup(policy=Policy())
    told: list[tuple[str, int, int]] = []
    count = cpu.warmup(lambda *step: told.append(step), Policy())
    assert told == [("", count, count)]


@pytest.mark.parametrize("name", POLICIES)
def test_a_model_calls_no_kernel_that_was_not_expected(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Else it would be compiled in the middle of an answer."""
    called = set()
    plain = Kernel.__call__

    def noted(self: Kernel, *arguments: int | float, workers: int | None = None) -> None:
        called.add(self.name)
        plain(self, *arguments, workers=workers)

    monkeypatch.setattr(Kernel, "__call__", noted)
    policy = POLICIES[name]
    logits_of(on(cpu), Policy(overrides={1: policy}) if name != "dense" else policy)
    logits_of(on(cpu, window=37), Policy(ffn=policy.ffn))
    _, state = logits_of(on(cpu), policy, tokens=3)
    state.cache.layers[0].take_back(1)  # as after an interrupt
    assert called
    assert called <= {kernel.name for kernel in needed(policy)}
    assert called <= {kernel.name for kernel in needed(Policy(overrides={1: policy}))}
