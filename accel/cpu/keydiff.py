"""KeyDiff: the cosine of every key to the mean direction, in two passes over the keys.

The first pass adds up unit keys, every item its own range, and the ranges' sums are joined; the second takes each key's
product with that direction and its own length in one go. Both read the keys once and do little else: the
memory's speed is the limit, and the second pass finds small caches still in the processor's own.
"""

from __future__ import annotations

import numpy as np
from numba import carray

from accel.cpu.attention import product
from accel.cpu.blocks import ahead, padded, widen
from accel.cpu.compiled import THREADS, kernel
from accel.cpu.memory import scratch
from accel.cpu.quoka import AHEAD, BLOCK, unit_rate
from accel.cpu.simd import LANES, fetch_add, floats_at, fma, load, splat, store, unpack
from accel.cpu.views import address, readable, rows
from reference.checks import match, one_of
from reference.keydiff import ANCHORS
from reference.similarity import unit


def keydiff_scores(k: np.ndarray, *, anchor: str = "normalised") -> np.ndarray:
    """-cos(k_i, a) with a the mean of the unit keys, or of the "raw" ones: k (KV, S, D) -> (KV, S) float32."""
    sizes = match(k=(k, "KV S D"))
    one_of("anchor", anchor, ANCHORS)
    kv_heads, keys, dim = sizes["KV"], sizes["S"], sizes["D"]
    scores = np.empty((kv_heads, keys), np.float32)
    if scores.size == 0:
        return scores
    k = readable(k)
    wide_dim = padded(dim, LANES)
    parts = min(-(-8 * THREADS // kv_heads), -(-keys // 64))
    span = -(-keys // parts)
    sums = np.zeros((parts, kv_heads, wide_dim), np.float32)
    memory = scratch.take(BLOCK * (wide_dim + 1) * THREADS)
    shape = address(memory), kv_heads, keys, dim, parts, span
    _add_up(*rows(k), address(sums), *shape, int(anchor == "normalised"))
    towards = np.ascontiguousarray(unit(sums.sum(axis=0, dtype=np.float64)), np.float32)  # (KV, wide_dim)
    _against(*rows(k), address(towards), address(scores), *shape)
    scratch.give(memory)
    return scores


@kernel
def _add_up(task, worker):
    (k, k_head, k_row, k_kind, sums, memory, kv_heads, keys, dim, parts, span, normalised) = unpack(task + 8, 12)
    wide_dim = padded(dim, LANES)
    lines = memory + 4 * worker * BLOCK * (wide_dim + 1)
    rates = carray(floats_at(lines + 4 * BLOCK * wide_dim), BLOCK)
    while True:
        item = fetch_add(task, 1)
        if item >= kv_heads * parts:
            return
        part, kv = item % parts, item // parts
        out, end = sums + 4 * (part * kv_heads + kv) * wide_dim, min(part * span + span, keys)
        for start in range(part * span, end, BLOCK):
            count = min(BLOCK, end - start)
            for i in range(count):
                source, line = k + kv * k_head + (start + i) * k_row, lines + 4 * i * wide_dim
                rates[i] = unit_rate(source, k_kind, dim, line)
                ahead(source + AHEAD * k_row, k_kind, dim)
                if not normalised:
                    widen(source, k_kind, dim, line, 1.0)
                    rates[i] = 1.0
            for d in range(0, wide_dim, LANES):
                added = load(out + 4 * d)
                for i in range(count):
                    added = fma(load(lines + 4 * (i * wide_dim + d)), splat(rates[i]), added)
                store(out + 4 * d, added)


@kernel
def _against(task, worker):
    (k, k_head, k_row, k_kind, towards, scores, memory, kv_heads, keys, dim, parts, span) = unpack(task + 8, 12)
    wide_dim = padded(dim, LANES)
    line = memory + 4 * worker * BLOCK * (wide_dim + 1)
    found = carray(floats_at(scores), (kv_heads, keys))
    while True:
        item = fetch_add(task, 1)
        if item >= kv_heads * parts:
            return
        part, kv = item % parts, item // parts
        for s in range(part * span, min(part * span + span, keys)):
            row = k + kv * k_head + s * k_row
            rate = unit_rate(row, k_kind, dim, line)
            ahead(row + AHEAD * k_row, k_kind, dim)
            found[kv, s] = -product(line, towards + 4 * kv * wide_dim, wide_dim) * rate
