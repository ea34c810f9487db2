"""Every contract function against the reference, and the checker against modules that are wrong on purpose."""

from __future__ import annotations

import re
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest

import reference
from thresher.verify import Result, check_function, contract, find_module, table, verify


@pytest.mark.parametrize("name", contract())
def test_backend_means_the_same_as_the_reference(backend: ModuleType, name: str) -> None:
    result = check_function(backend, name, examples=40)
    assert not result.failure, result.failure
    assert result.examples >= 40


@pytest.mark.parametrize("name", contract())
def test_reference_in_float32_passes_its_own_check(name: str) -> None:
    result = check_function(reference, name, examples=15)
    assert not result.failure, result.failure


def wrong_window(q, k, v, q_positions, k_positions, *, scale=None, window=None):  # type: ignore[no-untyped-def]
    """Off by one: a key exactly `window` back is seen."""
    return reference.attention(q, k, v, q_positions, k_positions, scale=scale, window=window and window + 1)


def unscaled_key(q, k, n_queries):  # type: ignore[no-untyped-def]
    return reference.key_scores(q, k, n_queries, similarity="dot")


def higher_index_wins(scores, budget, **protected):  # type: ignore[no-untyped-def]
    kept = reference.keep_top(scores[:, ::-1].copy(), budget)
    return np.sort(scores.shape[1] - 1 - kept, axis=1)


def most_similar_first(q, n_queries):  # type: ignore[no-untyped-def]
    return reference.select_queries(q, n_queries, queries="most_similar")


def squared(h, v, *, fast=False, group="mean"):  # type: ignore[no-untyped-def]
    return reference.caote_scores(h, v, fast=fast, group=group) ** 2


def rounded(x, weight, bias=None):  # type: ignore[no-untyped-def]
    return reference.linear(x, weight, bias).astype(np.float16)


def other_keys(q, k, budget, n_queries):  # type: ignore[no-untyped-def]
    return reference.keep_top(-reference.key_scores(q, k, n_queries), budget)


@pytest.mark.parametrize(
    ("name", "wrong", "reason"),
    [
        ("attention", wrong_window, "relative error"),
        ("key_scores", unscaled_key, "relative error|NaN or infinity"),
        ("keep_top", higher_index_wins, "not equal"),
        ("select_queries", most_similar_first, "more similar than a later one"),
        ("caote_scores", squared, "relative error"),
        ("linear", rounded, "relative error"),
        ("select_keys", other_keys, "own scores"),
    ],
)
def test_a_wrong_function_is_found_and_its_case_printed(name: str, wrong: object, reason: str) -> None:
    module = SimpleNamespace(**{"key_scores": reference.key_scores, name: wrong})
    result = check_function(module, name, examples=200)
    assert result.failure
    assert re.search(reason, result.failure), result.failure
    assert "case: dtype=" in result.failure
    assert "seed=" in result.failure


def test_verify_checks_what_a_module_offers_and_counts() -> None:
    told: list[Result] = []
    results = verify(SimpleNamespace(keep_top=reference.keep_top), examples=5, progress=told.append)
    assert [r.name for r in results] == ["keep_top"]
    assert results == told
    assert table(results) == [("keep_top", str(results[0].examples), "exact", "ok")]
    rounds = verify(SimpleNamespace(rotate=reference.rotate, embed=reference.embed), examples=5, seconds=1e-9)
    assert [r.examples for r in rounds] == [5, 0]


def test_a_module_without_contract_functions_is_one_clear_line() -> None:
    with pytest.raises(ValueError, match=r"module: got math, wanted one with some of: attention, "):
        verify(find_module("math"))
    with pytest.raises(ValueError, match="module: got 'no_such_kernels', wanted a module that can be imported"):
        find_module("no_such_kernels")
