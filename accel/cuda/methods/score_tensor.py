"""QUOKA's scores on tensor cores: every key against the slots of all chunks of a pass, in one reading.

    s_cj = rate_j · max over the slots n of chunk c of q̄_cn · k_j

A block has four warps, one warpgroup to wgmma. It holds the slots of one KV head in shared memory and goes through its
share of the keys in tiles of 64, copied a few tiles ahead: the keys are the rows of the product, the slots its columns.
A thread then has two keys and two neighbouring slots of every eight; the best of a chunk's is found among its own and
three shuffles.

What limits it: reading the keys.
"""

from __future__ import annotations

from functools import cache

import numpy as np
from numba import cuda, float32, uint32

from accel.cuda.ptx import mma
from accel.cuda.ptx.barrier import fence_shared
from accel.cuda.ptx.copy import copies_commit, copies_wait, copy_four
from accel.cuda.ptx.memory import load_four, load_real, shared_address, store_real, store_shared_four
from accel.cuda.ptx.numbers import larger
from accel.cuda.ptx.wgmma import from_shared, row_major, wait
from accel.cuda.runtime.kernels import Kernel, device, kernel

KEYS = 64
THREADS = 128
MOST_SHARED, LEAST_SHARED = 110 * 1024, 99 * 1024  # two blocks a Hopper multiprocessor; the most of any other's block


@cache
def score(dim: int, form: str, chunks: int, places: int, wgmma: bool) -> Kernel:
    """The kernel for so many chunks of so many slots each, a multiple of eight, by wgmma or else mma.sync."""
    N, PANELS = chunks * places, -(-dim // 64)
    TILE, SLOTS = PANELS * KEYS * 128, PANELS * N * 128  # bytes
    STAGES = max(2, min(6, ((MOST_SHARED if wgmma else LEAST_SHARED) - 1024 - SLOTS) // TILE))
    SHARED = 1024 + SLOTS + STAGES * TILE
    CHUNKS = dim // 8  # of 16 bytes in a row
    WIDE = 1 << (CHUNKS - 1).bit_length()  # threads that share a row
    SHIFT, AT_ONCE = WIDE.bit_length() - 1, THREADS // WIDE
    ACC, BEST, EIGHTS = N // 2, 2 * chunks, places // 8
    if wgmma:
        K_FORM, k_steps = row_major(KEYS, dim)
        S_FORM, s_steps = row_major(N, dim)
        product, done = from_shared(N, k_steps, s_steps, form), wait(0, ACC)

        @device
        def multiply(acc, tile, slots, warp, lane):
            product(acc, (tile >> 4) | K_FORM, (slots >> 4) | S_FORM)

        @device
        def ended(acc):
            done(acc)

        @device
        def written():
            fence_shared()

    else:
        product = mma.from_shared(1, N, dim, KEYS, N, form)

        @device
        def multiply(acc, tile, slots, warp, lane):
            product(acc, mma.lane_rows(tile + warp * 2048, lane), mma.lane_columns(slots, lane))

        @device
        def ended(acc):
            pass

        @device
        def written():
            pass

    arrived = copies_wait(STAGES - 2)

    @device
    def read_keys(to, source, row_bytes, first, last, thread):
        """Copy KEYS rows from column `first` on, those beyond `last` as `last`."""
        chunk = thread & (WIDE - 1)
        if chunk < CHUNKS:
            for turn in range(KEYS // AT_ONCE):
                row = turn * AT_ONCE + (thread >> SHIFT)
                at = (chunk >> 3) * (KEYS * 128) + row * 128 + (((chunk & 7) ^ (row & 7)) << 4)
                copy_four(to + at, source + min(first + row, last) * row_bytes + chunk * 16)

    @kernel(
        name=f"score_{dim}_{form}_{chunks}_{places}_{'wgmma' if wgmma else 'mma'}", threads=THREADS, shared=SHARED,
        feature="a" if wgmma else "",
    )  # fmt: skip
    def score(
        means, means_head, count, k, k_head, k_row, rates, rates_head, size, tiles, each, scores, scores_chunk,
        scores_head,
    ):  # fmt: skip
        base = (shared_address(cuda.shared.array(0, dtype=np.uint8)) + 1023) & ~1023
        s_slots, s_k = base, base + SLOTS
        thread = cuda.threadIdx.x
        warp, lane = thread >> 5, thread & 31
        head = cuda.blockIdx.y
        keys = k + head * k_head
        first = cuda.blockIdx.x * each
        stop = min(first + each, tiles)
        item = thread
        while item < N * WIDE:
            row, c = item >> SHIFT, item & (WIDE - 1)
            if c < CHUNKS:
                a, b, x, y = uint32(0), uint32(0), uint32(0), uint32(0)
                if row < count * places:
                    a, b, x, y = load_four(means + head * means_head + row * (dim * 2) + 16 * c)
                store_shared_four(s_slots + (c >> 3) * (N * 128) + row * 128 + (((c & 7) ^ (row & 7)) << 4), a, b, x, y)
            item += THREADS
        for stage in range(STAGES - 1):
            if first + stage < stop:
                read_keys(s_k + stage * TILE, keys, k_row, (first + stage) * KEYS, size - 1, thread)
            copies_commit()
        acc, best = cuda.local.array(ACC, float32), cuda.local.array(BEST, float32)
        slot, ahead = 0, STAGES - 1
        n = first
        while n < stop:
            arrived()
            written()
            cuda.syncthreads()
            if n + STAGES - 1 < stop:
                read_keys(s_k + ahead * TILE, keys, k_row, (n + STAGES - 1) * KEYS, size - 1, thread)
            copies_commit()
            multiply(acc, s_k + slot * TILE, s_slots, warp, lane)
            j0 = n * KEYS + warp * 16 + (lane >> 2)
            rate0 = load_real(rates + head * rates_head + 4 * min(j0, size - 1))
            rate1 = load_real(rates + head * rates_head + 4 * min(j0 + 8, size - 1))
            ended(acc)
            # Loops so short that their indices become constants, or the sums would not stay in registers
            for i in range(N // 8):
                one, other = 2 * (i // EIGHTS), 2 * (i // EIGHTS) + 1
                if i % EIGHTS == 0:
                    best[one], best[other] = acc[4 * i], acc[4 * i + 2]
                best[one] = larger(best[one], larger(acc[4 * i], acc[4 * i + 1]))
                best[other] = larger(best[other], larger(acc[4 * i + 2], acc[4 * i + 3]))
            for i in range(2 * chunks):
                best[i] = larger(best[i], cuda.shfl_xor_sync(0xFFFFFFFF, best[i], 1))
                best[i] = larger(best[i], cuda.shfl_xor_sync(0xFFFFFFFF, best[i], 2))
            for i in range(2 * chunks):
                chunk, j = i >> 1, j0 + 8 * (i & 1)
                if (lane & 3) == (chunk & 3) and chunk < count and j < size:
                    rate = rate1 if i & 1 else rate0
                    store_real(scores + chunk * scores_chunk + head * scores_head + 4 * j, best[i] * rate)
            slot += 1
            if slot == STAGES:
                slot = 0
            ahead += 1
            if ahead == STAGES:
                ahead = 0
            n += 1

    return score
