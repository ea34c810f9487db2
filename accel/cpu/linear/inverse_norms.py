"""Inverse lengths of vectors, exact over the whole range of float32.

Between SMALL and LARGE the squares of a vector add up in float32; else the vector is first divided by its largest
entry, as in `reference.unit`.
"""

from __future__ import annotations

import numpy as np

from accel.cpu.linear.rows import widen
from accel.cpu.simd import F32, LANES, carray, floats_at, fma, load, njit, splat, store, total

LARGE, SMALL = 1e30, 1e-30  # squared lengths between these are exact enough in float32


@njit(forceinline=True)
def _squared_length(source, kind, dim, out):
    """Widen a row to `out`, and add up its squares."""
    squares = splat(np.float32(0.0))
    if kind == F32 and dim % LANES == 0:
        for i in range(0, dim, LANES):
            x = load(source + 4 * i)
            store(out + 4 * i, x)
            squares = fma(x, x, squares)
        return total(squares)
    widen(source, kind, dim, out, 1.0)
    for i in range(0, dim, LANES):
        x = load(out + 4 * i)
        squares = fma(x, x, squares)
    return total(squares)


@njit(forceinline=True)
def _largest(row, dim):
    """The largest absolute value of a row, or NaN where there is one."""
    numbers, peak = carray(floats_at(row), dim), np.float32(0.0)
    for i in range(dim):
        if not abs(numbers[i]) <= peak:
            peak = abs(numbers[i])
    return peak


@njit(forceinline=True)
def unit_rate(source, kind, dim, out):
    """Widen a row to `out`, divided by its largest entry if its squares would leave float32; returns 1/‖out‖, or 0."""
    square = _squared_length(source, kind, dim, out)
    if SMALL < square < LARGE:
        return np.float32(1.0) / np.sqrt(square)
    row, peak, exact = carray(floats_at(out), dim), _largest(out, dim), 0.0
    if peak == 0.0:
        return np.float32(0.0)
    for i in range(dim):
        row[i] = np.float64(row[i]) / np.float64(peak)
        exact += np.float64(row[i]) * np.float64(row[i])
    return np.float32(1.0 / np.sqrt(exact))


@njit(forceinline=True)
def known_rate(source, kind, dim, out):
    """Widen a row to `out`; returns what a cache keeps of it: 1/‖x‖, 0 for a zero vector, and NaN where its squares
    would leave float32, so that whoever wants its direction asks `unit_rate`."""
    square = _squared_length(source, kind, dim, out)
    if SMALL < square < LARGE:
        return np.float32(1.0) / np.sqrt(square)
    return np.float32(0.0) if _largest(out, dim) == 0.0 else np.float32(np.nan)
