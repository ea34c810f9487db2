"""What only accel.cpu has: threads, buffers with room, kernels that are compiled."""

from __future__ import annotations

import os
import subprocess
import sys

import llvmlite.binding as llvm
import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import accel
import reference
from accel import cpu
from accel.cpu import simd
from accel.cpu.linear import maps
from accel.cpu.runtime.kernels import Kernel
from accel.cpu.runtime.team import TEAM
from accel.cpu.simd import machine
from accel.cpu.simd.later import Later
from tests.small import small_config

SCRIPT = """
import sys, numpy as np
from accel import cpu
from accel.cpu import simd
from accel.cpu.linear import maps
rng = np.random.default_rng(0)
q, k, v = (rng.standard_normal(s).astype(np.float32) for s in ((6, 40, 32), (2, 700, 32), (2, 700, 32)))
places = np.arange(660, 700), np.broadcast_to(np.arange(700), (2, 700))
x, w = rng.standard_normal((40, 96)).astype(np.float32), rng.standard_normal((300, 96)).astype(np.float32)
out = cpu.attention(q, k, v, *places), cpu.key_scores(q, k, 16), cpu.keydiff_scores(k), cpu.gated_ffn(x, w, w, w.T)
np.savez(sys.argv[1], *out, threads=cpu.THREADS)
"""


def test_answers_do_not_depend_on_the_number_of_threads(tmp_path) -> None:  # type: ignore[no-untyped-def]
    answers = []
    for threads in ("1", "5"):
        path = tmp_path / f"{threads}.npz"
        environment = {**os.environ, "THRESHER_NUM_THREADS": threads}
        subprocess.run([sys.executable, "-c", SCRIPT, path], check=True, env=environment)
        answers.append(dict(np.load(path)))
    assert [int(a.pop("threads")) for a in answers] == [1, 5]
    for name, one in answers[0].items():
        np.testing.assert_allclose(answers[1][name], one, rtol=0, atol=2e-6 * np.abs(one).max())


def test_threads_follow_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("THRESHER_NUM_THREADS", "3")
    assert cpu.thread_count() == 3
    monkeypatch.delenv("THRESHER_NUM_THREADS")
    assert cpu.thread_count() >= 1
    for wrong in ("0", "two", "-1", ""):
        monkeypatch.setenv("THRESHER_NUM_THREADS", wrong)
        with pytest.raises(ValueError, match=f"THRESHER_NUM_THREADS: got '{wrong}', wanted a whole number"):
            cpu.thread_count()


def test_a_backend_is_found_by_name() -> None:
    assert accel.backend("cpu") is cpu
    assert accel.backend("auto", 1 << 60) is cpu  # more than any GPU has
    assert accel.backend("reference") is reference
    with pytest.raises(ValueError, match="backend: got 'tpu', wanted one of reference, cpu, "):
        accel.backend("tpu")


def test_warmup_compiles_every_kernel_and_says_when_it_is_done() -> None:
    told: list[tuple[str, int, int]] = []
    count = cpu.warmup(lambda *step: told.append(step))
    assert count == len(Kernel.known) + len(TEAM) >= 15
    assert told[-1] == ("", count, count)
    assert all(kernel.address for kernel in Kernel.known)


STEPS = st.lists(st.tuples(st.integers(1, 40), st.sampled_from(["keep", "keep_newest", "nothing"])), max_size=12)


@given(STEPS, st.integers(0, 2**31))
def test_a_cache_with_room_holds_what_the_plain_one_holds(steps: list[tuple[int, str]], seed: int) -> None:
    rng = np.random.default_rng(seed)
    config = small_config(layers=1, kv_heads=3, heads=6, head_dim=6)
    ours, meant = (module.new_cache(config, np.dtype(np.float16)).layers[0] for module in (cpu, reference))
    position = 0
    for tokens, step in steps:
        k, v = rng.standard_normal((2, 3, tokens, 6)).astype(np.float32)
        for layer in (ours, meant):
            layer.append(k, v, position)
        position += tokens
        kept = rng.integers(1, ours.size + 1)
        columns = np.sort(rng.permuted(np.tile(np.arange(ours.size), (3, 1)), axis=1)[:, :kept], axis=1)
        for got, wanted in zip(ours.gather(columns), meant.gather(columns), strict=True):
            np.testing.assert_array_equal(got, wanted)
        before, held = ours.positions, ours.positions.copy()
        for layer in (ours, meant):
            if step == "keep":
                layer.keep(columns)
            elif step == "keep_newest":
                layer.keep_newest(int(kept))
        np.testing.assert_array_equal(before, held)  # a trace may still be looking at them
        assert ours.nbytes == meant.nbytes
        for name, array in meant.arrays().items():
            np.testing.assert_array_equal(ours.arrays()[name], array)


