"""Attention on Hopper's tensor cores: one block for 128 rows of one KV head, over a range of its keys.

Rows. The G query heads of a group read the same keys, so they are folded into the rows, token by token: row t·G + g.
128 rows are 128/G tokens, and a chunk of 128 tokens with G = 4 is four blocks for each KV head.

Roles. A block has three warpgroups. The third fetches: keys and values come in tiles of 128 (64 where D is 256)
through a ring of buffers in shared memory, rows whole (each a full line of memory), where they stand: contiguous, or
at the columns that a selection chose with the chunk's own after them. The other two multiply, 64 rows each, with the
registers that the third gives up. They meet it at mbarriers, two for each buffer. Of one another they know whose turn
it is: one asks for products while the other has its softmax, or both would, and then none.

Overlap. A warpgroup asks for the scores of the next tile and for the weighted values of this one, and while the tensor
cores work on the latter it takes the softmax of the former:

    S' = Q K[j+1]ᵀ  asked        O += P V[j]  asked        wait for S'        m, P' = softmax(S')        wait for O

Visibility. Positions ascend along T and S, so what a query sees is a range lo ≤ column < hi, and both ends grow with
t. It is given by `bounds`, or follows from where the chunk stands. Only tiles that cross an end are masked, and what
no row of the block can see is not fetched.

Numbers. Scores and sums in float32, weights rounded to the keys' 16-bit form, exp2 of scores times scale · log₂ e. A
soft cap c makes a kernel of its own: the scores become tanh(q·k · scale / c), and exp2 takes them times c · log₂ e.
With few blocks the keys are split between several, each of which leaves its sums, peak and output for `merge`.

What limits it: the tensor cores where rows are many; for a few rows the reading of the keys.
"""

from __future__ import annotations

from functools import cache

import numpy as np
from numba import cuda, float32, uint32

from accel.cuda.attention.tiles import LOWEST, bender, divide, query_reader, row_reader, sees
from accel.cuda.ptx.barrier import (
    announce,
    barrier_arrive,
    barrier_init,
    barrier_wait,
    fence_barriers,
    fence_shared,
    fewer_registers,
    meet,
    more_registers,
)
from accel.cuda.ptx.copy import copies_arrive
from accel.cuda.ptx.memory import pack_bf16, pack_f16, shared_address, store_pair, store_word
from accel.cuda.ptx.numbers import exp2, larger, reciprocal
from accel.cuda.ptx.wgmma import column_major, from_registers, from_shared, row_major, wait
from accel.cuda.runtime.kernels import Kernel, kernel

ROWS = 128  # of a block: two warpgroups of 64
THREADS = 384  # two warpgroups that multiply and one that fetches
MOST_SHARED = 227 * 1024


def tile_rows(dim: int) -> int:
    """Rows of a block."""
    return ROWS


def tile_keys(dim: int) -> int:
    """Keys of a tile."""
    return 64 if dim == 256 else 128


