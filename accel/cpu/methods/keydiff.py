"""KeyDiff: the cosine of every key to the mean direction.

A cache knows the sum of its keys' directions and their lengths, and then one pass over the keys is all: a product of
each with that direction. Of keys alone, a pass before adds up the directions, every item its own range. Both read the
keys once and do little else: the memory's speed is the limit.
"""

from __future__ import annotations

import numpy as np

from accel.cpu.linear.inverse_norms import unit_rate
from accel.cpu.linear.rows import ahead, padded, product, widen
from accel.cpu.runtime.arrays import address, readable, rows
from accel.cpu.runtime.calls import Call, at_once
from accel.cpu.runtime.kernels import kernel
from accel.cpu.runtime.memory import scratch
from accel.cpu.runtime.team import THREADS
from accel.cpu.simd import F32, LANES, carray, doubles_at, fetch_add, floats_at, fma, load, splat, store
from accel.shared.lazy import Keys
from reference import contract

BLOCK = 32  # keys per block
AHEAD = 16  # rows that are fetched ahead


def keydiff_scores(k: np.ndarray | Keys, *, anchor: str = "normalised") -> np.ndarray:
    """-cos(k_i, a) with a the mean of the unit keys, or of the "raw" ones: k (KV, S, D) -> (KV, S) float32."""
    sizes = contract.keydiff_scores(k, anchor)
    kv_heads, keys, dim = sizes["KV"], sizes["S"], sizes["D"]
    scores = np.empty((kv_heads, keys), np.float32)
    if scores.size == 0:
        return scores
    held, rates, sums = (k.held, k.rates, k.sums) if isinstance(k, Keys) else (readable(k), None, None)
    memory = scratch.take(floats_needed(dim))
    if sums is None or anchor != "normalised":
        parts, span = _shares(kv_heads, keys)
        added = np.zeros((parts, kv_heads, padded(dim, LANES)), np.float32)
        shape = kv_heads, keys, dim, parts, span
        _add_up(*rows(held), address(added), address(memory), *shape, int(anchor == "normalised"))
        sums = added.sum(axis=0, dtype=np.float64)[:, :dim].copy()
    score_against(at_once, held, rates, sums, scores, memory)
    scratch.give(memory)
    return scores


def score_against(
    call: Call, k: np.ndarray, rates: np.ndarray | None, sums: np.ndarray, scores: np.ndarray, memory: np.ndarray
) -> None:
    """scores (KV, S) = -cos(k_i, sum) of keys k (KV, S, D), their inverse lengths (KV, S) and sums (KV, D) float64."""
    known = (0, 0) if rates is None else (address(rates), rates.strides[0])
    shares = _shares(*k.shape[:2])
    call(_against, *rows(k), *known, address(sums), address(scores), address(memory), *k.shape, *shares)


def floats_needed(dim: int) -> int:
    """Memory that all workers need."""
    return (BLOCK + 1) * (padded(dim, LANES) + 1) * THREADS


def _shares(kv_heads: int, keys: int) -> tuple[int, int]:
    """Ranges of keys that a head's are shared out to, and keys in each."""
    parts = min(-(-4 * THREADS // kv_heads), -(-keys // 256))
    return parts, -(-keys // parts)


@kernel
def _add_up(task, worker, k, k_head, k_row, k_kind, sums, memory, kv_heads, keys, dim, parts, span, normalised):
    wide_dim = padded(dim, LANES)
    lines = memory + 4 * worker * (BLOCK + 1) * (wide_dim + 1)
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
def _against(
    task, worker, k, k_head, k_row, k_kind, known, known_head, sums, scores, memory, kv_heads, keys, dim, parts,
    span,
):  # fmt: skip
    wide_dim = padded(dim, LANES)
    line = memory + 4 * worker * (BLOCK + 1) * (wide_dim + 1)
    towards = line + 4 * wide_dim
    direction = carray(floats_at(towards), wide_dim)
    found, whole = carray(floats_at(scores), (kv_heads, keys)), k_kind == F32 and dim == wide_dim
    while True:
        item = fetch_add(task, 1)
        if item >= kv_heads * parts:
            return
        part, kv = item % parts, item // parts
        total, peak, squares = carray(doubles_at(sums + 8 * kv * dim), dim), 0.0, 0.0
        for d in range(dim):
            peak = max(peak, abs(total[d]))
        for d in range(dim):
            squares += (total[d] / peak) ** 2 if peak else 0.0
        direction[:] = 0.0
        for d in range(dim):  # the sum points where the mean does
            direction[d] = total[d] / peak / np.sqrt(squares) if peak else 0.0
        rates = carray(floats_at((known or scores) + kv * known_head), keys)
        for s in range(part * span, min(part * span + span, keys)):
            row = k + kv * k_head + s * k_row
            ahead(row + AHEAD * k_row, k_kind, dim)
            at, rate = row, np.float32(np.nan)
            if known:
                rate = rates[s]
            if rate != rate:
                rate, at = unit_rate(row, k_kind, dim, line), line
            elif not whole:
                widen(row, k_kind, dim, line, 1.0)
                at = line
            found[kv, s] = -product(at, towards, wide_dim) * rate
