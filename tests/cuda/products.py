"""One product on a warpgroup, for the test of ptx/wgmma.py: A (64, K) and B (n, K) in bfloat16 -> A·Bᵀ (64, n)."""

from __future__ import annotations

import numpy as np
from numba import cuda, float32

from accel.cuda.ptx.barrier import fence_shared
from accel.cuda.ptx.memory import load_four, shared_address, store_shared_four
from accel.cuda.ptx.wgmma import from_shared, row_major, wait
from accel.cuda.runtime.kernels import Kernel, device, kernel


def product(dim: int, n: int) -> Kernel:
    """The kernel (address of A, address of B, out)."""
    CHUNKS, A_BYTES, B_BYTES = dim // 8, -(-dim // 64) * 64 * 128, -(-dim // 64) * n * 128
    A_FORM, a_steps = row_major(64, dim)
    B_FORM, b_steps = row_major(n, dim)
    COUNT = n // 2
    multiply, ended = from_shared(n, a_steps, b_steps, "bf16"), wait(0, COUNT)

    @device
    def bring(to, source, rows, thread):
        item = thread
        while item < rows * CHUNKS:
            row, c = item // CHUNKS, item % CHUNKS
            a, b, x, y = load_four(source + 16 * item)
            store_shared_four(to + (c >> 3) * (rows * 128) + row * 128 + (((c & 7) ^ (row & 7)) << 4), a, b, x, y)
            item += 128

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
