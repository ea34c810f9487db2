"""Weights in 8 bits on a backend: what is computed from them is what `reference` computes from the same numbers."""

from __future__ import annotations

from dataclasses import fields, replace
from types import ModuleType
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import reference
from reference import Compensator, Int8, KeyDiff, Model, Policy, Quoka, Weights, quantize
from tests.equivalence.test_forward import POLICIES, error, logits_of
from tests.small import small_model

WIDTHS = st.sampled_from([1, 31, 32, 33, 64, 96, 130, 577]) | st.integers(1, 300)
TOKENS = st.integers(1, 6) | st.integers(7, 300)
SEEDS = st.integers(0, 2**31)
TOLERANCE = 1e-2  # as from 16 bits: where the machine multiplies bfloat16, both sides are rounded to it


@pytest.fixture(autouse=True)
def _there(backend: ModuleType) -> None:
    if hasattr(backend, "device_name"):
        pytest.skip("a GPU has no weights in 8 bits yet")


def drawn(rng: np.random.Generator, *shape: int) -> Int8:
    """A matrix whose groups differ in size, some of them zeros, and whose parts may lie apart in memory."""
    x = rng.standard_normal(shape) * 10.0 ** rng.integers(-3, 1, (shape[0], 1)) / shape[1] ** 0.5
    x[rng.integers(shape[0])] = 0
    weight = quantize(x)
    if rng.integers(2):
        apart = np.full((shape[0], 2 * shape[1]), 7, np.int8)
        apart[:, ::2] = weight.values
        return Int8(apart[:, ::2], np.asfortranarray(weight.scales))
    return weight


