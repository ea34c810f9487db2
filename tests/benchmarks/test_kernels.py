"""What the kernels' benchmarks compare: contestants compute the same, and the loops multiply as often as they say."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest

pytest.importorskip("torch", reason="the competitors are not installed (extra: bench)")

from benchmarks import eviction, ffn, limits, selection, threads
from benchmarks.attention import CHUNK, DTYPES, HEADS, Problem, cpu


def test_torch_attends_to_the_same() -> None:
    problem = Problem(96)
    for name, run in problem.torch_ways().items():
        told = run()[0].numpy().reshape(HEADS, CHUNK, -1)
        np.testing.assert_allclose(told, problem.dense(), rtol=1e-3, atol=1e-5, err_msg=name)


def test_a_pass_reads_what_its_chunks_would_alone() -> None:
    shared, budget = selection.Pass(96), 32
    for n, rows in enumerate(shared.quoka(budget)):
        alone = Problem(96 + CHUNK * n)
        own, keys = slice(CHUNK * n, CHUNK * (n + 1)), 96 + CHUNK * (n + 1)
        alone.q, of = shared.problem.q[:, own], shared.problem
        alone.k, alone.v, alone.k_positions = of.k[:, :keys], of.v[:, :keys], of.k_positions[:, :keys]
        wanted = selection.quoka(alone, budget)().transpose(1, 0, 2).reshape(CHUNK, -1)
        np.testing.assert_allclose(rows, wanted, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("tokens", [CHUNK, 1])
def test_mass_from_peaks_and_sums_is_the_mass(tokens: int) -> None:
    problem = Problem(600, tokens=tokens)
    rows, mass = eviction.with_mass(problem)
    wanted = cpu.attention_mass(problem.q, problem.k, problem.q_positions, problem.k_positions)
    np.testing.assert_allclose(mass, wanted, rtol=1e-5)
    np.testing.assert_allclose(wanted.sum(axis=1), tokens, rtol=1e-4)
    np.testing.assert_array_equal(rows, problem.dense().transpose(1, 0, 2).reshape(rows.shape))


@pytest.mark.parametrize("dtype", DTYPES)
def test_torch_computes_the_same_network(dtype: str) -> None:
    network = ffn.Network(*ffn.WIDTHS["smallest"], dtype=dtype)
    told, own = network.torch_dense()().float().numpy(), network.dense()
    error = np.linalg.norm(told - own) / np.linalg.norm(own)
    assert error < {"float32": 1e-5, "bfloat16": 2e-2}[dtype]


def sums_of_one(name: str, memory: np.ndarray) -> np.ndarray:
    """What one round of products adds to the sums of each thread, by the factors at the front of its memory."""
    factors, lanes = memory[:, : limits.SIZE // 2], limits.LANES
    narrow = np.ascontiguousarray(factors).view(ml_dtypes.bfloat16).astype(np.float32)
    if name in (limits.UNIT, limits.SIX):  # rows of A; pairs of rows of B, side by side
        a = narrow.reshape(-1, 4, 16, 32)[:, :2, None]
        b = narrow.reshape(-1, 4, 16, 16, 2)[:, None, 2:].swapaxes(4, 5).reshape(-1, 1, 2, 32, 16)
        return (a @ b).reshape(len(memory), -1)
    numbers, of_each = (narrow, 2) if name == limits.PAIRED else (factors, 1)
    wide = numbers.reshape(len(memory), -1, lanes, of_each)
    return np.tile((wide[:, 0] * wide[:, 1]).sum(axis=-1), (1, limits.SUMS))


@pytest.mark.parametrize("dtype", DTYPES)
def test_loops_multiply_as_often_as_they_say(dtype: str) -> None:
    for name, (loop, _) in limits.loops(dtype, "smallest").items():
        each = sums_of_one(name, loop.memory)
        loop.run()
        added = loop.memory[:, limits.SIZE // 2 :][:, : each.shape[1]]
        times = np.rint((added * each).sum(axis=1) / (each * each).sum(axis=1))
        assert times.sum() == loop.products, name
        np.testing.assert_allclose(added, times[:, None] * each, rtol=1e-3, atol=0.1, err_msg=name)


def test_a_worker_that_ends_is_named() -> None:
    with threads.Worker(1, "no size") as worker:
        worker.say("attention float32")
        with pytest.raises(RuntimeError, match="the process of 1 threads ended with 1"):
            worker.hear()
