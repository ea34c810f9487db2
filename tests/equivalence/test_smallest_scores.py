"""CAOTE's scores element by element against exact fractions: eviction is decided by the smallest of them."""

from __future__ import annotations

import math
from fractions import Fraction
from types import ModuleType

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.equivalence.calling import call

GUARD = Fraction(1e-6)


def exact(h: np.ndarray, v: np.ndarray, fast: bool) -> list[float]:
    """α_j / (1 - α_j) · ‖o - v_j‖ of one head, in fractions: h (S,), v (S, D). Where 1 - α_j = 0 and not `fast`: its
    limit, ‖the others' plain mean - v_j‖."""
    weights = [Fraction(float(x)) for x in h]
    values = [[Fraction(float(x)) for x in row] for row in v]
    whole, count, dim = sum(weights), len(weights), len(values[0])
    if not whole:
        return [0.0] * count
    alphas = [x / whole for x in weights]
    if fast:
        centre = [sum(row[d] for row in values) / count for d in range(dim)]
    else:
        centre = [sum(a * row[d] for a, row in zip(alphas, values, strict=True)) for d in range(dim)]
    found = []
    for j, (alpha, row) in enumerate(zip(alphas, values, strict=True)):
        left, about = 1 - alpha, centre
        if fast:
            left = max(left, GUARD)
        elif not left:
            others = [other for i, other in enumerate(values) if i != j]
            about = [sum(other[d] for other in others) / max(len(others), 1) for d in range(dim)]
            left = Fraction(1)
        square = sum((x - y) ** 2 for x, y in zip(about, row, strict=True))
        scale = Fraction(10) ** 40  # so that a small square is no zero as a float
        found.append(float(alpha / left) * math.sqrt(square * scale * scale) / float(scale))
    return found


def check(backend: ModuleType, h: np.ndarray, v: np.ndarray, *, fast: bool, group: str) -> None:
    """Every score to 1e-5; what lies below the rounding of the values themselves in float64 may be lost."""
    h, v = (backend.to_numpy(backend.to_backend(x)) for x in (h, v))  # as the backend keeps them
    each = np.array(
        [exact(row, np.asarray(v, np.float64)[n // (len(h) // len(v))], fast) for n, row in enumerate(h)]
    ).reshape(len(v), -1, h.shape[1])
    joined = {"mean": each.mean(axis=1), "max": each.max(axis=1), "rss": np.sqrt((each**2).sum(axis=1))}[group]
    got = call(backend, "caote_scores", h, v, fast=fast, group=group).astype(np.float64)
    tiny = 1e-37 + 1e-14 * float(np.abs(np.asarray(v, np.float64)).max())
    assert (np.abs(got - joined) <= 1e-5 * joined + tiny).all(), (got, joined)


@given(
    st.integers(1, 40),
    st.sampled_from([(1, 1), (1, 3), (2, 2)]),
    st.sampled_from([1, 2, 5]),
    st.sampled_from(["usual", "near", "equal", "tiny h", "float64 h", "tiny v", "huge v", "one holds all", "silent"]),
    st.booleans(),
    st.sampled_from(["mean", "max", "rss"]),
    st.integers(0, 2**31),
)
def test_every_score_is_right(
    backend: ModuleType, keys: int, heads: tuple[int, int], dim: int, kind: str, fast: bool, group: str, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    h = rng.random((heads[0] * heads[1], keys)).astype(np.float32) ** int(rng.choice([1, 8]))
    v = rng.standard_normal((heads[0], keys, dim)).astype(np.float32)
    if kind == "near":
        v += 1000
    elif kind == "equal":
        v[:] = v[:, :1]
    elif kind == "tiny h":  # whose sum is no usual float32
        h = h * np.float32(1e-42)
    elif kind == "float64 h":
        h = h * 1e-300
    elif kind == "tiny v":
        v *= np.float32(1e-25)
    elif kind == "huge v":
        v *= np.float32(1e20)
    elif kind == "one holds all":
        h[:, rng.integers(keys)] = rng.choice([1e9, 1e30])
        h[0, rng.integers(keys)] = 0
    elif kind == "silent":
        h[0] = 0
    check(backend, h, v, fast=fast, group=group)


@pytest.mark.parametrize("top", range(0, 300, 4))
def test_the_largest_share_is_set_aside_wherever_it_stands(backend: ModuleType, top: int) -> None:
    """It holds all but 1e-9, so that whatever is left of it among the others is seen in every score."""
    rng = np.random.default_rng(top)
    h = rng.random((2, 300))
    h[0, top] = 1e11
    check(backend, h, rng.standard_normal((1, 300, 2)).astype(np.float32), fast=False, group="max")
