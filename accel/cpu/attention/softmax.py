"""The online softmax of blocks of scores, whose columns are queries and whose rows are keys.

Powers of two instead of e: log2(e) is folded into the scale, which is folded into the queries. A column's peak is
raised only when it is exceeded by 2⁸, so that sums are hardly ever rescaled. The state of a block of columns is
(4, WIDTH): peaks; the sums of weights of the block of keys at hand; of all, and what that has lost (sums.py).
"""

from __future__ import annotations

import numpy as np

from accel.cpu.attention.sums import add_exactly
from accel.cpu.linear.unit import KEYS, WIDTH
from accel.cpu.simd import (
    LANES,
    LOG2E,
    any_above,
    carray,
    exp2,
    floats_at,
    fma,
    larger,
    load,
    njit,
    smaller,
    splat,
    store,
    where_above,
    with_rest,
    within,
)

NOTHING = float(np.finfo(np.float32).min)  # the peak of a column that has seen no key: no score lies below it
SLACK = np.float32(8.0)  # powers of two by which a peak may be exceeded


@njit(forceinline=True)
def at_edge(seen, first_token, last_token, start, count):
    """Whether one of these tokens does not see all of these keys."""
    return seen[last_token, 0] > start or seen[first_token, 1] < start + count


@njit
def bound_columns(seen, first_column, columns, here, first_token, start, ends):
    """The bounds of a block's columns, counted from the key `start`, as the floats that `hide` compares. Beyond the
    last column nothing is seen."""
    edges = carray(floats_at(ends), (2, WIDTH))
    edges[:] = 0.0
    for i in range(columns):
        token = first_token + (first_column + i) % here
        for side in range(2):
            edges[side, i] = min(max(seen[token, side] - start, -1), KEYS)


@njit(forceinline=True)
def _tanh(y):
    """tanh y: for |y| ≤ 1 y · (10395 + 1260 y² + 21 y⁴) / (10395 + 4725 y² + 210 y⁴ + y⁶), the sixth convergent of its
    continued fraction y/(1 + y²/(3 + y²/(5 + …))), off by 1e-9 of it at most; beyond, 1 - 2 / (1 + e^2y)."""
    square = y * y
    over = (
        fma(fma(splat(np.float32(21.0)), square, splat(np.float32(1260.0))), square, splat(np.float32(10395.0)))
    ) * y
    under = fma(square + splat(np.float32(210.0)), square, splat(np.float32(4725.0)))
    under = fma(under, square, splat(np.float32(10395.0)))
    growth = exp2(smaller(y, splat(np.float32(20.0))) * splat(np.float32(2 * LOG2E)))
    one = splat(np.float32(1.0))
    return where_above(square, np.float32(1.0), one - (one + one) / (one + growth), over / under)


@njit
def cap_scores(rows, columns, scores, step, cap):
    """cap · tanh(s / cap) in the place of every score s, rows `step` bytes apart; nothing where the cap is 0."""
    if cap > 0.0:
        top, rate = splat(np.float32(cap)), splat(np.float32(1.0 / cap))
        for i in range(rows):
            for j in range(0, columns, LANES):
                at = scores + step * i + 4 * j
                store(at, _tanh(load(at) * rate) * top)


@njit
def hide(vectors, count, scores, ends):
    """Minus infinity wherever a column's two bounds leave a key out."""
    for j in range(0, vectors * LANES, LANES):
        lows, highs = load(ends + 4 * j), load(ends + 4 * (WIDTH + j))
        for i in range(count):
            at = scores + 4 * (i * WIDTH + j)
            store(at, within(load(at), lows, highs, np.float32(i)))


@njit
def forget(state):
    """A block of columns that has seen nothing."""
    rows = carray(floats_at(state), (4, WIDTH))
    rows[:] = 0.0
    rows[0] = NOTHING


@njit
def raise_peaks(vectors, count, scores, state, out, rows):
    """Raise the peaks that a block of scores exceeds by far, and rescale what was summed under the old ones. Lanes are
    different queries: one that is NaN, or keeps its peak, must not be told from the others' register."""
    for j in range(0, vectors * LANES, LANES):
        at = scores + 4 * j
        a, b, c, d = load(at), load(at), load(at), load(at)
        for i in range(0, count - 3, 4):
            row = at + 4 * WIDTH * i
            a, b = larger(a, load(row)), larger(b, load(row + 4 * WIDTH))
            c, d = larger(c, load(row + 8 * WIDTH)), larger(d, load(row + 12 * WIDTH))
        for i in range(count // 4 * 4, count):
            a = larger(a, load(at + 4 * WIDTH * i))
        best, peak = larger(larger(a, b), larger(c, d)), load(state + 4 * j)
        over = best - peak
        if any_above(over, SLACK):
            raised = where_above(over, SLACK, best, peak)
            factor = where_above(over, SLACK, exp2(peak - raised), splat(np.float32(1.0)))
            store(state + 4 * j, raised)
            for i in range(1, 4):
                row = state + 4 * (i * WIDTH + j)
                store(row, load(row) * factor)
            for i in range(rows):
                row = out + 4 * (i * WIDTH + j)
                store(row, load(row) * factor)


@njit
def add_sums(vectors, state):
    """Add the sums of the block of keys at hand to those of all."""
    for j in range(0, vectors * LANES, LANES):
        sums = state + 4 * (WIDTH + j)
        add_exactly(load(sums), sums + 4 * WIDTH, sums + 8 * WIDTH)
        store(sums, splat(np.float32(0.0)))


@njit
def final_sums(state):
    """Make up for what the sums have lost."""
    for j in range(0, WIDTH, LANES):
        total = state + 4 * (2 * WIDTH + j)
        store(total, with_rest(load(total), load(total + 4 * WIDTH)))
