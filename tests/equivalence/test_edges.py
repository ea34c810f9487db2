"""Calls whose sizes lie just beyond a tile, a block, a step or a limit of the kernels, and what a mask must not miss.

A strategy meets such a size now and then; here each is met at every run. The checker is that of `test_contract`.
"""

from __future__ import annotations

from types import ModuleType
from typing import Any

import ml_dtypes
import numpy as np
import pytest

from accel import cpu
from reference import Compensator, Predictor
from thresher.verify.checker import Checker
from thresher.verify.drawing import Case
from thresher.verify.layouts import LAYOUTS, laid_out

BF16 = ml_dtypes.bfloat16


def check(backend: ModuleType, function: str, *arguments: Any, **options: Any) -> None:
    Checker(backend).check(function, Case({}, arguments, options))


def normal(*shape: int, dtype: type = np.float32, size: float = 1.0) -> np.ndarray:
    return (np.random.default_rng(sum(shape)).standard_normal(shape) * size).astype(dtype)


@pytest.mark.parametrize("dtype", [np.float32, np.float16, BF16], ids=["float32", "float16", "bfloat16"])
@pytest.mark.parametrize(
    ("tokens", "width", "outs"),
    [
        (9, 577, 1600),  # items of several heights, and a depth beyond one pass
        (4, 129, 97),  # the most that are read row by row
        (5, 128, 48),  # the fewest that are packed
        (257, 40, 33),  # one token beyond what a kernel takes at a time
        (513, 7, 1),
        (33, 1153, 49),
        (1, 1, 300),
        (0, 12, 7),
    ],
)
def test_linear(backend: ModuleType, dtype: type, tokens: int, width: int, outs: int) -> None:
    weight = np.abs(normal(outs, width, dtype=dtype))
    check(backend, "linear", np.abs(normal(tokens, width)), weight, np.abs(normal(outs, dtype=dtype)))


@pytest.mark.parametrize("dtype", [np.float32, BF16], ids=["float32", "bfloat16"])
@pytest.mark.parametrize(
    ("tokens", "width", "neurons", "kept"),
    [(9, 300, 1600, 1500), (4, 65, 700, 3), (257, 40, 130, 129), (5, 513, 129, 128), (1, 16, 1000, 1000)],
)
def test_ffn(backend: ModuleType, dtype: type, tokens: int, width: int, neurons: int, kept: int) -> None:
    x, gate, up, down = (
        normal(tokens, width),
        *(normal(neurons, width, dtype=dtype, size=width**-0.5) for _ in "gu"),
        normal(width, neurons, dtype=dtype),
    )
    check(backend, "gated_ffn", x, gate, np.abs(up), down, act="gelu_tanh")
    compensator = Compensator(normal(130, width, size=width**-0.5), normal(width, 130))
    chosen = np.sort(np.random.default_rng(1).choice(neurons, kept, replace=False)).astype(np.int32)
    check(backend, "sparse_ffn", np.abs(x), np.abs(gate), np.abs(up), down, chosen, compensator=compensator)


@pytest.mark.parametrize(("tokens", "block"), [(130, 32), (70, 8), (257, 256), (100, 48)])
def test_blocks_with_neurons_of_their_own(backend: ModuleType, tokens: int, block: int) -> None:
    x, gate, up, down = normal(tokens, 40), normal(130, 40, size=0.2), normal(130, 40, size=0.2), normal(40, 130)
    predictor, compensator = Predictor(normal(40), normal(40, 7), normal(7, 130)), Compensator(up[:9], down[:, :9])
    weights = np.abs(gate), np.abs(up), down
    check(backend, "fastforward_blocks", np.abs(x), block, predictor, 60, *weights, compensator=compensator, act="silu")


