"""The cache against a plain list of (position, key, value) per KV head."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from reference import LayerCache, new_cache, restore_cache
from tests.small import small_config


@given(st.lists(st.tuples(st.integers(1, 5), st.integers(1, 8)), min_size=1, max_size=6), st.integers(0, 2**32 - 1))
def test_appending_and_forgetting_follows_a_list(steps: list[tuple[int, int]], seed: int) -> None:
    rng = np.random.default_rng(seed)
    cache = new_cache(small_config(), np.dtype(np.float64)).layers[0]
    cache.received = np.zeros((4, 0))
    held: list[list[tuple[int, np.ndarray, np.ndarray, float]]] = [[], []]
    at = 0
    for tokens, budget in steps:
        k, v = rng.standard_normal((2, 2, tokens, 8))
        cache.append(k, v, at)
        cache.received[:, -tokens:] = np.arange(at, at + tokens)
        for head in range(2):
            held[head] += [(at + t, k[head, t], v[head, t], float(at + t)) for t in range(tokens)]
        at += tokens
        if cache.size > budget:
            columns = np.stack([np.sort(rng.choice(cache.size, budget, replace=False)) for _ in range(2)])
            cache.keep(columns)
            held = [[row[c] for c in columns[head]] for head, row in enumerate(held)]
        for head, row in enumerate(held):
            np.testing.assert_array_equal(cache.positions[head], [p for p, *_ in row])
            np.testing.assert_array_equal(cache.k[head], [k for _, k, *_ in row])
            np.testing.assert_array_equal(cache.v[head], [v for _, _, v, _ in row])
            for query_head in (2 * head, 2 * head + 1):
                np.testing.assert_array_equal(cache.received[query_head], [r for *_, r in row])
        assert cache.nbytes == 2 * cache.size * (2 * 8 * 8 + 8) + 4 * cache.size * 8


def filled(tokens: int) -> LayerCache:
    cache = new_cache(small_config(), np.dtype(np.float32)).layers[0]
    k = np.random.default_rng(0).standard_normal((2, tokens, 8))
    cache.append(k, 2 * k, 0)
    return cache


def test_gather_takes_other_columns_from_every_head() -> None:
    cache = filled(5)
    k, v, positions = cache.gather(np.array([[0, 2], [3, 4]]))
    np.testing.assert_array_equal(positions, [[0, 2], [3, 4]])
    np.testing.assert_array_equal(k[1], cache.k[1, 3:5])
    np.testing.assert_array_equal(v[0], cache.v[0, [0, 2]])
    assert cache.size == 5


def test_keep_newest() -> None:
    cache = filled(5)
    cache.keep_newest(9)
    assert cache.size == 5
    cache.keep_newest(2)
    np.testing.assert_array_equal(cache.positions, [[3, 4]] * 2)


def test_a_copy_is_independent_and_arrays_restore() -> None:
    cache = filled(5)
    copy = cache.copy()
    cache.keep_newest(1)
    assert copy.size == 5
    restored = restore_cache([copy.arrays()]).layers[0]
    for name, array in copy.arrays().items():
        np.testing.assert_array_equal(getattr(restored, name), array)


def test_appending_the_past_is_refused() -> None:
    cache = filled(5)
    k = np.zeros((2, 1, 8))
    with pytest.raises(ValueError, match="first: got position 4, wanted one after the newest held, 4"):
        cache.append(k, k, 4)
    with pytest.raises(ValueError, match="k: got shape"):
        cache.append(k[0], k, 9)
    assert cache.size == 5


def test_attention_received_goes_on_growing() -> None:
    """In float32 a sum of 20,000 stops growing by shares of a thousandth."""
    cache = filled(3)
    for _ in range(3):
        cache.receive(np.full((4, 3), 20_000, np.float32), None)
    for _ in range(1000):
        cache.receive(np.full((4, 3), 1e-3, np.float32), None)
    assert cache.received is not None
    np.testing.assert_allclose(cache.received, 60_001, rtol=1e-9)
    cache.receive(np.ones((4, 1), np.float32), np.array([[0], [2]]))
    np.testing.assert_allclose(cache.received[:, 0] - cache.received[:, 1], [1, 1, 0, 0], atol=1e-6)
    np.testing.assert_allclose(cache.received[:, 2] - cache.received[:, 1], [0, 0, 1, 1], atol=1e-6)


@pytest.mark.parametrize("columns", [[0, 2**40, 1], [0, 1, 1], [2, 1, 3], [-1, 0, 1], [0, 1, 5]])
def test_columns_that_are_not_there_or_not_in_order_are_refused(columns: list[int]) -> None:
    for step in (filled(5).gather, filled(5).keep):
        with pytest.raises(ValueError, match="columns: got"):
            step(np.array([[0, 1, 2], columns]))
