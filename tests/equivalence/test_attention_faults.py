"""Attention and linear maps where they once went wrong: very long, not a number, far below zero, or of no size at all.

What is right is computed here, from the formulas in float64.
"""

from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from accel import cpu
from accel.shared.lazy import Chosen, Consecutive

FINE = 1e-5  # relative error that float32 is allowed


def softmax(q, k, q_positions, k_positions, scale, window=None):  # type: ignore[no-untyped-def]
    """Weights (H, T, S) and what is visible (KV, T, S), in float64; hidden keys weigh 0 whatever they are."""
    group = len(q) // len(k)
    distance = q_positions[None, :, None] - k_positions[:, None, :]
    seen = (distance >= 0) & (distance < (np.inf if window is None else window))
    with np.errstate(all="ignore"):
        scores = np.einsum("htd,hsd->hts", np.float64(q), np.repeat(np.float64(k), group, axis=0)) * scale
        scores = np.where(np.repeat(seen, group, axis=0), scores, -np.inf)
        peaks = scores.max(axis=-1, keepdims=True)
        weights = np.exp(scores - np.where(np.isneginf(peaks), 0, peaks))
        sums = weights.sum(axis=-1, keepdims=True)
        return weights / np.where(sums == 0, 1, sums), seen


def off(got, wanted):  # type: ignore[no-untyped-def]
    """The largest relative error of a row."""
    apart = np.linalg.norm(np.float64(got) - wanted, axis=-1)
    return (apart / np.maximum(np.linalg.norm(wanted, axis=-1), 1e-300)).max()


LENGTHS = [30_000, 131_072, 1_000_000]
TOKENS = [1, 3, 40]  # key by key, and by blocks
HEADS = 8  # so that a few cores need not share out the keys of one


def sink_and_tail(keys, tokens):  # type: ignore[no-untyped-def]
    """First key scores 1.0, all others -0.3; (q, k, positions of both, keys that each query sees, weight of the tail
    against the first)."""
    q, k = np.zeros((HEADS, tokens, 16), np.float32), np.zeros((keys, 16), np.float32)
    q[..., 3], k[:, 3] = 1.0, -0.3
    k[0, 3] = 1.0
    k, positions = np.broadcast_to(k, (HEADS, keys, 16)), np.arange(keys)
    return (
        q,
        k,
        positions[keys - tokens :],
        np.broadcast_to(positions, (HEADS, keys)),
        positions[keys - tokens :] + 1,
        np.exp(np.float64(np.float32(-0.3)) - 1),
    )


@pytest.mark.parametrize("tokens", TOKENS)
@pytest.mark.parametrize("keys", LENGTHS)
def test_attention_is_as_exact_over_a_million_keys_as_over_a_few(keys: int, tokens: int) -> None:
    q, k, q_positions, k_positions, seen, tail = sink_and_tail(keys, tokens)
    noise = np.random.default_rng(keys).standard_normal((keys, 16), np.float32)
    for v in (noise, np.ones_like(noise)):  # sums that stay small, and sums that grow
        got = cpu.attention(q, k, np.broadcast_to(v, k.shape), q_positions, k_positions, scale=1.0)
        sums = np.cumsum(np.float64(v), axis=0)[seen - 1]
        wanted = (v[0] + tail * (sums - v[0])) / (1 + tail * (seen - 1))[:, None]
        assert off(got, np.broadcast_to(wanted, got.shape)) < FINE


@pytest.mark.parametrize("tokens", TOKENS)
@pytest.mark.parametrize("keys", LENGTHS)
def test_what_every_key_receives_is_exact_at_any_length(keys: int, tokens: int) -> None:
    q, k, q_positions, k_positions, seen, tail = sink_and_tail(keys, tokens)

    def mass(count):  # type: ignore[no-untyped-def]
        rates = 1 / (1 + tail * (seen[-count:] - 1))  # (T,)
        received = np.full(keys, rates.sum())
        for n, last in enumerate(seen[-count:]):
            received[last:] -= rates[n]
        return received * np.where(np.arange(keys) == 0, 1, tail)

    places = q_positions, k_positions
    got = cpu.attention_mass(q, k, *places, scale=1.0)
    assert (np.abs(got - mass(tokens)) <= FINE * mass(tokens)).all()
    got = cpu.tova_scores(q, k, *places, scale=1.0)
    assert (np.abs(got - mass(1)) <= FINE * mass(1)).all()
    got = cpu.snapkv_scores(q, k, *places, window=16, kernel=1, scale=1.0)
    assert (np.abs(got - mass(16)) <= FINE * mass(16)).all()


