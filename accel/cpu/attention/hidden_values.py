"""Values that are no numbers, where not every query sees them.

A weight of zero hides a value only if the value is a number: 0 · NaN is NaN. So in the few blocks that some queries see
in part, rows of values with NaN or infinity are multiplied from copies that have zeros in their place, and what was
taken out is added to the queries that see them, whatever their weights.
"""

from __future__ import annotations

import numpy as np

from accel.cpu.linear.rows import list_rows, load_kind, number_size, padded, widen
from accel.cpu.linear.unit import WIDTH
from accel.cpu.simd import BF16, F32, LANES, bits_at, carray, floats_at, fma, halves_at, njit, splat, total, words_at


@njit
def all_numbers(row, kind, dim):
    """Whether a stored row has neither NaN nor infinity."""
    sums, zero = splat(np.float32(0.0)), splat(np.float32(0.0))
    for i in range(0, dim, LANES):
        sums = fma(load_kind(row + number_size(kind) * i, kind, dim - i), zero, sums)
    return total(sums) == 0


@njit
def list_values(lines, base, row, kind, dim, start, count, picked, edge, clean):
    """As `list_rows`; at an edge, rows that have NaN or infinity are listed as copies at `clean`, with zeros instead.
    Returns how many."""
    list_rows(lines, base, row, start, count, picked)
    if not edge:
        return 0
    stand, cleaned = carray(words_at(lines), count), 0
    for i in range(count):
        if not all_numbers(stand[i], kind, dim):
            copy = clean + 4 * cleaned * padded(dim, LANES)
            _copy_numbers(stand[i], kind, dim, copy)
            stand[i] = copy
            cleaned += 1
    return cleaned


@njit
def _copy_numbers(row, kind, dim, out):
    """A copy of a stored row, with zeros in the place of NaN and infinity: their exponents are all ones."""
    if kind == F32:
        old, new, exponent = carray(bits_at(row), dim), carray(bits_at(out), dim), 0x7F800000
        for d in range(dim):
            new[d] = 0 if old[d] & exponent == exponent else old[d]
    else:
        short, copied = carray(halves_at(row), dim), carray(halves_at(out), dim)
        ones = 0x7F80 if kind == BF16 else 0x7C00
        for d in range(dim):
            copied[d] = 0 if short[d] & ones == ones else short[d]


@njit
def spoil(base, row, kind, dim, start, count, picked, seen, first_token, here, columns, out, high, line):
    """Add what `list_values` took out to the sums (blocks, 3, high, WIDTH) of the columns that see it."""
    chosen, wide = carray(words_at(picked or base), start + count), carray(floats_at(line), dim)
    for key in range(start, start + count):
        at = base + (chosen[key] if picked else key) * row
        if all_numbers(at, kind, dim):
            continue
        widen(at, kind, dim, line, 1.0)
        for c in range(columns):
            token = first_token + c % here
            if seen[token, 0] <= key < seen[token, 1]:
                sums = carray(floats_at(out + 12 * (c // WIDTH) * WIDTH * high), (high, WIDTH))
                for d in range(dim):
                    if not abs(wide[d]) < np.inf:
                        sums[d, c % WIDTH] += wide[d]
