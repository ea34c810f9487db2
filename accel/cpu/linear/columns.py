"""Columns of a cache: written, moved and checked, a KV head's keys or values to an item."""

from __future__ import annotations

import numpy as np

from accel.cpu.linear.inverse_norms import known_rate, unit_rate
from accel.cpu.linear.rows import number_size, padded
from accel.cpu.runtime.kernels import kernel
from accel.cpu.simd import (
    BF16,
    LANES,
    bytes_at,
    carray,
    doubles_at,
    fetch_add,
    floats_at,
    load,
    load_some,
    njit,
    store,
    store_bf16,
    store_f16,
    store_some_bf16,
    store_some_f16,
    words_at,
)


@njit(forceinline=True)
def copy_bytes(source, target, count):
    """`count` bytes; the target may begin before the source, and overlap it."""
    whole = count // (4 * LANES) * (4 * LANES)
    for i in range(0, whole, 4 * LANES):
        store(target + i, load(source + i))
    if whole < count:
        rest, out = carray(bytes_at(source), count), carray(bytes_at(target), count)
        for i in range(whole, count):
            out[i] = rest[i]


@njit(forceinline=True)
def _store_row(source, kind, target, target_kind, dim):
    """A row of numbers, narrowed if it must be."""
    if kind == target_kind:
        copy_bytes(source, target, dim * number_size(kind))
        return
    for i in range(0, dim, LANES):
        left = dim - i
        if left >= LANES:
            if target_kind == BF16:
                store_bf16(target + 2 * i, load(source + 4 * i))
            else:
                store_f16(target + 2 * i, load(source + 4 * i))
        elif target_kind == BF16:
            store_some_bf16(target + 2 * i, left, load_some(source + 4 * i, left))
        else:
            store_some_f16(target + 2 * i, left, load_some(source + 4 * i, left))


@njit(forceinline=True)
def _add_direction(sums, row, kind, dim, line, sign):
    """sums += sign · the direction of a stored row, in float64."""
    rate = np.float64(sign) * np.float64(unit_rate(row, kind, dim, line))
    into, x = carray(doubles_at(sums), dim), carray(floats_at(line), dim)
    for d in range(dim):
        into[d] += rate * np.float64(x[d])


@kernel
def ascend(task, worker, table, lists, rows, size, wrong):
    """Count what is wrong with lists of columns that should ascend within 0 … size-1, so many `rows` in each of the
    arrays that the table names, with how long these are. An item is a row."""
    described = carray(words_at(table), (lists, 2))
    while True:
        item = fetch_add(task, 1)
        if item >= lists * rows:
            return
        at, count = described[item // rows]
        listed, before, found = carray(words_at(at), (rows, count))[item % rows], -1, 0
        for i in range(count):
            found += listed[i] <= before or listed[i] >= size
            before = listed[i]
        if found:
            fetch_add(wrong, found)


@kernel
def write_columns(
    task, worker, k, k_head, k_row, k_kind, v, v_head, v_row, v_kind, positions, positions_row, to_k, to_k_head,
    to_k_row, to_k_kind, to_v, to_v_head, to_v_row, to_v_kind, to_positions, to_rates, room, sums, memory, kv_heads,
    tokens, dim,
):  # fmt: skip
    """Write new keys, values and positions, what is known of each key, and their part of the sum of directions."""
    line = memory + 4 * worker * padded(dim, LANES)
    while True:
        item = fetch_add(task, 1)
        if item >= 2 * kv_heads:
            return
        kv = item // 2
        if item % 2:
            for t in range(tokens):
                _store_row(v + kv * v_head + t * v_row, v_kind, to_v + kv * to_v_head + t * to_v_row, to_v_kind, dim)
            continue
        rates = carray(floats_at(to_rates + 4 * kv * room), tokens)
        for t in range(tokens):
            row = to_k + kv * to_k_head + t * to_k_row
            _store_row(k + kv * k_head + t * k_row, k_kind, row, to_k_kind, dim)
            rates[t] = known_rate(row, to_k_kind, dim, line)
            _add_direction(sums + 8 * kv * dim, row, to_k_kind, dim, line, 1.0)
        copy_bytes(positions + kv * positions_row, to_positions + 8 * kv * room, 8 * tokens)


@kernel
def keep_columns(
    task, worker, k, k_head, k_row, k_kind, v, v_head, v_row, v_kind, rates, positions, to_positions, room, sums,
    received, heads, columns, memory, kv_heads, size, count, dim,
):  # fmt: skip
    """Move the columns that stay to the front, and the attention that they received, where there is such a list of
    every head. Positions go to `to_positions`: to another buffer where a trace may read the old one."""
    line, chosen = memory + 4 * worker * padded(dim, LANES), carray(words_at(columns), (kv_heads, count))
    group = heads // kv_heads
    while True:
        item = fetch_add(task, 1)
        if item >= 2 * kv_heads:
            return
        kv = item // 2
        if item % 2:
            _compact(v + kv * v_head, v_row, chosen[kv], count)
            continue
        following = 0
        for i in range(count + 1):  # what is forgotten leaves the sum before anything moves
            end = chosen[kv, i] if i < count else size
            for gone in range(following, end):
                _add_direction(sums + 8 * kv * dim, k + kv * k_head + gone * k_row, k_kind, dim, line, -1.0)
            following = end + 1
        _compact(k + kv * k_head, k_row, chosen[kv], count)
        held = carray(floats_at(rates + 4 * kv * room), size)
        old, new = (
            carray(words_at(positions + 8 * kv * room), size),
            carray(words_at(to_positions + 8 * kv * room), count),
        )
        for i in range(count):
            held[i] = held[chosen[kv, i]]
            new[i] = old[chosen[kv, i]]
        for head in range(kv * group, kv * group + group):
            mass = carray(doubles_at(received + 8 * head * room), size)
            for i in range(count):
                mass[i] = mass[chosen[kv, i]]


@njit
def _compact(base, row, chosen, count):
    """Move rows to the front, a run of neighbours at a time."""
    first = 0
    while first < count:
        last = first
        while last + 1 < count and chosen[last + 1] == chosen[last] + 1:
            last += 1
        if chosen[first] != first:
            copy_bytes(base + chosen[first] * row, base + first * row, (last + 1 - first) * row)
        first = last + 1
