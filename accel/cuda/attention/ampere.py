"""Attention on the tensor cores of compute capability 8.0 and later: four warps, each with rows of its own.

Rows, visibility, splits and numbers are those of hopper.py, and so are the arguments. A block has 128 rows of one KV
head (64 where D is 256), a warp 32 of them, so that what it fetches of the keys from shared memory serves two products.
Keys and values come in tiles of 32 (64 where D is 64), one tile ahead, by cp.async:

    wait for tile j, meet        copy tile j + 1        S = Q Kᵀ        m, P = softmax(S)        O = fade · O + P V

What limits it: the tensor cores, and at long last shared memory, from which every operand is fetched.
"""

from __future__ import annotations

from functools import cache

import numpy as np
from numba import cuda, float32, uint32

from accel.cuda.attention.tiles import LOWEST, bender, divide, query_reader, row_reader, sees
from accel.cuda.ptx.copy import copies_commit, copies_wait
from accel.cuda.ptx.memory import pack_bf16, pack_f16, shared_address, store_pair, store_word
from accel.cuda.ptx.mma import from_registers, from_shared, lane_columns, lane_rows
from accel.cuda.ptx.numbers import exp2, larger, reciprocal
from accel.cuda.runtime.kernels import Kernel, device, kernel

THREADS = 128


def tile_rows(dim: int) -> int:
    """Rows of a block."""
    return 64 if dim == 256 else 128


def tile_keys(dim: int) -> int:
    """Keys of a tile."""
    return 64 if dim == 64 else 32