def directions_of(k: np.ndarray) -> np.ndarray:
    """Unit keys in float64, zero vectors as they are."""
    k = np.asarray(k, np.float64)
    peaks = np.abs(k).max(axis=-1, keepdims=True)
    k = np.divide(k, peaks, out=np.zeros_like(k), where=peaks > 0)  # whose squares would leave even float64
    lengths = np.linalg.norm(k, axis=-1, keepdims=True)
    return np.divide(k, lengths, out=np.zeros_like(k), where=lengths > 0)


@pytest.mark.parametrize("dtype", [np.float32, np.float16, ml_dtypes.bfloat16], ids=lambda dtype: np.dtype(dtype).name)
@given(STEPS, st.integers(0, 2**31))
def test_what_a_cache_knows_of_its_keys_stays_true(dtype: type, steps: list[tuple[int, str]], seed: int) -> None:
    """Inverse lengths, the sum of directions, and scores that use them, after any appending, evicting and restoring."""
    rng = np.random.default_rng(seed)
    largest = 3 if dtype is np.float16 else 25
    cache = cpu.new_cache(small_config(layers=1, kv_heads=3, heads=6, head_dim=6), np.dtype(dtype))
    position, summed = 0, True
    for tokens, step in steps:
        k = rng.standard_normal((3, tokens, 6)) * 10.0 ** rng.integers(-largest, largest + 1, (3, tokens, 1))
        k[:, rng.integers(tokens)] = 0
        layer = cache.layers[0]
        layer.append(k.astype(np.float32), np.zeros_like(k, np.float32), position)
        position += tokens
        if step == "keep":
            kept = rng.integers(1, layer.size + 1)
            layer.keep(np.sort(rng.permuted(np.tile(np.arange(layer.size), (3, 1)), axis=1)[:, :kept], axis=1))
        elif step == "keep_newest":
            summed &= layer.size <= 5
            layer.keep_newest(5)
        elif seed % 2:
            cache, summed = cpu.restore_cache([layer.arrays() for layer in cache.layers]), True
        known, units = cache.layers[0].keys(), directions_of(cache.layers[0].k)
        lengths = np.linalg.norm(np.asarray(known.held, np.float64), axis=-1)
        usual = (lengths > 1e-15) & (lengths < 1e15)
        np.testing.assert_allclose(known.rates[usual] * lengths[usual], 1, rtol=1e-6)
        assert (known.rates[lengths == 0] == 0).all()
        assert np.isnan(known.rates[(lengths > 0) & ((lengths < 1e-16) | (lengths > 1e16))]).all()
        assert (known.sums is not None) == summed
        if summed:
            np.testing.assert_allclose(known.sums, units.sum(axis=1), rtol=0, atol=1e-5)
            means = directions_of(units.mean(axis=1, keepdims=True))
            lost = np.linalg.norm(units.sum(axis=1), axis=-1) < 0.5  # they cancel: the mean has no direction
            got = cpu.keydiff_scores(known)
            np.testing.assert_allclose(got[~lost], -(units * means).sum(axis=-1)[~lost], rtol=0, atol=1e-4)
        q = rng.standard_normal((6, 4, 6)).astype(np.float32)
        np.testing.assert_allclose(cpu.key_scores(q, known, 3), cpu.key_scores(q, known.held, 3), rtol=0, atol=1e-6)
        few = cache.layers[0].keys(1)
        assert few.shape == (3, 1, 6)
        assert few.sums is None or cache.layers[0].size == 1


@pytest.mark.parametrize("keys", [300, 5000])
@pytest.mark.parametrize("tokens", [1, 2, 40, 200])
def test_ranges_of_keys_are_merged_however_peaks_rise_and_fall(tokens: int, keys: int) -> None:
    """Scores that climb, or fall, by 60 over the keys: every block raises the peak, or none after the first does."""
    rng = np.random.default_rng(tokens)
    q, k, v = (rng.standard_normal(shape).astype(np.float32) for shape in ((6, tokens, 16), *[(2, keys, 16)] * 2))
    q[:, :, 0] = 8
    k[0, :, 0], k[1, :, 0] = np.linspace(-15, 15, keys), np.linspace(15, -15, keys)
    places = np.arange(keys - tokens, keys), np.broadcast_to(np.arange(keys), (2, keys))
    exact = reference.attention(*(x.astype(np.float64) for x in (q, k, v)), *places)
    np.testing.assert_allclose(cpu.attention(q, k, v, *places), exact, rtol=0, atol=1e-5)
    received = reference.attention_mass(*(x.astype(np.float64) for x in (q, k)), *places)
    got = cpu.attention_mass(q, k, *places)
    assert np.linalg.norm(got - received) < 1e-5 * np.linalg.norm(received)