@pytest.mark.parametrize("dtype", [np.float32, BF16], ids=["float32", "bfloat16"])
def test_blocks_in_one_call_get_the_bits_of_each_alone(dtype: type) -> None:
    """More than a call of a kernel takes, the last block shorter, with lists of neurons that differ."""
    x, block, tokens = normal(1100, 96), 128, 1100
    gate, up, down = (normal(700, 96, dtype=dtype, size=0.1) for _ in "gud")
    predictor, compensator = Predictor(normal(96), normal(96, 16), normal(16, 700)), Compensator(up[:20], up[20:40].T)
    got, chosen = cpu.fastforward_blocks(x, block, predictor, 350, gate, up, down.T, compensator=compensator)
    assert len({row.tobytes() for row in chosen}) == len(chosen) == 9
    for n, start in enumerate(range(0, tokens, block)):
        part = x[start : start + block]
        np.testing.assert_array_equal(chosen[n], cpu.select_neurons(cpu.predictor_scores(part, predictor), 350))
        wanted = cpu.sparse_ffn(part, gate, up, down.T, chosen[n], compensator=compensator)
        np.testing.assert_array_equal(got[start : start + block], wanted)


def attend(
    backend: ModuleType, tokens: int, keys: int, first: int, key: int, window: int | None, group: int = 1
) -> None:
    """Attention and its mass for queries from position `first` on and keys from position `key` on."""
    q, k, v = normal(2 * group, tokens, 32), normal(2, keys, 32), normal(2, keys, 32)
    places = np.arange(first, first + tokens), np.tile(np.arange(key, key + keys), (2, 1))
    check(backend, "attention", q, k, v, *places, window=window)
    check(backend, "attention_mass", q, k, *places, window=window)


@pytest.mark.parametrize("group", [1, 2, 3])
@pytest.mark.parametrize(
    ("tokens", "keys", "first", "key", "window"),
    [
        (1, 400, 0, 5, None),  # sees nothing, of several ranges of keys
        (3, 400, 4, 5, None),  # the first sees nothing, the others do
        (40, 5000, 0, 30, None),
        (40, 5000, 4990, 30, 1),
        *((4, 400, first, 0, 130) for first in range(254, 262)),  # the window's edge around a block's
        (4, 50, 40, 0, 5),
        (4, 50, 48, 0, 5),  # beyond the last key
        (4, 300, 299, 0, 1),
        (70, 300, 230, 0, 3),
        (200, 700, 500, 0, 131),
        (1, 129, 128, 0, None),
        (8, 257, 256, 0, 128),
        (600, 600, 0, 0, 64),
        (5, 3, 0, 0, None),
    ],
)
def test_what_each_query_sees(
    backend: ModuleType, tokens: int, keys: int, first: int, key: int, window: int | None, group: int
) -> None:
    attend(backend, tokens, keys, first, key, window, group)


@pytest.mark.parametrize("fast", [False, True])
@pytest.mark.parametrize("period", [1, 4, 128])
def test_the_top_token_of_every_block(backend: ModuleType, period: int, fast: bool) -> None:
    """One head's top at every place in turn, the first column of a later block among them; the other's stays."""
    v = normal(1, 300, 24)
    for place in sorted({*range(0, 300, 4 * period), 127, 128, 129, 255, 256, 299}):
        h = np.abs(normal(2, 300, size=1e-3))
        h[0, place], h[1, 17] = 5e3, 5e3
        check(backend, "caote_scores", h, v, fast=fast)


@pytest.mark.parametrize("size", [1e-21, 1e-15, 1e15, 1e18])
def test_values_whose_squares_leave_float32(backend: ModuleType, size: float) -> None:
    check(backend, "caote_scores", np.abs(normal(4, 300)), normal(2, 300, 24, size=size))


@pytest.mark.parametrize("kept", [1, 2, 1023, 1024, 1996, 1997, 1999, 2000])
def test_every_digit_of_a_score_counts(backend: ModuleType, kept: int) -> None:
    """Scores that differ in their highest, middle or lowest bits alone, in both signs, and equal ones."""
    rng = np.random.default_rng(kept)
    for shift in (0, 10, 21):
        bits = rng.integers(0, 2**9, (2, 2000)) << shift
        scores = (bits.astype(np.uint32) | (np.uint32(0x3F800000) if shift < 21 else np.uint32(0))).view(np.float32)
        scores = np.where(np.isnan(scores), 1, scores) * rng.choice([-1, 1], scores.shape).astype(np.float32)
        check(backend, "keep_top", scores, kept)


