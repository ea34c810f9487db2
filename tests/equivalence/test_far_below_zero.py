"""Scores that are all far below zero, as those of heads whose keys have a large bias: only their differences count.

Queries and keys are constant and point away from each other, so that every score is -36 √D and every softmax is even:
each of S keys receives 1/S from every query, and attention returns the mean of the values. Numbers of queries that fill
no tile leave rows that must not count: their scores would be 0, which is e^288 times as much for D = 64.
"""

from __future__ import annotations

from types import ModuleType

import ml_dtypes
import numpy as np
import pytest

from tests.equivalence.calling import call
from thresher.verify.checker import Checker

KEYS = 70


@pytest.mark.parametrize("dtype", [np.float32, ml_dtypes.bfloat16])
@pytest.mark.parametrize("tokens", [1, 9, 70])
@pytest.mark.parametrize("heads", [2, 14])
def test_only_differences_of_scores_count(backend: ModuleType, heads: int, tokens: int, dtype: type) -> None:
    q, k = np.full((heads, tokens, 64), -6, dtype), np.full((2, KEYS, 64), 6, dtype)
    v = np.broadcast_to(np.arange(KEYS) % 2, (64, KEYS)).T.astype(dtype)[None].repeat(2, axis=0)
    places = np.arange(KEYS, KEYS + tokens), np.broadcast_to(np.arange(KEYS), (2, KEYS))
    checker = Checker(backend)
    checker.tolerance = 1e-5 if dtype == np.float32 else 1e-2
    each = np.full((heads, KEYS), 1 / KEYS)
    checker.elements(call(backend, "attention_mass", q, k, *places), tokens * each)
    checker.elements(call(backend, "tova_scores", q, k, *places), each)
    inside = (
        np.convolve(np.ones(KEYS), np.ones(5), "same") / 5
    )  # SnapKV's mean of five has less to add up at either end
    checker.elements(call(backend, "snapkv_scores", q, k, *places), min(tokens, 32) * each * inside)
    checker.rows(call(backend, "attention", q, k, v, *places), np.full((heads, tokens, 64), 0.5))
