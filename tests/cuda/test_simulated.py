"""The portable kernels in the simulator, and every kernel assembled for every architecture, without a GPU."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from reference.backend import FUNCTIONS

ROOT = Path(__file__).parents[2]
GROUPS = [  # processes that run side by side: the simulator's threads keep one core busy each
    ["forward", "repeated"],
    ["attention", "quoka_attention", "shared out", "refused"],
    [name for name in (*FUNCTIONS, "fastforward_blocks") if name not in ("attention", "quoka_attention")],
]
ARCHITECTURES = ("80", "90a", "100")


def child(names: list[str]) -> dict[str, Any]:
    """What `tests.cuda.simulated` found of these names."""
    run = subprocess.run(
        [sys.executable, "-m", "tests.cuda.simulated", *names],
        env={**os.environ, "NUMBA_ENABLE_CUDASIM": "1", "PYTHONPATH": str(ROOT)},
        capture_output=True, text=True, cwd=ROOT, check=False,
    )  # fmt: skip
    assert run.returncode == 0, run.stderr[-3000:]
    found: dict[str, Any] = json.loads(run.stdout.splitlines()[-1])
    return found


@pytest.fixture(scope="module")
def simulated() -> list[dict[str, Any]]:
    with ThreadPoolExecutor(2) as pool:
        return list(pool.map(child, GROUPS))


def test_portable_kernels_mean_the_same_as_the_reference(simulated: list[dict[str, Any]]) -> None:
    failures = {name: failure for found in simulated for name, failure in found["failures"].items()}
    assert not failures, failures


def complaints(report: str) -> list[str]:
    """What ptxas says that it should not have to: memory spilled to, a stack, or one of its warnings."""
    spilled = re.findall(r"[1-9]\d* bytes (?:stack frame|spill stores|spill loads)", report)
    return spilled + re.findall(r"\(C7\d\d\d\)[^\n]*", report)


def test_complaints_are_seen() -> None:
    assert complaints("0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads") == []
    assert len(complaints("24 bytes stack frame, 24 bytes spill stores, 0 bytes spill loads")) == 2
    assert complaints("(C7509) Potential Performance Loss: wgmma.mma_async instructions are serialized")


needs_compiler = pytest.mark.skipif(
    find_spec("numba_cuda") is None or find_spec("cuda") is None, reason="numba-cuda is not installed"
)


@needs_compiler
def test_portable_kernels_are_assembled(simulated: list[dict[str, Any]]) -> None:
    """Each kernel for the types that the simulator called it with, for every architecture in turn."""
    from accel.cuda.ffn import predictor
    from accel.cuda.methods import topk_block
    from accel.cuda.runtime.kernels import Kernel, assemble

    predictor.products("plain")
    for size in topk_block.SIZES:
        topk_block.keeper(*size)
    known = {kernel.name: kernel for kernel in Kernel.known}
    found = {name: keys[0] for one in simulated for name, keys in one["keys"].items()}
    assert len(found) > 30
    kinds = {"int": int, "float": float}
    for n, (name, key) in enumerate(sorted(found.items())):
        types = tuple((np.dtype(one[0]), one[1]) if isinstance(one, list) else kinds[one] for one in key)
        arch = ARCHITECTURES[n % len(ARCHITECTURES)].rstrip("a")
        _, report = assemble(known[name].text(types, arch), arch)
        assert not complaints(report), f"{name} for {arch}: {report}"


TIERS = [("hopper", "90a"), ("ampere", "80"), ("ampere", "100")]
DIMS = [(128, "bf16", False), (80, "f16", False), (256, "bf16", True)]  # with a soft cap there is more to hold


@needs_compiler
@pytest.mark.parametrize(
    ("tier", "arch", "dim", "form", "capped"),
    [(*TIERS[2], 128, "bf16", True), *((*one, *two) for one in TIERS[:2] for two in DIMS)],
)
def test_attention_on_tensor_cores_is_assembled(tier: str, arch: str, dim: int, form: str, capped: bool) -> None:
    from accel.cuda.runtime.kernels import assemble

    attend = import_module(f"accel.cuda.attention.{tier}").attend
    key = (*[int] * 24, float, float, *[int] * 6)
    code, report = assemble(attend(dim, form, capped).text(key, arch), arch)
    assert not complaints(report), report
    assert len(code) > 10_000


@needs_compiler
@pytest.mark.parametrize(
    ("tier", "arch", "chunks"),
    [("hopper", "90a", 1), *((*one, 8) for one in TIERS)],
)
def test_scores_on_tensor_cores_are_assembled(tier: str, arch: str, chunks: int) -> None:
    from accel.cuda.methods.score_tensor import score
    from accel.cuda.runtime.kernels import assemble

    _, report = assemble(score(128, "bf16", chunks, 16, tier == "hopper").text((int,) * 14, arch), arch)
    assert not complaints(report), report


@needs_compiler
def test_the_norm_of_wide_rows_is_assembled() -> None:
    """The simulator's blocks are too small for it."""
    from accel.cuda.layers import _norm_many
    from accel.cuda.runtime.arrays import BF16, F32
    from accel.cuda.runtime.kernels import assemble

    _, report = assemble(
        _norm_many.text(((F32, 3), (F32, 3), int, float, (BF16, 1), float, (F32, 3), (BF16, 3)), "80"), "80"
    )
    assert not complaints(report), report


