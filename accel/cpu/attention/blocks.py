"""Blocks of keys and values, packed for all query columns of an item, and a worker's memory for them."""

from __future__ import annotations

from typing import NamedTuple

from accel.cpu.attention.hidden_values import list_values
from accel.cpu.attention.softmax import at_edge
from accel.cpu.linear.rows import list_rows, padded, rounded
from accel.cpu.linear.unit import (
    HIGH,
    KEYS,
    STEP,
    TEMPORARY,
    WIDTH,
    left_size,
    pack_right,
    plan_across,
    plan_left,
    plan_size,
    ready_and_plan,
    right_size,
    weights_size,
)
from accel.cpu.simd import BF16, LANES, carray, njit, words_at

LISTED = 8 * max(WIDTH, padded(KEYS, STEP))  # bytes of a list of addresses


class Places(NamedTuple):
    """Where each part of a worker's memory begins, for items of so many columns."""

    queries: int  # (blocks,) packed
    out: int  # (blocks, 3, high, WIDTH): sums, totals, and what those have lost
    state: int  # (blocks, 4, WIDTH), see softmax.py
    left_keys: int  # packed, two in turns
    left_values: int
    scores: int  # (KEYS, WIDTH), of two blocks of columns in turns
    weights: int  # packed, where they do not take the scores' place
    temporary: int
    turned: int  # (LANES, dim)
    lines: int  # addresses of keys, two lists in turns
    value_lines: int
    plan: int  # of keys to be packed
    value_plan: int
    ends: int  # two bounds per column (2, WIDTH)
    clean: int  # values (KEYS, dim), see hidden_values.py
    end: int


@njit
def places(base, columns, dim):
    """The places from an address on; from 0 on the last is how many bytes there are."""
    blocks, wide_dim = (columns + WIDTH - 1) // WIDTH, padded(dim, LANES)
    high = padded(wide_dim, HIGH)
    queries = base
    out = queries + 4 * blocks * right_size(dim)
    state = out + 4 * blocks * 3 * high * WIDTH
    left_keys = state + 4 * blocks * 4 * WIDTH
    left_values = left_keys + 8 * left_size(KEYS, dim)
    scores = left_values + 8 * left_size(dim, KEYS)
    weights = scores + 8 * padded(KEYS, HIGH) * WIDTH
    temporary = weights + 4 * weights_size(KEYS)
    turned = temporary + 4 * TEMPORARY
    lines = turned + 4 * LANES * wide_dim
    value_lines = lines + 2 * LISTED
    plan = value_lines + 2 * LISTED
    value_plan = plan + 4 * plan_size(2 * KEYS, dim)
    ends = value_plan + 4 * plan_size(2 * KEYS, dim)
    clean = ends + 8 * WIDTH
    end = padded(clean + 4 * KEYS * wide_dim, 64)
    return Places(
        queries, out, state, left_keys, left_values, scores, weights, temporary, turned, lines, value_lines, plan,
        value_plan, ends, clean, end,
    )  # fmt: skip


@njit(forceinline=True)
def weighted(kind):
    """The form of Vᵀ times weights. Those from bfloat16 are rounded alike, which leaves them an error of 2⁻⁹ each. The
    scores are not: rounded queries would leave an error in proportion to the score, and an exponent makes it one of
    the weight (measured: 1.2 % of an answer where scores spread by 3). Nor is anything that float16 holds."""
    return rounded(kind) if kind == BF16 else kind


@njit
def pack_queries(q, q_head, q_row, q_kind, group, here, dim, out, scale, form, lines, temporary):
    """The queries of a group, head by head, as the columns of packed blocks."""
    stand, columns = carray(words_at(lines), WIDTH), group * here
    for first in range(0, columns, WIDTH):
        count = min(WIDTH, columns - first)
        for i in range(count):
            stand[i] = q + (first + i) // here * q_head + (first + i) % here * q_row
        to = out + 4 * first // WIDTH * right_size(dim)
        pack_right(lines, q_kind, count, dim, to, scale, form, temporary)


@njit
def first_keys(at, base, row, form, dim, start, end, picked):
    """List and plan the first block of a range of keys."""
    count = min(KEYS, end - start)
    if count > 0:
        list_rows(at.lines, base, row, start, count, picked)
        plan_left(at.plan, at.lines, form, count, 0, dim, at.left_keys)


@njit
def take_keys(at, base, row, form, dim, start, end, picked, turn):
    """Pack the block of keys from `start` on, which was planned before, and plan the one after; returns where it is."""
    this, other = at.lines + turn * LISTED, at.lines + (1 - turn) * LISTED
    size, coming = 4 * left_size(KEYS, dim), max(0, min(KEYS, end - start - KEYS))
    packed, following = at.left_keys + turn * size, at.left_keys + (1 - turn) * size
    list_rows(other, base, row, start + KEYS, coming, picked)
    ready_and_plan(at.plan, this, form, min(KEYS, end - start), dim, packed, other, coming, 0, dim, following)
    return packed


@njit
def plan_values(at, base, row, kind, dim, start, end, picked, seen, first_token, last_token, turn):
    """List and plan a block of values, if there is one; returns how many hold what is no number and is hidden from
    some."""
    count, lines = min(KEYS, end - start), at.value_lines + turn * LISTED
    if count <= 0:
        return 0
    edge = at_edge(seen, first_token, last_token, start, count)
    cleaned = list_values(lines, base, row, kind, dim, start, count, picked, edge, at.clean)
    to = at.left_values + turn * 4 * left_size(dim, KEYS)
    plan_across(at.value_plan, at.plan, lines, weighted(kind), dim, count, to)
    return cleaned