@cache
def attend(dim: int, form: str, capped: bool) -> Kernel:
    """The kernel for one head_dim of DIMS, "bf16" or "f16" keys and values, with a soft cap or without."""
    KEYS, PANELS = tile_keys(dim), -(-dim // 64)
    KEY_SHIFT = KEYS.bit_length() - 1
    TILE, Q_TILE = PANELS * KEYS * 128, PANELS * ROWS * 128  # bytes
    STAGES = min((MOST_SHARED - 2048 - Q_TILE) // (2 * TILE), 3)
    SHARED = 1024 + Q_TILE + 2 * STAGES * TILE + 32 * STAGES
    SCORES, SUMS, WORDS = KEYS // 2, dim // 2, KEYS // 4  # registers of a thread: scores, output, weights
    Q_FORM, q_steps = row_major(ROWS, dim)
    K_FORM, k_steps = row_major(KEYS, dim)
    V_FORM, v_steps = column_major(KEYS)
    score = from_shared(KEYS, q_steps, k_steps, form)
    weigh = from_registers(dim, v_steps, form)
    scored, weighed, ended = wait(1, SCORES), wait(0, SUMS, WORDS), wait(0, SCORES)
    pack = pack_bf16 if form == "bf16" else pack_f16
    read_rows, read_queries = row_reader(dim, KEYS), query_reader(dim, form, ROWS)
    bend = bender(SCORES, capped)

    @kernel(name=f"attend_{dim}_{form}{'_capped' if capped else ''}", threads=THREADS, shared=SHARED, feature="a")
    def attend(
        q, q_chunk, q_head, q_token, q_wide, k, k_head, k_row, v, v_head, v_row, columns, columns_chunk, columns_head,
        kept, own, own_chunk, bounds, before, window, held, tokens, group, by_group, scale, by, splits, by_splits,
        out, out_wide, part, stats,
    ):  # fmt: skip
        base = (shared_address(cuda.shared.array(0, dtype=np.uint8)) + 1023) & ~1023
        s_q, s_k, s_v = base, base + Q_TILE, base + Q_TILE + STAGES * TILE
        ready = s_v + STAGES * TILE  # barriers: keys full, values full, keys empty, values empty
        thread = cuda.threadIdx.x
        warp, lane = thread >> 5, thread & 31
        head = cuda.blockIdx.y
        chunk = divide(cuda.blockIdx.z, by_splits)
        split = cuda.blockIdx.z - chunk * splits
        rows = tokens * group
        row_tile = cuda.gridDim.x - 1 - cuda.blockIdx.x  # the longest first
        first_token = divide(row_tile * ROWS, by_group)
        last_token = min(divide(row_tile * ROWS + ROWS - 1, by_group), tokens - 1)
        if thread == 0:
            for stage in range(STAGES):
                barrier_init(ready + 8 * stage, 128)
                barrier_init(ready + 8 * (STAGES + stage), 128)
                barrier_init(ready + 8 * (2 * STAGES + stage), 8)
                barrier_init(ready + 8 * (3 * STAGES + stage), 8)
            fence_barriers()
        cuda.syncthreads()

        lowest_lo, lowest_hi = sees(first_token, head, tokens, before, held, window, bounds)
        highest_lo, highest_hi = sees(last_token, head, tokens, before, held, window, bounds)
        held = highest_hi  # what stands beyond may never have been written
        every = (max(highest_hi - lowest_lo, 0) + KEYS - 1) >> KEY_SHIFT
        each = divide(every + splits - 1, by_splits)
        tiles = min(each, every - split * each)
        start = lowest_lo + split * each * KEYS

        if warp >= 8:
            fewer_registers()
            place = columns
            if columns != 0:
                place = columns + 8 * (chunk * columns_chunk + head * columns_head)
            own_start = own + chunk * own_chunk
            keys, values = k + head * k_head, v + head * v_head
            line = (warp & 3) * (KEYS // 4)
            slot, phase = 0, 1  # the first time round every buffer is empty
            n = 0
            while n < tiles:
                at = start + n * KEYS + line
                barrier_wait(ready + 8 * (2 * STAGES + slot), phase)
                read_rows(s_k + slot * TILE + 128 * line, keys, k_row, place, kept, own_start, at, held - 1)
                copies_arrive(ready + 8 * slot)
                barrier_wait(ready + 8 * (3 * STAGES + slot), phase)
                read_rows(s_v + slot * TILE + 128 * line, values, v_row, place, kept, own_start, at, held - 1)
                copies_arrive(ready + 8 * (STAGES + slot))
                slot += 1
                if slot == STAGES:
                    slot = 0
                    phase ^= 1
                n += 1
        else:
            more_registers()
            half = warp >> 2  # the warpgroup
            first = row_tile * ROWS + half * 64
            read_queries(
                s_q, half * 64, 64, first, rows, q + chunk * q_chunk, q_head, q_token, q_wide, head, group, by_group,
                thread & 127,
            )  # fmt: skip
            fence_shared()
            meet(1 + half, 128)

            r0 = row_tile * ROWS + half * 64 + (warp & 3) * 16 + (lane >> 2)
            t0, t1 = min(divide(r0, by_group), tokens - 1), min(divide(r0 + 8, by_group), tokens - 1)
            lo0, hi0 = sees(t0, head, tokens, before, held, window, bounds)
            lo1, hi1 = sees(t1, head, tokens, before, held, window, bounds)
            column = (lane & 3) * 2

            s = cuda.local.array(SCORES, float32)
            o = cuda.local.array(SUMS, float32)
            w = cuda.local.array(WORDS, uint32)
            for i in range(SUMS):
                o[i] = float32(0)
            for i in range(WORDS):
                w[i] = uint32(0)
            m0, m1, l0, l1 = LOWEST, LOWEST, float32(0), float32(0)
            rate = float32(scale)
            q_at = ((s_q + half * 8192) >> 4) | Q_FORM
            slot, phase = 0, 0  # of the keys; the values are one tile behind
            v_slot, v_phase = 0, 0
            if half == 1:
                announce(3, 256)  # the first warpgroup may begin
            n = 0
            while n < tiles:
                barrier_wait(ready + 8 * slot, phase)
                fence_shared()
                meet(3 + half, 256)
                score(s, q_at, ((s_k + slot * TILE) >> 4) | K_FORM)
                if n > 0:
                    barrier_wait(ready + 8 * (STAGES + v_slot), v_phase)
                    fence_shared()
                    weigh(o, w, ((s_v + v_slot * TILE) >> 4) | V_FORM)
                    announce(4 - half, 256)
                    scored(s)
                else:
                    announce(4 - half, 256)
                    ended(s)
                if lane == 0:
                    barrier_arrive(ready + 8 * (2 * STAGES + slot))
                slot += 1
                if slot == STAGES:
                    slot = 0
                    phase ^= 1

                bend(s, by)
                at = start + n * KEYS
                if at < highest_lo or at + KEYS > lowest_hi:
                    a0, b0 = lo0 - at - column, hi0 - at - column
                    a1, b1 = lo1 - at - column, hi1 - at - column
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
                e0, e1 = exp2((m0 - x0) * rate), exp2((m1 - x1) * rate)
                m0, m1 = x0, x1
                # LOWEST · rate of a row that has seen nothing yet may be -inf
                y0, y1 = larger(x0 * rate, LOWEST), larger(x1 * rate, LOWEST)
                l0 *= e0
                l1 *= e1
                for i in range(KEYS // 8):
                    s[4 * i] = exp2(s[4 * i] * rate - y0)
                    s[4 * i + 1] = exp2(s[4 * i + 1] * rate - y0)
                    s[4 * i + 2] = exp2(s[4 * i + 2] * rate - y1)
                    s[4 * i + 3] = exp2(s[4 * i + 3] * rate - y1)
                    l0 += s[4 * i] + s[4 * i + 1]
                    l1 += s[4 * i + 2] + s[4 * i + 3]
                weighed(o, w)
                if n > 0:
                    if lane == 0:
                        barrier_arrive(ready + 8 * (3 * STAGES + v_slot))
                    v_slot += 1
                    if v_slot == STAGES:
                        v_slot = 0
                        v_phase ^= 1
                for i in range(dim // 8):
                    o[4 * i] *= e0
                    o[4 * i + 1] *= e0
                    o[4 * i + 2] *= e1
                    o[4 * i + 3] *= e1
                for i in range(KEYS // 8):
                    w[2 * i] = pack(s[4 * i], s[4 * i + 1])
                    w[2 * i + 1] = pack(s[4 * i + 2], s[4 * i + 3])
                n += 1
            if tiles > 0:
                barrier_wait(ready + 8 * (STAGES + v_slot), v_phase)
                fence_shared()
                weigh(o, w, ((s_v + v_slot * TILE) >> 4) | V_FORM)
                weighed(o, w)

            l0 += cuda.shfl_xor_sync(0xFFFFFFFF, l0, 1)
            l0 += cuda.shfl_xor_sync(0xFFFFFFFF, l0, 2)
            l1 += cuda.shfl_xor_sync(0xFFFFFFFF, l1, 1)
            l1 += cuda.shfl_xor_sync(0xFFFFFFFF, l1, 2)
            if splits == 1:
                g0, g1 = float32(0), float32(0)
                if l0 != 0:
                    g0 = reciprocal(l0)
                if l1 != 0:
                    g1 = reciprocal(l1)
                heads = cuda.gridDim.y * group
                z0 = divide(r0, by_group)
                z1 = divide(r0 + 8, by_group)
                p0 = ((chunk * tokens + z0) * heads + head * group + r0 - z0 * group) * dim + column
                p1 = ((chunk * tokens + z1) * heads + head * group + r0 + 8 - z1 * group) * dim + column
                for i in range(dim // 8):
                    if r0 < rows:
                        if out_wide != 0:
                            store_pair(out + 4 * (p0 + 8 * i), o[4 * i] * g0, o[4 * i + 1] * g0)
                        else:
                            store_word(out + 2 * (p0 + 8 * i), pack(o[4 * i] * g0, o[4 * i + 1] * g0))
                    if r0 + 8 < rows:
                        if out_wide != 0:
                            store_pair(out + 4 * (p1 + 8 * i), o[4 * i + 2] * g1, o[4 * i + 3] * g1)
                        else:
                            store_word(out + 2 * (p1 + 8 * i), pack(o[4 * i + 2] * g1, o[4 * i + 3] * g1))
            else:
                place = (cuda.blockIdx.z * cuda.gridDim.y + head) * rows + r0
                for i in range(dim // 8):
                    if r0 < rows:
                        store_pair(part + 4 * (place * dim + 8 * i + column), o[4 * i], o[4 * i + 1])
                    if r0 + 8 < rows:
                        store_pair(part + 4 * ((place + 8) * dim + 8 * i + column), o[4 * i + 2], o[4 * i + 3])
                if lane & 3 == 0:
                    if r0 < rows:
                        store_pair(stats + 8 * place, m0 * rate, l0)
                    if r0 + 8 < rows:
                        store_pair(stats + 8 * (place + 8), m1 * rate, l1)

    return attend