def test_room_reserved_is_room_enough() -> None:
    layer = cpu.new_cache(small_config(layers=1), np.dtype(np.float32)).layers[0]
    layer.append(*np.ones((2, 2, 3, 8), np.float32), 0)
    layer.reserve(1000)
    room = layer.capacity
    for start in range(3, 1000, 97):
        count = min(97, 1000 - start)
        layer.append(*np.full((2, 2, count, 8), start, np.float32), start)
    assert layer.capacity == room
    layer.reserve(10)
    assert layer.capacity == room
    np.testing.assert_array_equal(layer.positions[0], np.arange(1000))
    assert layer.k[1, 2, 0] == 1
    assert layer.k[1, 999, 0] == 973


@given(st.integers(1, 9) | st.integers(10, 300), st.sampled_from([1, 16, 40, 577]), st.integers(0, 2**31), st.data())
def test_several_maps_of_one_input_are_what_each_gives(tokens: int, width: int, seed: int, data: st.DataObject) -> None:
    rng = np.random.default_rng(seed)
    x, maps = rng.standard_normal((tokens, width)), []
    for outs in data.draw(st.lists(st.sampled_from([1, 31, 64, 130]), min_size=1, max_size=4)):
        dtype = data.draw(st.sampled_from([np.float32, np.float16, ml_dtypes.bfloat16]))
        bias = rng.standard_normal(outs).astype(np.float32) if data.draw(st.booleans()) else None
        maps.append((rng.standard_normal((outs, width)).astype(dtype), bias))
    for got, (weight, bias) in zip(cpu.linear_each(x.astype(np.float32), maps), maps, strict=True):
        wanted = x.astype(np.float32).astype(np.float64) @ np.asarray(weight, np.float64).T
        wanted = wanted if bias is None else wanted + bias
        size = np.linalg.norm(x, axis=1)[:, None] * np.linalg.norm(np.asarray(weight, np.float64), axis=1)
        limit = 1e-5 if weight.dtype == np.float32 else 1e-2
        assert (np.abs(got - wanted) <= limit * (size + 1)).all()


