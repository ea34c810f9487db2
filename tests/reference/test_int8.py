"""Weights in 8 bits, held to their definition number by number."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from reference import Int8, dequantize, quantize

SHAPES = st.tuples(st.integers(0, 5), st.integers(0, 100))


def drawn(shape: tuple[int, int], seed: int, power: int) -> np.ndarray:
    """Numbers of many sizes around 10^power, some of them zero."""
    rng = np.random.default_rng(seed)
    x = rng.standard_normal(shape) * 10.0 ** (power + rng.integers(-2, 3, shape))
    return x * rng.integers(0, 2, shape)


@given(SHAPES, st.integers(0, 2**31), st.integers(-12, 4))
def test_every_number_is_within_half_a_scale(shape: tuple[int, int], seed: int, power: int) -> None:
    weight = drawn(shape, seed, power)
    stored = quantize(weight)
    got = dequantize(stored)
    assert got.dtype == np.float32
    assert got.shape == weight.shape
    for row in range(shape[0]):
        for first in range(0, shape[1], 32):
            group = [float(w) for w in weight[row, first : first + 32]]
            scale = float(stored.scales[row, first // 32])
            largest = max(map(abs, group))
            below = float(np.nextafter(np.float16(scale), np.float16(-1)))
            assert scale * 127 >= largest
            assert largest == scale == 0 or below * 127 < largest  # none smaller would do
            for i, w in enumerate(group):
                n = int(stored.values[row, first + i])
                assert abs(n) <= 127
                assert float(got[row, first + i]) == n * scale
                assert abs(n * scale - w) <= scale * (0.5 + 1e-13)  # a division is rounded too


def test_numbers_by_hand() -> None:
    weight = np.zeros((2, 33))
    weight[0, :4] = 127, -3, 2.5, 3.5  # scale 1: ties go to the even neighbour
    weight[1, 32] = -0.635  # a group of one, of scale 0.005 rounded up
    stored = quantize(weight)
    assert stored.values[0, :4].tolist() == [127, -3, 2, 4]
    assert stored.scales[0].tolist() == [1, 0]
    assert stored.values[1, 32] == -127
    assert stored.scales[1, 0] == 0
    assert 0.005 <= float(stored.scales[1, 1]) < 0.005 * (1 + 2**-10)
    assert stored.nbytes == 2 * 33 + 2 * 2 * 2


@given(SHAPES, st.integers(0, 2**31))
def test_what_is_stored_is_stored_again_as_it_is(shape: tuple[int, int], seed: int) -> None:
    """Where a group's largest number became 127 scales, as it does unless the scale is a subnormal float16."""
    weight = drawn(shape, seed, 0)
    weight[:, ::32] = 50
    once = dequantize(quantize(weight))
    np.testing.assert_array_equal(dequantize(quantize(once)), once)


@pytest.mark.parametrize("wrong", [math.nan, math.inf, -math.inf, 65504 * 127 * 1.001])
def test_what_no_scale_can_hold_is_refused(wrong: float) -> None:
    weight = np.ones((2, 40))
    weight[1, 35] = wrong
    with pytest.raises(ValueError, match=r"weight: got .*, wanted finite numbers of at most 8.31901e"):
        quantize(weight)


def test_parts_that_do_not_fit_are_refused() -> None:
    values, scales = np.zeros((2, 33), np.int8), np.zeros((2, 2), np.float16)
    with pytest.raises(ValueError, match="weight: got shape"):
        quantize(np.zeros(3))
    with pytest.raises(ValueError, match=r"scales: got shape \(2, 1\), wanted \(2, 2\)"):
        Int8(values, scales[:, :1])
    with pytest.raises(ValueError, match="values: got int16, wanted int8"):
        Int8(values.astype(np.int16), scales)
    with pytest.raises(ValueError, match="scales: got float32, wanted float16"):
        Int8(values, scales.astype(np.float32))