@cache
def attend(dim: int, form: str, capped: bool) -> Kernel:
    """The kernel for one head_dim of DIMS, "bf16" or "f16" keys and values, with a soft cap or without."""
    ROWS, KEYS, PANELS = tile_rows(dim), tile_keys(dim), -(-dim // 64)
    TILES, KEY_SHIFT = ROWS // 64, KEYS.bit_length() - 1  # of 16 rows that a warp has
    TILE, Q_TILE = PANELS * KEYS * 128, PANELS * ROWS * 128  # bytes
    SHARED = 1024 + Q_TILE + 4 * TILE
    SCORES, SUMS, WORDS, STATS = TILES * KEYS // 2, TILES * dim // 2, TILES * KEYS // 4, 2 * TILES
    S_TILE, O_TILE, W_TILE = KEYS // 2, dim // 2, KEYS // 4  # registers for 16 rows
    score = from_shared(TILES, KEYS, dim, ROWS, KEYS, form)
    weigh = from_registers(TILES, dim, KEYS, KEYS, form)
    arrived = copies_wait(0)
    pack = pack_bf16 if form == "bf16" else pack_f16
    read_rows, read_queries = row_reader(dim, KEYS), query_reader(dim, form, ROWS)
    bend = bender(SCORES, capped)

    @device
    def mask(s, m, half, row0, at, head, tokens, by_group, before, held, window, bounds):
        """-∞ for scores of columns that a row does not see; `at` is the column of the thread's first."""
        t = min(divide(row0 + 16 * m + 8 * half, by_group), tokens - 1)
        lo, hi = sees(t, head, tokens, before, held, window, bounds)
        for i in range(KEYS // 8):
            for j in range(2):
                if 8 * i + j < lo - at or 8 * i + j >= hi - at:
                    s[m * S_TILE + 4 * i + 2 * half + j] = float32(-np.inf)

    @device
    def soften(s, w, o, peak, total, m, half, rate):
        """Weights of one row from its scores; what was summed before fades to the new peak."""
        x = peak[2 * m + half]
        for i in range(KEYS // 8):
            x = larger(x, larger(s[m * S_TILE + 4 * i + 2 * half], s[m * S_TILE + 4 * i + 2 * half + 1]))
        x = larger(x, cuda.shfl_xor_sync(0xFFFFFFFF, x, 1))
        x = larger(x, cuda.shfl_xor_sync(0xFFFFFFFF, x, 2))
        fade, y = exp2((peak[2 * m + half] - x) * rate), larger(x * rate, LOWEST)  # which may be -inf
        sums = total[2 * m + half] * fade
        for i in range(KEYS // 8):
            first = exp2(s[m * S_TILE + 4 * i + 2 * half] * rate - y)
            second = exp2(s[m * S_TILE + 4 * i + 2 * half + 1] * rate - y)
            sums += first + second
            w[m * W_TILE + 2 * i + half] = pack(first, second)
        peak[2 * m + half], total[2 * m + half] = x, sums
        for i in range(dim // 8):
            o[m * O_TILE + 4 * i + 2 * half] *= fade
            o[m * O_TILE + 4 * i + 2 * half + 1] *= fade

    @device
    def leave(
        o, peak, total, m, half, row0, rows, first_out, heads, group, by_group, block_row, column, splits, rate, out,
        out_wide, part, stats,
    ):  # fmt: skip
        """Write one row: its output, or what `merge` makes it of."""
        sums = total[2 * m + half]
        sums += cuda.shfl_xor_sync(0xFFFFFFFF, sums, 1)
        sums += cuda.shfl_xor_sync(0xFFFFFFFF, sums, 2)
        r = row0 + 16 * m + 8 * half
        if r < rows:
            if splits == 1:
                gain = float32(0)
                if sums != 0:
                    gain = reciprocal(sums)
                t = divide(r, by_group)
                at = (first_out + t * heads + r - t * group) * dim + column
                for i in range(dim // 8):
                    x, y = o[m * O_TILE + 4 * i + 2 * half] * gain, o[m * O_TILE + 4 * i + 2 * half + 1] * gain
                    if out_wide != 0:
                        store_pair(out + 4 * (at + 8 * i), x, y)
                    else:
                        store_word(out + 2 * (at + 8 * i), pack(x, y))
            else:
                at = block_row + r
                for i in range(dim // 8):
                    x, y = o[m * O_TILE + 4 * i + 2 * half], o[m * O_TILE + 4 * i + 2 * half + 1]
                    store_pair(part + 4 * (at * dim + 8 * i + column), x, y)
                if column == 0:
                    store_pair(stats + 8 * at, peak[2 * m + half] * rate, sums)

    @kernel(name=f"attend_{dim}_{form}{'_capped' if capped else ''}", threads=THREADS, shared=SHARED)
    def attend(
        q, q_chunk, q_head, q_token, q_wide, k, k_head, k_row, v, v_head, v_row, columns, columns_chunk, columns_head,
        kept, own, own_chunk, bounds, before, window, held, tokens, group, by_group, scale, by, splits, by_splits,
        out, out_wide, part, stats,
    ):  # fmt: skip
        base = (shared_address(cuda.shared.array(0, dtype=np.uint8)) + 1023) & ~1023
        s_k, s_v = base + Q_TILE, base + Q_TILE + 2 * TILE
        thread = cuda.threadIdx.x
        warp, lane = thread >> 5, thread & 31
        head = cuda.blockIdx.y
        chunk = divide(cuda.blockIdx.z, by_splits)
        split = cuda.blockIdx.z - chunk * splits
        rows = tokens * group
        row_tile = cuda.gridDim.x - 1 - cuda.blockIdx.x  # the longest first
        first_token = divide(row_tile * ROWS, by_group)
        last_token = min(divide(row_tile * ROWS + ROWS - 1, by_group), tokens - 1)
        lowest_lo, lowest_hi = sees(first_token, head, tokens, before, held, window, bounds)
        highest_lo, highest_hi = sees(last_token, head, tokens, before, held, window, bounds)
        every = (max(highest_hi - lowest_lo, 0) + KEYS - 1) >> KEY_SHIFT
        each = divide(every + splits - 1, by_splits)
        tiles = min(each, every - split * each)
        start = lowest_lo + split * each * KEYS

        last = np.int32(highest_hi - 1)  # what stands beyond may never have been written
        place = columns
        if columns != 0:
            place = columns + 8 * (chunk * columns_chunk + head * columns_head)
        own_start = own + chunk * own_chunk
        keys, values = k + head * k_head, v + head * v_head
        line = warp * (KEYS // 4)
        if tiles > 0:
            read_rows(s_k + 128 * line, keys, k_row, place, kept, own_start, start + line, last)
            read_rows(s_v + 128 * line, values, v_row, place, kept, own_start, start + line, last)
        copies_commit()
        read_queries(
            base, 0, ROWS, row_tile * ROWS, rows, q + chunk * q_chunk, q_head, q_token, q_wide, head, group, by_group,
            thread,
        )  # fmt: skip

        s = cuda.local.array(SCORES, float32)
        o = cuda.local.array(SUMS, float32)
        w = cuda.local.array(WORDS, uint32)
        peak = cuda.local.array(STATS, float32)  # of rows l//4 and l//4 + 8 of each tile
        total = cuda.local.array(STATS, float32)
        for i in range(SUMS):
            o[i] = float32(0)
        for i in range(STATS):
            peak[i], total[i] = LOWEST, float32(0)
        rate = float32(scale)
        row0 = row_tile * ROWS + warp * (16 * TILES) + (lane >> 2)
        column = (lane & 3) * 2
        q_at = lane_rows(base + warp * (16 * TILES * 128), lane)
        k_at, v_at = lane_columns(s_k, lane), lane_rows(s_v, lane)
        slot = 0
        at, end = start, start + tiles * KEYS
        while at < end:
            arrived()
            cuda.syncthreads()
            if at + KEYS < end:
                to, following = (slot ^ 1) * TILE + 128 * line, at + KEYS + line
                read_rows(s_k + to, keys, k_row, place, kept, own_start, following, last)
                read_rows(s_v + to, values, v_row, place, kept, own_start, following, last)
            copies_commit()
            score(s, q_at, k_at + slot * TILE)
            bend(s, by)
            if at < highest_lo or at + KEYS > lowest_hi:
                mask(s, 0, 0, row0, at + column, head, tokens, by_group, before, held, window, bounds)
                mask(s, 0, 1, row0, at + column, head, tokens, by_group, before, held, window, bounds)
                if TILES == 2:
                    mask(s, 1, 0, row0, at + column, head, tokens, by_group, before, held, window, bounds)
                    mask(s, 1, 1, row0, at + column, head, tokens, by_group, before, held, window, bounds)
            soften(s, w, o, peak, total, 0, 0, rate)
            soften(s, w, o, peak, total, 0, 1, rate)
            if TILES == 2:
                soften(s, w, o, peak, total, 1, 0, rate)
                soften(s, w, o, peak, total, 1, 1, rate)
            weigh(o, w, v_at + slot * TILE)
            slot ^= 1
            at += KEYS

        # Where the outputs of row r begin: token by token, or by parts, which are merged
        heads, block_row = cuda.gridDim.y * group, (cuda.blockIdx.z * cuda.gridDim.y + head) * rows
        first_out = chunk * tokens * heads + head * group
        leave(
            o, peak, total, 0, 0, row0, rows, first_out, heads, group, by_group, block_row, column, splits, rate,
            out, out_wide, part, stats,
        )  # fmt: skip
        leave(
            o, peak, total, 0, 1, row0, rows, first_out, heads, group, by_group, block_row, column, splits, rate,
            out, out_wide, part, stats,
        )  # fmt: skip
        if TILES == 2:
            leave(
                o, peak, total, 1, 0, row0, rows, first_out, heads, group, by_group, block_row, column, splits, rate,
                out, out_wide, part, stats,
            )  # fmt: skip
            leave(
                o, peak, total, 1, 1, row0, rows, first_out, heads, group, by_group, block_row, column, splits, rate,
                out, out_wide, part, stats,
            )  # fmt: skip

    return attend