@given(st.lists(st.integers(0, 40), min_size=1, max_size=5), st.integers(1, 70), st.integers(0, 2**31))
def test_rows_are_added_and_stacked(counts: list[int], width: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    parts = [rng.standard_normal((2 * count, width)).astype(np.float32)[::2] for count in counts]
    stacked = cpu.concatenate(parts)
    np.testing.assert_array_equal(stacked, np.concatenate(parts))
    np.testing.assert_array_equal(cpu.add(stacked, stacked[::-1]), stacked + stacked[::-1])
    with pytest.raises(ValueError, match=r"y: got shape"):
        cpu.add(stacked, np.zeros((len(stacked), width + 1), np.float32))


def test_a_budget_settles_in_one_buffer() -> None:
    config = small_config(layers=1, kv_heads=2, heads=2, head_dim=4)
    layer = cpu.new_cache(config, np.dtype(np.float32)).layers[0]
    chunk, budget, rooms = np.ones((2, 64, 4), np.float32), 256, set()
    for start in range(0, 64 * 200, 64):
        layer.append(chunk, chunk, start)
        if layer.size > budget:
            layer.keep(np.broadcast_to(np.arange(64, 64 + budget), (2, budget)))
            rooms.add(layer.capacity)
    assert layer.size == budget
    assert len(rooms) == 1
    assert rooms.pop() <= 2 * (budget + 64)


def test_columns_that_are_not_there_are_refused() -> None:
    config = small_config(layers=1)
    layer = cpu.new_cache(config, np.dtype(np.float32)).layers[0]
    layer.append(*np.ones((2, 2, 4, 8), np.float32), 0)
    with pytest.raises(ValueError, match="columns: got 0 to 4, wanted 0 to 3"):
        layer.gather(np.array([[0, 4], [0, 1]]))
    with pytest.raises(ValueError, match=r"columns: got shape \(3, 1\) of int64, wanted \(2, R\)"):
        layer.keep(np.zeros((3, 1), np.int64))


def test_one_list_of_several_that_is_not_there_is_refused() -> None:
    layer = cpu.new_cache(small_config(layers=1), np.dtype(np.float32)).layers[0]
    layer.append(*np.ones((2, 2, 4, 8), np.float32), 0)
    good = np.array([[0, 3], [1, 2]])
    for bad, message in (
        ([[0, 1], [2, 4]], "columns: got 2 to 4, wanted 0 to 3"),
        ([[0, 1], [-1, 2]], "columns: got -1 to 2, wanted 0 to 3"),
        ([[0, 1], [2, 2]], "columns: got 2 followed by 2"),
    ):
        for lists in ([good, np.array(bad)], [np.array(bad), good, good]):
            with pytest.raises(ValueError, match=message):
                layer.gather_each(lists)
    assert layer.gather_each([]) == []


@given(st.data())
def test_chunks_that_chose_from_one_cache_each_read_their_own(data: st.DataObject) -> None:
    """Whether or not neighbours are alike, and however their queries lie."""
    rng = np.random.default_rng(data.draw(st.integers(0, 2**31)))
    kv_heads, group, held, dim = 2, data.draw(st.sampled_from([1, 3])), 300, 16
    layer = cpu.new_cache(
        small_config(layers=1, kv_heads=2, heads=2 * group, head_dim=dim), np.dtype(np.float32)
    ).layers[0]
    layer.append(*rng.standard_normal((2, kv_heads, held, dim)).astype(np.float32), data.draw(st.integers(0, 9)))
    q = rng.standard_normal((kv_heads * group, held, dim)).astype(np.float32)
    reads, wanted = [], []
    for _ in range(data.draw(st.integers(1, 6))):
        tokens, kept = data.draw(st.sampled_from([1, 2, 40])), data.draw(st.sampled_from([1, 90]))
        start = int(rng.integers(0, held - tokens))
        own = q[:, start : start + tokens]
        own = data.draw(st.sampled_from([own, np.asfortranarray(own), own.astype(np.float64)]))
        columns = np.sort(rng.permuted(np.tile(np.arange(held), (kv_heads, 1)), axis=1)[:, :kept], axis=1)
        k, v, positions = layer.gather_each([columns])[0]
        reads.append((own, k, v, start, positions))
        exact = (np.asarray(x, np.float64) for x in (own, k, v))
        wanted.append(reference.merge_heads(reference.attention(*exact, start, np.asarray(positions))))
    for got, meant in zip(cpu.attention_each(reads), wanted, strict=True):
        np.testing.assert_allclose(got, meant, rtol=1e-4, atol=1e-5)


def test_parts_that_lie_under_each_other_are_not_copied() -> None:
    x, other = (np.arange(60, dtype=np.float32).reshape(10, 6) + n for n in (0, 100))
    whole = cpu.concatenate([x[:2], x[2:3], x[3:]])
    assert np.shares_memory(whole, x)
    np.testing.assert_array_equal(whole, x)
    for parts in (
        [x[2:], x[:2]],
        [x[:2], x[3:]],
        [x[:2], other[2:]],
        [x[:2], x[:2]],
        [x[:2, :3], x[2:, :3]],
        [x[::2], x[1:2]],
        [x[:2], x[2:].astype(np.float64)],
    ):
        got = cpu.concatenate(parts)
        assert got.dtype == np.float32
        assert not np.shares_memory(got, x)
        np.testing.assert_array_equal(got, np.concatenate(parts))


def test_made_functions_have_names_of_their_own() -> None:
    """A kernel finds what it calls by name; two functions of one name were once taken for each other."""
    found: dict[str, set[int]] = {}

    def visit(function: object) -> None:
        if not (isinstance(function, Later) and hasattr(function.made, "py_func")):
            return
        python = function.made.py_func
        found.setdefault(f"{python.__module__}.{python.__qualname__}", set()).add(id(python))
        for cell in python.__closure__ or ():
            visit(cell.cell_contents)

    for module in (simd, maps):
        for function in list(vars(module).values()):  # compiling adds to them
            visit(function)
    assert "accel.cpu.simd.tile.fused_tile_of_2_rows" in found
    assert all(len(functions) == 1 and "<locals>" not in name for name, functions in found.items()), found


def test_the_features_of_this_machine_tell_what_the_compiler_would() -> None:
    """Registers are read off the features of this machine; of a processor that is only named LLVM is asked."""
    name, features = llvm.get_host_cpu_name(), llvm.get_host_cpu_features().flatten()
    text = machine._compiled(name, features, "%y = fadd <16 x float> %x, %x", "float")
    lanes = 16 if "zmm" in text else 8 if "ymm" in text else 4
    assert machine._registers(name, features)[0] == lanes
    assert machine._registers("haswell", "") == (8, 16)
    assert machine._registers("cascadelake", "") == (16, 32)
    if lanes == 16:
        text = machine._compiled(name, features, "%y = fptrunc <16 x float> %x to <16 x bfloat>", "bfloat")
        assert machine._rounds(name, features) == ("vcvtneps2bf16" in text)