@needs_compiler
@pytest.mark.parametrize("arch", ["90", "100"])
def test_keydiff_in_pieces_is_assembled(arch: str) -> None:
    from accel.cuda.methods.keydiff_wide import kernels
    from accel.cuda.runtime.arrays import F64
    from accel.cuda.runtime.kernels import assemble

    add, score, _ = kernels(128, "bf16")
    for kernel, key in ((add, (*[int] * 8, (F64, 3))), (score, (*[int] * 6, (F64, 3), int, int))):
        _, report = assemble(kernel.text(key, arch), arch)
        assert not complaints(report), report


@needs_compiler
def test_the_predictor_in_pieces_is_assembled() -> None:
    from accel.cuda.ffn import predictor
    from accel.cuda.runtime.arrays import BF16, F32
    from accel.cuda.runtime.kernels import assemble

    pool, multiply = predictor.products("bf16")
    for kernel, given in ((pool, ((BF16, 2), (F32, 1))), (multiply, ((F32, 2),))):
        _, report = assemble(kernel.text((*given, (BF16, 2), int, int, (F32, 2)), "80"), "80")
        assert not complaints(report), report


@needs_compiler
def test_the_ffn_of_chosen_neurons_by_wgmma_is_assembled() -> None:
    from accel.cuda.ffn.hopper import kernels
    from accel.cuda.runtime.arrays import BF16
    from accel.cuda.runtime.kernels import assemble

    hidden, output = kernels("bf16")
    for kernel, key in ((hidden, (*[int] * 13, (BF16, 2))), (output, (int,) * 12)):
        _, report = assemble(kernel.text(key, "90a"), "90a")
        assert not complaints(report), report


@needs_compiler
@pytest.mark.parametrize("arch", ["80", "100"])
def test_the_ffn_of_chosen_neurons_is_assembled(arch: str) -> None:
    from accel.cuda.ffn.gathered import kernels
    from accel.cuda.runtime.arrays import BF16
    from accel.cuda.runtime.kernels import assemble

    hidden, output = kernels("bf16")
    for kernel, key in ((hidden, (*[int] * 12, (BF16, 2))), (output, (int,) * 11)):
        _, report = assemble(kernel.text(key, arch), arch)
        assert not complaints(report), report


@needs_compiler
@pytest.mark.parametrize("arch", ["80", "100"])
def test_attention_received_on_tensor_cores_is_assembled(arch: str) -> None:
    from accel.cuda.attention.received_tensor import kernels
    from accel.cuda.runtime.kernels import assemble

    peaks, received = kernels(128, "bf16", arch == "100")
    real = float, float
    for kernel, key in ((peaks, (*[int] * 14, *real, int)), (received, (*[int] * 13, *real, *[int] * 3))):
        _, report = assemble(kernel.text(key, arch), arch)
        assert not complaints(report), report