@pytest.mark.parametrize("tokens", TOKENS)
def test_peaks_that_rise_a_little_all_the_time_cost_nothing(tokens: int) -> None:
    """Rescaling rounds: raised at every block, a peak would leave the first keys too heavy."""
    keys = 400_000
    q, k = np.zeros((2, tokens, 16), np.float32), np.zeros((1, keys, 16), np.float32)
    q[..., 0], k[..., 0] = 1.0, np.linspace(0, 4, keys)
    v = np.ones((1, keys, 16), np.float32)
    v[0, : keys // 2, :8] = -0.5
    places = np.arange(keys - tokens, keys), np.arange(keys)[None]
    weights, _ = softmax(q, k, *places, 1.0)
    got = cpu.attention(q, k, v, *places, scale=1.0)
    assert off(got, weights @ np.float64(np.repeat(v, 2, axis=0))) < FINE
    received = weights.sum(axis=1)
    assert (np.abs(cpu.attention_mass(q, k, *places, scale=1.0) - received) <= FINE * received).all()


@pytest.mark.parametrize("tokens", [1, 3, 40])
@pytest.mark.parametrize("keys", [50, 700])
@pytest.mark.parametrize("exponent", [20, 100, 126])
def test_scores_far_below_zero_are_scores(tokens: int, keys: int, exponent: int) -> None:
    """All scores -2^exponent, but one of them half as far below: it receives everything; without it all share alike."""
    rng = np.random.default_rng(exponent)
    q, k = np.zeros((2, tokens, 16), np.float32), np.zeros((1, keys, 16), np.float32)
    q[..., 0], k[..., 0] = 2.0 ** (exponent // 2), -(2.0 ** (exponent - exponent // 2))
    v = rng.standard_normal((1, keys, 16), np.float32)
    places = np.arange(keys, keys + tokens), np.arange(keys)[None]
    scale = np.log(2)  # so that scores are exact in powers of two
    for favourite in (None, 0, keys // 2, keys - 1):
        if favourite is not None:
            k[0, favourite, 0] /= 2
        wanted, _ = softmax(q, k, *places, scale)
        assert off(cpu.attention(q, k, v, *places, scale=scale), wanted @ np.float64(np.repeat(v, 2, axis=0))) < FINE
        received = wanted.sum(axis=1)
        np.testing.assert_allclose(cpu.attention_mass(q, k, *places, scale=scale), received, rtol=FINE)
        k[..., 0] = k[..., 0].min()


SPOILED = st.fixed_dictionaries(
    {
        "seed": st.integers(0, 2**31),
        "group": st.sampled_from([1, 2, 3, 8]),
        "kv": st.integers(1, 2),
        "tokens": st.integers(1, 70),
        "keys": st.integers(1, 600),
        "dim": st.sampled_from([4, 16, 17, 40]),
        "stored": st.sampled_from([np.float32, np.float16, ml_dtypes.bfloat16]),
        "size": st.sampled_from([1, 5]),
        "what": st.lists(st.sampled_from("qkv"), min_size=1, max_size=3),
        "value": st.sampled_from([np.nan, np.inf, -np.inf]),
        "whole_row": st.booleans(),
        "ahead": st.integers(-3, 80),
        "window": st.sampled_from([None, None, 5, 130]),
    }
)


def spoiled(seed, group, kv, tokens, keys, dim, stored, size, what, value, whole_row, ahead, window):  # type: ignore[no-untyped-def]
    """Arguments of attention, with something in a few rows that is no number, or is infinite."""
    rng = np.random.default_rng(seed)
    arrays = {name: rng.standard_normal((kv, keys, dim)) for name in "kv"}
    arrays["q"] = rng.standard_normal((group * kv, tokens, dim)) * size
    for name in what:
        array = arrays[name]
        elements = slice(None) if whole_row else rng.integers(dim)
        array[rng.integers(len(array)), rng.integers(array.shape[1]), elements] = value
    first = max(0, keys - ahead)
    q_positions = np.arange(first, first + tokens)
    return np.float32(arrays["q"]), arrays["k"].astype(stored), arrays["v"].astype(stored), q_positions, window


@given(SPOILED)
def test_what_is_no_number_spoils_only_those_who_see_it(case) -> None:  # type: ignore[no-untyped-def]
    q, k, v, q_positions, window = spoiled(**case)
    (kv, keys, _), group = k.shape, len(q) // len(k)
    k_positions = np.broadcast_to(np.arange(keys), (kv, keys))
    weights, seen = softmax(q, k, q_positions, k_positions, 0.5, window)
    bad_q = ~np.isfinite(q).all(axis=-1)  # (H, T)
    bad_k, bad_v = (np.repeat(~np.isfinite(np.float64(x)).all(axis=-1), group, axis=0) for x in (k, v))  # (H, S)
    seen = np.repeat(seen, group, axis=0)  # (H, T, S)
    bad_rows = bad_q & seen.any(axis=-1) | (seen & bad_k[:, None]).any(axis=-1)
    got = cpu.attention(q, k, v, q_positions, k_positions, scale=0.5, window=window)
    clean = np.repeat(np.where(np.isfinite(np.float64(v)), np.float64(v), 0), group, axis=0)
    with np.errstate(all="ignore"):
        wanted = np.einsum("hts,hsd->htd", np.where(seen, weights, 0), clean)
    sound = ~bad_rows & ~(seen & bad_v[:, None]).any(axis=-1)
    tolerance = FINE if v.dtype == np.float32 else 1e-2
    size = np.linalg.norm(np.where(sound[..., None], wanted, 0), axis=-1)
    apart = np.linalg.norm(np.where(sound[..., None], got - wanted, 0), axis=-1)
    weight = np.where(
        sound, np.einsum("hts,hs->ht", np.where(seen & sound[..., None], weights, 0), np.abs(clean).sum(-1)), 0
    )
    assert (apart <= tolerance * np.maximum(size, weight / 4)).all()
    nan_rows = np.isnan(q).any(axis=-1) & seen.any(axis=-1)
    assert not np.isfinite(got[nan_rows]).any()

    mass = cpu.attention_mass(q, k, q_positions, k_positions, scale=0.5, window=window)
    touched = (seen & bad_rows[..., None]).any(axis=1)  # (H, S)
    with np.errstate(all="ignore"):
        received = np.where(seen, weights, 0).sum(axis=1)
    assert (np.abs(mass - received)[~touched] <= 4 * tolerance * received[~touched] + 1e-30).all()


@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize("tokens", [3, 9, 40])
def test_a_row_that_is_no_number_leaves_the_others_of_a_map_alone(tokens: int, value: float) -> None:
    rng = np.random.default_rng(tokens)
    x, w = rng.standard_normal((tokens, 150), np.float32), rng.standard_normal((90, 150), np.float32)
    x[tokens // 2, 77] = value
    others = np.arange(tokens) != tokens // 2
    got = cpu.linear(x, w, w[:, 0])
    assert off(got[others], np.float64(x[others]) @ np.float64(w.T) + w[:, 0]) < FINE
    assert not np.isfinite(got[~others]).any()
    got = cpu.rms_norm(x, w[0], eps=1e-5)
    exact = np.float64(x[others])
    assert off(got[others], exact / np.sqrt((exact**2).mean(-1, keepdims=True) + 1e-5) * w[0]) < FINE


def test_what_a_key_receives_does_not_hang_on_the_call_before() -> None:
    """Registers hold more lanes than there are queries: what stands in the others must count for nothing, however high
    the keys score that the queries do not see."""
    q, k = np.zeros((1, 16, 16), np.float32), np.zeros((1, 120, 16), np.float32)
    q[..., 0] = 1.0
    k[0, :64, 0] = 384  # powers of two above what the last query sees
    positions = np.arange(120)[None]
    for _ in range(5):
        cpu.attention_mass(q, k, np.arange(104, 120), positions, scale=np.log(2))
        places = np.arange(63, 72), positions
        got = cpu.attention_mass(q[:, :9], k, *places, scale=np.log(2), window=8)
        wanted, _ = softmax(q[:, :9], k, *places, np.log(2), window=8)
        np.testing.assert_allclose(got, wanted.sum(axis=1), rtol=FINE, atol=1e-30)


@pytest.mark.parametrize("tokens", [0, 1, 4, 9])
@pytest.mark.parametrize("dtype", [np.float32, np.float16])
def test_maps_of_one_repeated_row(tokens: int, dtype: type) -> None:
    """Every output is the same sum, which from 16 bits must not cancel: so all terms are positive."""
    rng, close = np.random.default_rng(tokens), 1e-4 if dtype is np.float32 else 1e-2
    x, row = np.abs(rng.standard_normal((tokens, 70), np.float32)), np.abs(rng.standard_normal(70)).astype(dtype)
    w = np.broadcast_to(row, (50, 70))
    wanted = np.repeat(np.float64(x) @ np.float64(row)[:, None], 50, axis=1)
    np.testing.assert_allclose(cpu.linear(x, w), wanted, rtol=close, atol=close)
    backwards = np.concatenate([row[None], 2 * row[None]])[::-1]
    np.testing.assert_allclose(cpu.linear(x, backwards), wanted[:, :2] * [2, 1], rtol=close, atol=close)
    down = np.broadcast_to(np.float32(0.5), (70, 50))
    gate = np.repeat(np.float64(x) @ np.float64(row)[:, None], 50, axis=1)
    hidden = gate / (1 + np.exp(-gate)) * gate
    np.testing.assert_allclose(cpu.gated_ffn(x, w, w, down), hidden @ np.float64(down.T), rtol=close, atol=close)


@pytest.mark.parametrize("tokens", [0, 1, 4, 9])
@pytest.mark.parametrize("outs", [0, 3])
@pytest.mark.parametrize("ins", [0, 5])
def test_maps_of_no_size(tokens: int, outs: int, ins: int) -> None:
    x, w, b = (np.ones(shape, np.float32) for shape in ((tokens, ins), (outs, ins), (outs,)))
    np.testing.assert_array_equal(cpu.linear(x, w, b), np.full((tokens, outs), ins + 1.0))
    np.testing.assert_array_equal(cpu.linear(x, w), np.full((tokens, outs), float(ins)))
    (one, other) = cpu.linear_each(x, [(w, None), (w[:0], b[:0])])
    assert one.shape == (tokens, outs)
    assert other.shape == (tokens, 0)


READS = st.lists(
    st.fixed_dictionaries(
        {
            "tokens": st.sampled_from([1, 1, 2, 9, 40, 200]),
            "keys": st.integers(1, 900),
            "past": st.integers(-3, 40),
            "held": st.sampled_from(["array", "consecutive", "chosen"]),
            "stored": st.sampled_from([np.float32, np.float16]),
        }
    ),
    min_size=1,
    max_size=6,
)


def read(rng, group, tokens, keys, past, held, stored):  # type: ignore[no-untyped-def]
    """What `attention_each` takes of one read, and the same as plain arrays."""
    q = rng.standard_normal((2 * group, tokens, 24)).astype(np.float32)
    k, v = rng.standard_normal((2, 2, keys, 24)).astype(stored)
    first = max(0, 1000 + keys - tokens - past)
    positions = np.broadcast_to(np.arange(1000, 1000 + keys), (2, keys))
    if held == "consecutive":
        return (q, k, v, first, Consecutive(positions, 1000)), (q, k, v, first, positions)
    if held == "chosen":
        columns = np.sort(rng.permuted(np.tile(np.arange(keys), (2, 1)), axis=1)[:, : max(1, keys // 2)], axis=1)
        chosen = [Chosen(x, columns) for x in (k, v, positions)]
        plain = [np.asarray(x) for x in chosen]
        return (q, chosen[0], chosen[1], first, chosen[2]), (q, plain[0], plain[1], first, plain[2])
    return ((q, k, v, np.arange(first, first + tokens), positions),) * 2


@given(READS, st.sampled_from([1, 3, 8]), st.sampled_from([None, 7, 300]), st.integers(0, 2**31))
def test_reads_of_one_call_are_as_if_alone(cases, group, window, seed) -> None:  # type: ignore[no-untyped-def]
    """Sequences that decode together, chunks with their own columns: each as the formula says, in one call."""
    rng = np.random.default_rng(seed)
    reads = [read(rng, group, **case) for case in cases]
    each = cpu.attention_each([arguments for arguments, _ in reads], scale=0.3, window=window)
    again = cpu.attention_each([arguments for arguments, _ in reads], scale=0.3, window=window)
    assert len(each) == len(reads)
    for got, second, (_, (q, k, v, first, positions)) in zip(each, again, reads, strict=True):
        asked = np.arange(first, first + q.shape[1]) if isinstance(first, int) else first
        weights, _ = softmax(q, k, asked, positions, 0.3, window)
        wanted = (weights @ np.float64(np.repeat(v, group, axis=0))).transpose(1, 0, 2).reshape(q.shape[1], -1)
        tolerance = FINE if k.dtype == np.float32 else 1e-2
        size = np.linalg.norm(wanted, axis=-1)
        assert (np.linalg.norm(got - wanted, axis=-1) <= tolerance * size).all()
        np.testing.assert_array_equal(got, second)


def test_no_reads_are_no_work() -> None:
    assert cpu.attention_each([]) == []
    nothing = np.zeros((2, 0, 8), np.float32)
    (got,) = cpu.attention_each([(nothing, nothing, nothing, 0, np.zeros((2, 0), np.int64))])
    assert got.shape == (0, 16)
    (got,) = cpu.attention_each([(np.ones((2, 3, 8), np.float32), nothing, nothing, 0, np.zeros((2, 0), np.int64))])
    np.testing.assert_array_equal(got, np.zeros((3, 16)))
