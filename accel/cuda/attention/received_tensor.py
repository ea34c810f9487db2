"""Attention that each key receives, on tensor cores: two products of queries and keys, and no values.

    peaks    the rows are queries, all heads of a group folded as in ampere.py: each row's peak m and sum l over a part
             of the keys; `join` makes one of the parts
    mass     the rows are 128 keys, which stay in shared memory while the queries of each head pass by, 64 at a time:
             mass_j = Σ_t 2^(x_tj - m_t) / l_t,     x = rate · q·k, or rate · tanh(by · q·k) under a soft cap

so that every sum is over what one thread, or four neighbours, have in registers. Weights are float32 throughout, since
eviction is decided by the smallest of them.

What limits it: the tensor cores, and the exponentials.
"""

from __future__ import annotations

import math
from functools import cache

import numpy as np
from numba import cuda, float32

from accel.cuda.attention.tiles import LOWEST, bender, divide, factors, inverse, query_reader, row_reader, sees
from accel.cuda.ptx.copy import copies_commit, copies_wait
from accel.cuda.ptx.memory import load_real, shared_address, store_pair, store_real
from accel.cuda.ptx.mma import from_shared, lane_columns, lane_rows
from accel.cuda.ptx.numbers import exp2, larger
from accel.cuda.runtime.arrays import F32, Array, empty
from accel.cuda.runtime.device import machine
from accel.cuda.runtime.kernels import Kernel, blocks, kernel
from accel.cuda.runtime.reduce import THREADS as PORTABLE
from accel.cuda.runtime.tiers import FORMS

THREADS, ROWS, KEYS, QUERIES = 128, 64, 64, 64  # of a block; of a tile of either kernel
HELD = 128  # keys of a block of the second
ALONE = inverse(1)
AHEAD = 8  # parts that a thread looks at together