@pytest.mark.parametrize("tokens", [1, 17, 600])
@pytest.mark.parametrize("n_queries", [1, 7, 9, 16, 64])
def test_slots_of_quoka(backend: ModuleType, tokens: int, n_queries: int) -> None:
    """Numbers of slots around the lanes of a register."""
    q, k = normal(6, tokens, 33), normal(2, 261, 33)
    check(backend, "select_queries", q, n_queries)
    check(backend, "key_scores", q, k, n_queries)
    check(backend, "select_keys", q, k, 64, n_queries)


def test_a_predictor_wider_than_an_item(backend: ModuleType) -> None:
    predictor = Predictor(normal(130), normal(130, 40), normal(40, 1100))
    check(backend, "predictor_scores", normal(257, 130), predictor)


def test_zeros_of_both_signs_are_equal(backend: ModuleType) -> None:
    scores = np.array([[1, -0.0, 0, -0.0, 0, -1, -0.0, 0]], np.float32).repeat(3, axis=0)
    scores[1], scores[2] = -scores[1], scores[2, ::-1]
    for budget in range(1, 9):
        check(backend, "keep_top", scores, budget)


@pytest.mark.parametrize(("sinks", "recent"), [(0, 3), (3, 0), (2, 2), (5, 5)])
def test_sinks_and_recent_each_by_itself(backend: ModuleType, sinks: int, recent: int) -> None:
    positions = np.stack([np.arange(20), np.arange(20) + 2]).astype(np.uint16)  # the second head has fewer sinks
    for scores in (normal(2, 20), np.zeros((2, 20), np.float32), -np.sort(np.abs(normal(2, 20)))):
        for budget in (10, 11, 19, 20, 21):
            check(backend, "keep_top", scores, budget, sinks=sinks, recent=recent, positions=positions)


@pytest.mark.parametrize("tokens", [3, 20])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout(backend: ModuleType, layout: str, tokens: int) -> None:
    """Widths of whole registers, where an array that lies well is read as it is."""
    x, gate, up = (np.abs(laid_out(normal(*shape), layout)) for shape in ((tokens, 64), (48, 64), (48, 64)))
    x, gate, up, down = (laid_out(a, layout) for a in (x, gate, up, normal(64, 48)))
    check(backend, "linear", x, gate)
    check(backend, "gated_ffn", x, gate, up, down)
    check(backend, "rms_norm", x, laid_out(normal(64), layout), eps=1e-5)
    q, k, v = (laid_out(normal(*shape), layout) for shape in ((4, tokens, 32), (2, 150, 32), (2, 150, 32)))
    places = laid_out(np.arange(140, 140 + tokens), layout), laid_out(np.tile(np.arange(150), (2, 1)), layout)
    if layout != "one row":  # then all positions would be the first head's
        check(backend, "attention", q, k, v, *places)
        check(backend, "attention_mass", q, k, *places)
    check(backend, "key_scores", q, k, 2)
    check(backend, "keydiff_scores", k)
    check(backend, "caote_scores", laid_out(np.abs(normal(4, 150)), layout), normal(2, 150, 32))


def test_maps_of_several_storages(backend: ModuleType) -> None:
    """Maps that share a call, each stored in its own way and of several items."""
    kinds = [np.float32, BF16, np.float16, BF16, np.float32]
    maps = [(normal(outs, 200, dtype=kind), None) for outs, kind in zip((100, 50, 130, 97, 33), kinds, strict=True)]
    for tokens in (3, 20, 260):
        check(backend, "linear_each", normal(tokens, 200), maps)
