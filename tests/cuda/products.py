"""Kernels that do nothing but multiply, for the tests of ptx/wgmma.py and ptx/mma.py."""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import cuda, float32, uint32

from accel.cuda.ptx import mma
from accel.cuda.ptx.barrier import fence_shared
from accel.cuda.ptx.memory import load_four, pack_bf16, shared_address, store_shared_four
from accel.cuda.ptx.wgmma import from_shared, row_major, wait
from accel.cuda.runtime.kernels import Kernel, device, kernel


def bringer(CHUNKS: int, THREADS: int) -> Any:
    """The device function by which so many threads copy rows of CHUNKS 16-byte pieces to shared memory, swizzled."""

    @device
    def bring(to, source, rows, thread):
        item = thread
        while item < rows * CHUNKS:
            row, c = item // CHUNKS, item % CHUNKS
            a, b, x, y = load_four(source + 16 * item)
            store_shared_four(to + (c >> 3) * (rows * 128) + row * 128 + (((c & 7) ^ (row & 7)) << 4), a, b, x, y)
            item += THREADS

    return bring


def product(dim: int, n: int) -> Kernel:
    """One product of a warpgroup, (address of A, address of B, out): A (64, dim) and B (n, dim) -> A·Bᵀ (64, n)."""
    CHUNKS, A_BYTES, B_BYTES = dim // 8, -(-dim // 64) * 64 * 128, -(-dim // 64) * n * 128
    A_FORM, a_steps = row_major(64, dim)
    B_FORM, b_steps = row_major(n, dim)
    COUNT = n // 2
    multiply, ended = from_shared(n, a_steps, b_steps, "bf16"), wait(0, COUNT)

    bring = bringer(CHUNKS, 128)

    @kernel(name=f"product_{dim}_{n}", threads=128, shared=1024 + A_BYTES + B_BYTES, feature="a")
    def product(a, b, out):
        base = (shared_address(cuda.shared.array(0, dtype=np.uint8)) + 1023) & ~1023
        thread = cuda.threadIdx.x
        bring(base, a, 64, thread)
        bring(base + A_BYTES, b, n, thread)
        fence_shared()
        cuda.syncthreads()
        acc = cuda.local.array(COUNT, float32)
        multiply(acc, (base >> 4) | A_FORM, ((base + A_BYTES) >> 4) | B_FORM)
        ended(acc)
        row, column = (thread >> 5) * 16 + ((thread & 31) >> 2), 2 * (thread & 3)
        for i in range(n // 8):
            out[row, 8 * i + column], out[row, 8 * i + column + 1] = acc[4 * i], acc[4 * i + 1]
            out[row + 8, 8 * i + column], out[row + 8, 8 * i + column + 1] = acc[4 * i + 2], acc[4 * i + 3]

    return product


def warp_products(dim: int, n: int, tiles: int) -> Kernel:
    """Two products of one warp, for the test of ptx/mma.py: (address of A, of B, of C, first, second) with A (16·tiles,
    dim), B (n, dim) and C (n, dim) -> first = A·Bᵀ, and second = first·C from first rounded to bfloat16."""
    ROWS, CHUNKS, PANELS = 16 * tiles, dim // 8, -(-dim // 64)
    A_BYTES, B_BYTES = PANELS * ROWS * 128, PANELS * n * 128
    FIRST, WORDS, SECOND = tiles * n // 2, tiles * n // 4, tiles * dim // 2
    multiply = mma.from_shared(tiles, n, dim, ROWS, n, "bf16")
    multiply_more = mma.from_registers(tiles, dim, n, n, "bf16")

    bring = bringer(CHUNKS, 32)

    @kernel(name=f"warp_products_{dim}_{n}_{tiles}", threads=32, shared=1024 + A_BYTES + 2 * B_BYTES)
    def products(a, b, c, first, second):
        base = (shared_address(cuda.shared.array(0, dtype=np.uint8)) + 1023) & ~1023
        lane = cuda.threadIdx.x
        s_b, s_c = base + A_BYTES, base + A_BYTES + B_BYTES
        bring(base, a, ROWS, lane)
        bring(s_b, b, n, lane)
        bring(s_c, c, n, lane)
        cuda.syncthreads()
        acc = cuda.local.array(FIRST, float32)
        w = cuda.local.array(WORDS, uint32)
        more = cuda.local.array(SECOND, float32)
        multiply(acc, mma.lane_rows(base, lane), mma.lane_columns(s_b, lane))
        for i in range(SECOND):
            more[i] = float32(0)
        for i in range(WORDS):
            w[i] = pack_bf16(acc[2 * i], acc[2 * i + 1])
        multiply_more(more, w, mma.lane_rows(s_c, lane))
        for i in range(FIRST):
            m, block, part = i // (n // 2), i % (n // 2) // 4, i % 4
            first[16 * m + lane // 4 + part // 2 * 8, 8 * block + lane % 4 * 2 + part % 2] = acc[i]
        for i in range(SECOND):
            m, block, part = i // (dim // 2), i % (dim // 2) // 4, i % 4
            second[16 * m + lane // 4 + part // 2 * 8, 8 * block + lane % 4 * 2 + part % 2] = more[i]

    return products
