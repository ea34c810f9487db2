"""The suite again with Numba told that the machine is another one: without the matrix unit, without AVX-512, or with
products of bfloat16 in its registers."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from llvmlite.binding import get_host_cpu_features

from accel.cpu import simd

HAS = get_host_cpu_features()
OLDER = {"znver4": "avx512bf16", "cascadelake": "avx512f", "haswell": "avx2"}  # what this machine needs to play them


def described(name: str | None) -> str:
    """What accel.cpu makes of such a machine."""
    code = "from accel.cpu import simd; print(simd.LANES, simd.REGISTERS, simd.PAIRS, simd.MATRIX)"
    environment = os.environ if name is None else {**os.environ, "NUMBA_CPU_NAME": name}
    return subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True
    ).stdout


@pytest.mark.parametrize("name", OLDER)
def test_the_suite_holds_on_an_older_machine(name: str) -> None:
    if not HAS.get(OLDER[name]):
        pytest.skip(f"this machine has no {OLDER[name]}")
    if described(name) == described(None):
        pytest.skip("this machine is such a one")
    here = Path(__file__).parent
    run = subprocess.run(
        [sys.executable, "-m", "pytest", here, "--ignore", __file__, "-p", "no:cacheprovider", "-x"],
        env={**os.environ, "NUMBA_CPU_NAME": name}, capture_output=True, text=True, cwd=here.parents[1],
    )  # fmt: skip
    assert run.returncode == 0, run.stdout[-4000:] + run.stderr[-2000:]


def test_registers_and_tiles_follow_the_machine() -> None:
    if not HAS.get("avx2"):
        pytest.skip("this machine has no AVX2")
    assert described("haswell") == "8 16 False False\n"
    assert described("nehalem") == "4 16 False False\n"
    if HAS.get("avx512f"):
        assert described("cascadelake") == "16 32 False False\n"
    assert described(None) == f"{simd.LANES} {simd.REGISTERS} {simd.PAIRS} {simd.MATRIX}\n"
