"""What keys receive of the attention that a chunk computes anyway, from its peaks and sums, and what H2O and CAOTE over
it make of it chunk after chunk. What is right is computed here, from the formulas in float64."""

from __future__ import annotations

from types import ModuleType
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import reference
from accel import cpu
from reference import H2O, Caote, Policy, new_state
from reference.attend import attend
from reference.state import Chunk
from tests.small import small_model

TOLERANCE = {"float32": 1e-5, "bfloat16": 1e-2, "float64": 1e-12}
CAPS = st.sampled_from([None, 3.0])


def stored(x: np.ndarray, dtype: str) -> np.ndarray:
    return x.astype(ml_dtypes.bfloat16 if dtype == "bfloat16" else dtype)


def softmax(q, k, q_positions, k_positions, scale, window=None, cap=None):  # type: ignore[no-untyped-def]
    """Weights (H, T, S) in float64; of a query that sees nothing all are zero."""
    k = np.repeat(np.float64(k), len(q) // len(k), axis=0)
    scores = np.einsum("htd,hsd->hts", np.float64(q), k) * scale
    scores = scores if cap is None else cap * np.tanh(scores / cap)
    distance = q_positions[None, :, None] - np.repeat(k_positions, len(q) // len(k_positions), axis=0)[:, None]
    weights = np.where((distance >= 0) & (distance < (np.inf if window is None else window)), np.exp(scores), 0)
    sums = weights.sum(axis=-1, keepdims=True)
    return weights / np.where(sums == 0, 1, sums)


READS = st.lists(
    st.tuples(st.sampled_from([1, 2, 9, 40, 130]), st.integers(1, 700) | st.just(4_200), st.integers(-3, 40)),
    min_size=1,
    max_size=3,
)  # tokens, keys, and how many of the keys the last query does not see


@settings(max_examples=30)
@given(
    READS, st.sampled_from([1, 3, 8]), st.sampled_from(["float32", "bfloat16"]), st.sampled_from([None, 7, 300]), CAPS,
    st.sampled_from([0.1, 1.0, 2.5]), st.integers(0, 2**31),
)  # fmt: skip
def test_keys_receive_what_the_formula_says(cases, group, dtype, window, cap, spread, seed) -> None:  # type: ignore[no-untyped-def]
    """Several reads in one call, in one range of keys and in more, of few queries and of many."""
    rng, scale, reads = np.random.default_rng(seed), spread / 24**0.5, []
    for tokens, keys, hidden in cases:
        q = rng.standard_normal((2 * group, tokens, 24), np.float32)
        k, v = (stored(rng.standard_normal((2, keys, 24), np.float32), dtype) for _ in range(2))
        k_positions = np.sort(rng.permuted(np.tile(np.arange(2 * keys), (2, 1)), axis=1)[:, :keys], axis=1)
        reads.append((q, k, v, max(0, 2 * keys - tokens - hidden), k_positions))
    options = {"scale": scale, "window": window, "cap": cap}
    both, again = (cpu.attention_and_mass_each(reads, **options) for _ in range(2))
    alone = cpu.attention_each(reads, **options)
    assert len(both) == len(reads)
    for (rows, mass), second, out, (q, k, _, first, at) in zip(both, again, alone, reads, strict=True):
        weights = softmax(q, k, np.arange(first, first + q.shape[1]), at, scale, window, cap)
        np.testing.assert_allclose(mass, weights.sum(axis=1), rtol=TOLERANCE[dtype], atol=1e-35)
        np.testing.assert_array_equal(rows, out)
        np.testing.assert_array_equal(mass, second[1])


def of_caote(h: np.ndarray, v: np.ndarray) -> np.ndarray:
    """α_j / (1 - α_j) · ‖o - v_j‖ of each head, α = h / Σh: (H, S) and (KV, S, D) -> (H, S)."""
    alpha, v = h / h.sum(axis=1, keepdims=True), np.repeat(v, len(h) // len(v), axis=0)
    output = np.einsum("hs,hsd->hd", alpha, v)
    return alpha / (1 - alpha) * np.linalg.norm(output[:, None] - v, axis=-1)


@pytest.mark.parametrize("method", [H2O, Caote])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("module", [reference, cpu], ids=["reference", "cpu"])
@pytest.mark.parametrize(("kv_heads", "cap"), [(1, None), (2, 3.0), (4, None)])
def test_chunk_after_chunk(module: ModuleType, dtype: str, method: Any, kv_heads: int, cap: float | None) -> None:
    """The sums of all survivors, by position, and that the lowest scores went; a layer with a window keeps no sums."""
    budget, heads, dim, scale, tolerance = 60, 4, 16, 0.4, TOLERANCE[dtype]
    shape = {"heads": heads, "kv_heads": kv_heads, "head_dim": dim, "attention_scale": scale, "windows": (None, 20)}
    model = small_model(dtype="float32", backend=module, score_cap=cap, **shape)
    rng = np.random.default_rng(kv_heads)
    state = new_state(model, Policy(evict=method(budget)))
    state.cache = module.new_cache(model.config, stored(np.zeros(0), dtype).dtype)
    layer, plain = state.cache.layers
    every_k, every_v = np.zeros((2, kv_heads, 400, dim))
    sums, before, first = np.zeros((heads, 400)), np.zeros((kv_heads, 0), np.int64), 0
    for sizes in ([20, 30], [40], [1], [3], [130]):  # the chunks of each pass: those of the first are read together
        tokens = sum(sizes)
        q = rng.standard_normal((heads, tokens, dim), np.float32) * 2
        k, v = (stored(rng.standard_normal((kv_heads, tokens, dim), np.float32), dtype) for _ in range(2))
        chunks, start = [], 0
        for size in sizes:
            rows = slice(start, start + size)
            chunks.append(Chunk(state, np.zeros(size, np.int64), first + start, 400, rows))
            start += size
        for n in range(2):
            attend(model, n, [chunks], q, k.astype(np.float32), v.astype(np.float32))
        new = np.arange(first, first + tokens)
        every_k[:, new], every_v[:, new] = k, v
        held = np.concatenate([before, np.tile(new, (kv_heads, 1))], axis=1)  # that the pass has read
        weights = softmax(q, np.take_along_axis(every_k, held[:, :, None], axis=1), new, held, scale, cap=cap)
        by_head = np.repeat(held, heads // kv_heads, axis=0)
        h = np.take_along_axis(sums, by_head, axis=1) + weights.sum(axis=1)
        np.put_along_axis(sums, by_head, h, axis=1)
        before, first = layer.positions.copy(), first + tokens
        kept = np.repeat(before, heads // kv_heads, axis=0)
        np.testing.assert_allclose(layer.received, np.take_along_axis(sums, kept, axis=1), rtol=tolerance)
        scores = h if method is H2O else of_caote(h, np.take_along_axis(every_v, held[:, :, None], axis=1))
        for at, own, stay in zip(held, scores.reshape(kv_heads, -1, held.shape[1]).mean(axis=1), before, strict=True):
            assert len(stay) == min(budget, len(at))
            gone = ~np.isin(at, stay)
            assert own[gone].max(initial=0) <= own[~gone].min() * (1 + 4 * tolerance)
        assert plain.received is None


@pytest.mark.parametrize(("heads", "tokens", "keys"), [(4, 0, 5), (4, 3, 0), (4, 0, 0)])
def test_nothing_gives_nothing(heads: int, tokens: int, keys: int) -> None:
    assert cpu.attention_and_mass_each([]) == []
    k, places = np.ones((2, keys, 8), np.float32), np.tile(np.arange(keys), (2, 1))
    ((rows, mass),) = cpu.attention_and_mass_each([(np.ones((heads, tokens, 8), np.float32), k, k, keys, places)])
    np.testing.assert_array_equal(rows, np.zeros((tokens, heads * 8)))
    np.testing.assert_array_equal(mass, np.zeros((heads, keys)))