def numbers(weight: Int8) -> np.ndarray:
    """What the bytes stand for, worked out number by number."""
    scales = [[float(weight.scales[r, c // 32]) for c in range(weight.shape[1])] for r in range(weight.shape[0])]
    return np.asarray(weight.values, np.float64) * np.asarray(scales).reshape(weight.shape)


def close(got: np.ndarray, wanted: np.ndarray, sizes: np.ndarray) -> None:
    """Within the tolerance of what the terms of each sum come to: one sum may cancel."""
    assert got.dtype == np.float32
    assert got.shape == wanted.shape
    assert (np.abs(got - wanted) <= TOLERANCE * sizes + 1e-35).all()


@given(TOKENS, WIDTHS, st.lists(WIDTHS, min_size=1, max_size=3), SEEDS)
def test_maps(backend: ModuleType, tokens: int, width: int, outs: list[int], seed: int) -> None:
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((tokens, width)).astype(np.float32)
    maps: list[Any] = [(drawn(rng, out, width), rng.standard_normal(out).astype(np.float32)) for out in outs]
    maps.append((rng.standard_normal((40, width)).astype(np.float32), None))  # kinds may share a call
    got = backend.linear_each(x, maps)
    for y, (weight, bias) in zip(got, maps, strict=True):
        plain = numbers(weight) if isinstance(weight, Int8) else np.float64(weight)
        added = 0 if bias is None else bias
        sizes = np.linalg.norm(x, axis=1)[:, None] * np.linalg.norm(plain, axis=1) + np.abs(added)
        close(y, np.float64(x) @ plain.T + added, sizes)
    np.testing.assert_array_equal(backend.linear_each(x, maps)[0], got[0])
    meant = reference.linear(np.float64(x), *maps[0])
    np.testing.assert_allclose(meant, np.float64(x) @ numbers(maps[0][0]).T + maps[0][1], rtol=0, atol=1e-12)


@settings(max_examples=40)
@given(st.integers(1, 6) | st.integers(7, 200), WIDTHS, st.integers(40, 300), SEEDS, st.booleans())
def test_feed_forward(backend: ModuleType, tokens: int, width: int, neurons: int, seed: int, silu: bool) -> None:
    rng, act = np.random.default_rng(seed), "silu" if silu else "gelu_tanh"
    x = rng.standard_normal((tokens, width))
    gate, up, down = drawn(rng, neurons, width), drawn(rng, neurons, width), drawn(rng, width, neurons)
    plain = numbers(gate), numbers(up), numbers(down)
    chosen = np.sort(rng.choice(neurons, rng.integers(1, neurons + 1), replace=False))
    c1, c2 = (rng.standard_normal(s).astype(np.float32) / 9 for s in ((16, width), (width, 16)))
    compensator = Compensator(c1, c2)
    for name, some in (("gated_ffn", np.arange(neurons)), ("sparse_ffn", chosen)):
        extra = {} if name == "gated_ffn" else {"compensator": compensator}
        listed = () if name == "gated_ffn" else (some,)
        hidden = reference.layers.activate(x @ plain[0][some].T, act) * (x @ plain[1][some].T)
        lengths = np.linalg.norm(plain[0][some], axis=1) * np.linalg.norm(plain[1][some], axis=1)
        terms = np.linalg.norm(x, axis=1)[:, None] ** 2 * lengths  # of hidden, what the terms of its sums come to
        wanted, sizes = hidden @ plain[2][:, some].T, terms @ np.abs(plain[2][:, some]).T
        if extra:
            narrow = reference.layers.activate(x @ c1.T.astype(np.float64), act)
            wanted = wanted + narrow @ c2.T
            sizes = sizes + np.linalg.norm(x, axis=1)[:, None] * (np.linalg.norm(c1, axis=1) @ np.abs(c2).T)
        got = getattr(backend, name)(x.astype(np.float32), gate, up, down, *listed, act=act, **extra)
        close(got, wanted, sizes)
        meant = getattr(reference, name)(x, gate, up, down, *listed, act=act, **extra)
        np.testing.assert_allclose(meant, wanted, rtol=0, atol=1e-10 * (1 + sizes.max()))
    lengths = np.linalg.norm(plain[0], axis=1) * np.linalg.norm(plain[1], axis=1) * np.linalg.norm(plain[2], axis=0)
    np.testing.assert_allclose(backend.neuron_magnitudes(gate, up, down), lengths, rtol=1e-5, atol=1e-35)


@given(st.integers(1, 9), WIDTHS, SEEDS)
def test_embedding(backend: ModuleType, tokens: int, width: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    table, ids = drawn(rng, 20, width), rng.integers(0, 20, tokens)
    for where in (backend, reference):
        np.testing.assert_array_equal(where.embed(ids, table, scale=2.0), 2 * numbers(table)[ids].astype(np.float32))
        with pytest.raises(ValueError, match="got id 20, wanted 0 to 19"):
            where.embed(np.array([20]), table)


def in_8_bits(weights: Weights) -> Weights:
    """A model's weights quantised; its cache in bfloat16."""
    layers = [
        replace(layer, **{f.name: quantize(x) for f in fields(layer) if np.ndim(x := getattr(layer, f.name)) == 2})
        for layer in weights.layers
    ]
    table = quantize(weights.embedding)
    return Weights(table, tuple(layers), weights.final_norm, table, np.dtype(ml_dtypes.bfloat16))


@pytest.mark.parametrize("name", ["dense", "quoka", "keydiff", "griffin"])
def test_whole_models(backend: ModuleType, name: str) -> None:
    small = small_model(dtype=np.dtype(np.float32))
    weights = in_8_bits(small.weights)
    ours = Model(small.config, backend.prepare_weights(weights), backend)
    assert ours.weights.output is ours.weights.embedding
    assert ours.weights.nbytes == weights.nbytes
    got, state = logits_of(ours, POLICIES[name])
    assert state.cache.layers[0].k.dtype == ml_dtypes.bfloat16
    wanted, meant = logits_of(Model(small.config, weights, reference), POLICIES[name])
    assert state.cache.sizes == meant.cache.sizes
    assert np.isfinite(got).all()
    if name == "dense":  # where nothing is chosen nothing can be chosen otherwise
        assert error(got, wanted) < TOLERANCE


def test_prepared_weights_stand_for_the_same_numbers(backend: ModuleType) -> None:
    rng = np.random.default_rng(0)
    small = small_model(dtype=np.dtype(np.float32))
    prepared = backend.prepare_weights(in_8_bits(small.weights))
    for ours, theirs in zip(prepared.layers, in_8_bits(small.weights).layers, strict=True):
        x = rng.standard_normal((3, theirs.w_down.shape[1])).astype(np.float32)
        np.testing.assert_array_equal(backend.linear(x, ours.w_down), backend.linear(x, theirs.w_down))


@pytest.mark.parametrize("tokens", [0, 1, 9])
@pytest.mark.parametrize("shape", [(0, 5), (3, 0), (0, 0)])
def test_maps_of_no_size(backend: ModuleType, tokens: int, shape: tuple[int, int]) -> None:
    out, width = shape
    bias = np.ones(out, np.float32)
    for where in (backend, reference):
        got = where.linear(np.ones((tokens, width), np.float32), quantize(np.ones(shape)), bias)
        np.testing.assert_array_equal(got, np.full((tokens, out), width + 1.0))


def test_shapes_that_do_not_fit_are_refused(backend: ModuleType) -> None:
    weight = quantize(np.ones((4, 33)))
    for where in (backend, reference):
        with pytest.raises(ValueError, match=r"weight: got shape \(4, 33\), wanted \(out, in=32\)"):
            where.linear(np.ones((2, 32), np.float32), weight)


def test_policies_run_together(backend: ModuleType) -> None:
    small = small_model(dtype=np.dtype(np.float32))
    ours = Model(small.config, backend.prepare_weights(in_8_bits(small.weights)), backend)
    got, state = logits_of(ours, Policy(select=Quoka(40), evict=KeyDiff(60)))
    assert np.isfinite(got).all()
    assert max(state.cache.sizes) <= 61