def mass(
    q: Array, k: Array, ranges: Array | None, start: int, scale: float, window: int, cap: float | None, out: Array
) -> None:
    """q (H, T, D) and k (KV, S, D) in lines, ranges (KV, T, 2) or the column of the first query's own key -> out
    (H, S)."""
    (heads, tokens, dim), (kv_heads, size, _) = q.shape, k.shape
    group = heads // kv_heads
    rows, (rate, by) = tokens * group, factors(scale, cap)
    row_tiles = -(-rows // ROWS)
    parts = max(1, min(2 * machine().processors // (row_tiles * kv_heads), -(-size // KEYS), 64))
    found, stats = empty((parts, kv_heads * rows, 2), F32), empty((kv_heads * rows, 2), F32)
    peaks, received = kernels(dim, FORMS[k.dtype], cap is not None)
    places = (
        q.address, q.strides[0], q.strides[1], int(q.dtype == F32), k.address, k.strides[0], k.strides[1],
        0 if ranges is None else ranges.address, start, window, size, tokens, group,
    )  # fmt: skip
    peaks[(row_tiles, kv_heads, parts), THREADS](*places, inverse(group), rate, by, found.address)
    _join[blocks(len(stats), PORTABLE), PORTABLE](found, stats)
    received[(-(-size // HELD), kv_heads), THREADS](*places, rate, by, stats.address, out.address, out.strides[0])


@kernel
def _join(found, stats):
    r = cuda.blockIdx.x * cuda.blockDim.x + cuda.threadIdx.x
    if r < stats.shape[0]:
        peak, total, last = np.float32(-3e38), np.float32(0), found.shape[0] - 1
        p = 0
        while p <= last:
            for u in range(AHEAD):  # asked for together, or each would be waited for
                m, weight = found[min(p + u, last), r, 0], found[min(p + u, last), r, 1]
                if weight != 0:
                    peak = max(peak, m)
            p += AHEAD
        p = 0
        while p <= last:
            for u in range(AHEAD):
                m, weight = found[min(p + u, last), r, 0], found[min(p + u, last), r, 1]
                if p + u <= last and weight != 0:
                    total += weight * math.pow(np.float32(2), m - peak)
            p += AHEAD
        if total != 0:
            total = np.float32(1) / total
        stats[r, 0], stats[r, 1] = peak, total


@cache
def kernels(dim: int, form: str, capped: bool) -> tuple[Kernel, Kernel]:
    """Both kernels for one head_dim of DIMS, "bf16" or "f16" keys, with a soft cap or without."""
    PANELS = -(-dim // 64)
    TILE, Q_TILE, HELD_TILE = PANELS * KEYS * 128, PANELS * ROWS * 128, PANELS * HELD * 128  # bytes
    SCORES, HELD_SCORES = KEYS // 2, QUERIES
    score = from_shared(1, KEYS, dim, ROWS, KEYS, form)
    score_held = from_shared(2, QUERIES, dim, HELD, QUERIES, form)
    arrived = copies_wait(0)
    read_rows, read_held = row_reader(dim, KEYS), row_reader(dim, HELD)
    read_queries, named = query_reader(dim, form, ROWS), f"{dim}_{form}{'_capped' if capped else ''}"
    bend, bend_held = bender(SCORES, capped), bender(HELD_SCORES, capped)

    @kernel(name=f"peaks_{named}", threads=THREADS, shared=1024 + Q_TILE + 2 * TILE)
    def peaks(
        q, q_head, q_token, q_wide, k, k_head, k_row, bounds, before, window, held, tokens, group, by_group, scale,
        by, found,
    ):  # fmt: skip
        base = (shared_address(cuda.shared.array(0, dtype=np.uint8)) + 1023) & ~1023
        s_k = base + Q_TILE
        thread = cuda.threadIdx.x
        warp, lane = thread >> 5, thread & 31
        row_tile, head, part, parts = cuda.blockIdx.x, cuda.blockIdx.y, cuda.blockIdx.z, cuda.gridDim.z
        rows = tokens * group
        first_token = divide(row_tile * ROWS, by_group)
        last_token = min(divide(row_tile * ROWS + ROWS - 1, by_group), tokens - 1)
        lowest_lo, lowest_hi = sees(first_token, head, tokens, before, held, window, bounds)
        highest_lo, highest_hi = sees(last_token, head, tokens, before, held, window, bounds)
        every = (max(highest_hi - lowest_lo, 0) + KEYS - 1) // KEYS
        each = (every + parts - 1) // parts
        at = lowest_lo + part * each * KEYS
        end = at + min(each, every - part * each) * KEYS
        keys, line = k + head * k_head, warp * (KEYS // 4)
        if at < end:
            read_rows(s_k + 128 * line, keys, k_row, 0, 0, 0, at + line, held - 1)
        copies_commit()
        read_queries(
            base, 0, ROWS, row_tile * ROWS, rows, q, q_head, q_token, q_wide, head, group, by_group, thread
        )  # fmt: skip
        s = cuda.local.array(SCORES, float32)
        r0 = row_tile * ROWS + warp * 16 + (lane >> 2)
        lo0, hi0 = sees(min(divide(r0, by_group), tokens - 1), head, tokens, before, held, window, bounds)
        lo1, hi1 = sees(min(divide(r0 + 8, by_group), tokens - 1), head, tokens, before, held, window, bounds)
        q_at, k_at = lane_rows(base + warp * 2048, lane), lane_columns(s_k, lane)
        column, rate = (lane & 3) * 2, float32(scale)
        m0, m1, l0, l1 = LOWEST, LOWEST, float32(0), float32(0)
        slot = 0
        while at < end:
            arrived()
            cuda.syncthreads()
            if at + KEYS < end:
                to = s_k + (slot ^ 1) * TILE + 128 * line
                read_rows(to, keys, k_row, 0, 0, 0, at + KEYS + line, held - 1)
            copies_commit()
            score(s, q_at, k_at + slot * TILE)
            bend(s, by)
            if at < highest_lo or at + KEYS > lowest_hi:
                a0, b0, a1, b1 = lo0 - at - column, hi0 - at - column, lo1 - at - column, hi1 - at - column
                for i in range(KEYS // 8):
                    for j in range(2):
                        if 8 * i + j < a0 or 8 * i + j >= b0:
                            s[4 * i + j] = float32(-np.inf)
                        if 8 * i + j < a1 or 8 * i + j >= b1:
                            s[4 * i + 2 + j] = float32(-np.inf)
            x0, x1 = m0, m1
            for i in range(KEYS // 8):
                x0 = larger(x0, larger(s[4 * i], s[4 * i + 1]))
                x1 = larger(x1, larger(s[4 * i + 2], s[4 * i + 3]))
            x0 = larger(x0, cuda.shfl_xor_sync(0xFFFFFFFF, x0, 1))
            x0 = larger(x0, cuda.shfl_xor_sync(0xFFFFFFFF, x0, 2))
            x1 = larger(x1, cuda.shfl_xor_sync(0xFFFFFFFF, x1, 1))
            x1 = larger(x1, cuda.shfl_xor_sync(0xFFFFFFFF, x1, 2))
            l0 *= exp2((m0 - x0) * rate)
            l1 *= exp2((m1 - x1) * rate)
            m0, m1 = x0, x1
            # LOWEST · rate of a row that has seen nothing yet may be -inf
            y0, y1 = larger(x0 * rate, LOWEST), larger(x1 * rate, LOWEST)
            for i in range(KEYS // 8):
                l0 += exp2(s[4 * i] * rate - y0) + exp2(s[4 * i + 1] * rate - y0)
                l1 += exp2(s[4 * i + 2] * rate - y1) + exp2(s[4 * i + 3] * rate - y1)
            slot ^= 1
            at += KEYS
        l0 += cuda.shfl_xor_sync(0xFFFFFFFF, l0, 1)
        l0 += cuda.shfl_xor_sync(0xFFFFFFFF, l0, 2)
        l1 += cuda.shfl_xor_sync(0xFFFFFFFF, l1, 1)
        l1 += cuda.shfl_xor_sync(0xFFFFFFFF, l1, 2)
        if column == 0:
            place = found + 8 * ((part * cuda.gridDim.y + head) * rows + r0)
            if r0 < rows:
                store_pair(place, m0 * rate, l0)
            if r0 + 8 < rows:
                store_pair(place + 64, m1 * rate, l1)

    @kernel(name=f"mass_{named}", threads=THREADS, shared=1024 + HELD_TILE + Q_TILE)
    def received(
        q, q_head, q_token, q_wide, k, k_head, k_row, bounds, before, window, held, tokens, group, scale, by, stats,
        out, out_head,
    ):  # fmt: skip
        peak = cuda.shared.array(QUERIES, np.float32)
        gain = cuda.shared.array(QUERIES, np.float32)
        los = cuda.shared.array(QUERIES, np.int32)
        his = cuda.shared.array(QUERIES, np.int32)
        base = (shared_address(cuda.shared.array(0, dtype=np.uint8)) + 1023) & ~1023
        s_q = base + HELD_TILE
        thread = cuda.threadIdx.x
        warp, lane = thread >> 5, thread & 31
        first, head = cuda.blockIdx.x * HELD, cuda.blockIdx.y
        line = warp * (HELD // 4)
        read_held(base + 128 * line, k + head * k_head, k_row, 0, 0, 0, first + line, held - 1)
        copies_commit()
        arrived()
        s = cuda.local.array(HELD_SCORES, float32)
        total = cuda.local.array(4, float32)
        k_at, q_at = lane_rows(base + warp * 4096, lane), lane_columns(s_q, lane)
        key, rate = first + warp * 32 + (lane >> 2), float32(scale)
        for g in range(group):
            for n in range(4):
                total[n] = float32(0)
            token = 0
            while token < tokens:
                last = min(token + QUERIES, tokens) - 1
                lowest_lo, lowest_hi = sees(token, head, tokens, before, held, window, bounds)
                highest_lo, highest_hi = sees(last, head, tokens, before, held, window, bounds)
                if highest_hi > first and lowest_lo < first + HELD:  # else none of them sees any of these keys
                    cuda.syncthreads()
                    read_queries(
                        s_q, 0, QUERIES, token, tokens, q, q_head, q_token, q_wide, head * group + g, 1, ALONE, thread
                    )  # fmt: skip
                    if thread < QUERIES:
                        t = min(token + thread, tokens - 1)
                        place = stats + 8 * ((head * tokens + t) * group + g)
                        peak[thread], gain[thread] = load_real(place), load_real(place + 4)
                        los[thread], his[thread] = sees(t, head, tokens, before, held, window, bounds)
                        if token + thread >= tokens:  # its scores are 0, and 2^(0 - peak) must not be infinite
                            peak[thread], gain[thread] = -LOWEST, float32(0)
                    cuda.syncthreads()
                    score_held(s, k_at, q_at)
                    bend_held(s, by)
                    if first < highest_lo or first + HELD > lowest_hi:
                        for i in range(QUERIES // 8):
                            for j in range(2):
                                t = 8 * i + 2 * (lane & 3) + j
                                lo, hi = los[t] - key, his[t] - key
                                for n in range(4):
                                    if 8 * n < lo or 8 * n >= hi:
                                        s[(n >> 1) * (QUERIES // 2) + 4 * i + 2 * (n & 1) + j] = float32(-np.inf)
                    for i in range(QUERIES // 8):
                        for j in range(2):
                            t = 8 * i + 2 * (lane & 3) + j
                            m, rest = peak[t], gain[t]
                            for n in range(4):
                                x = s[(n >> 1) * (QUERIES // 2) + 4 * i + 2 * (n & 1) + j]
                                total[n] += exp2(x * rate - m) * rest
                token += QUERIES
            for n in range(4):
                x = total[n]
                x += cuda.shfl_xor_sync(0xFFFFFFFF, x, 1)
                x += cuda.shfl_xor_sync(0xFFFFFFFF, x, 2)
                if lane & 3 == 0 and key + 8 * n < held:
                    store_real(out + (head * group + g) * out_head + 4 * (key + 8 * n), x)

    return peaks, received
