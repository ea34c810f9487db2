"""KeyDiff's two readings of keys of 16 bits, in pieces of 16 bytes: what a GPU needs to read as fast as its memory is.

A key of D numbers is D/8 pieces, one for each of as many neighbouring threads, and a warp reads 32 · 8 / D keys at a
time. A thread asks for the pieces of AHEAD keys before it looks at the first.

    sum      a block adds up its part of the keys, every thread its own eight numbers, and then the threads of a piece
    score    a block adds up the parts, in float64, and makes a of them, while its first keys are on their way; then
             the threads of a key pass each other what they found of k · a

What limits it: memory; with few keys the two launches.
"""

from __future__ import annotations

from functools import cache

import numpy as np
from numba import cuda, float32, float64, uint32

from accel.cuda.linear.inverse_norms import rate_of
from accel.cuda.ptx.memory import load_four, load_real, store_real, unpack_bf16, unpack_f16
from accel.cuda.ptx.simulator import SIMULATED
from accel.cuda.ptx.warp import warp_sum
from accel.cuda.runtime.arrays import BF16, F16, Array
from accel.cuda.runtime.device import machine
from accel.cuda.runtime.kernels import Kernel, device, kernel

FORMS = {BF16: "bf16", F16: "f16"}
THREADS = 256
AHEAD = 4  # keys
WORDS = 4 * AHEAD
TURNS = 4  # of AHEAD keys for every thread of a scoring block
BLOCKS = 4  # of them on each multiprocessor
PARTS = 8  # sums that a thread asks for at once
WARPS = THREADS // 32


def fits(k: Array) -> bool:
    """Whether keys lie so that they can be read in such pieces."""
    whole = k.address % 16 == 0 and all(stride % 16 == 0 for stride in k.strides[:-1])
    return not SIMULATED and k.dtype in FORMS and whole and k.strides[-1] == 2 and k.shape[2] in range(8, 257, 8)


def sum_keys(k: Array, rates: Array, raw: bool, each: int, sums: Array) -> None:
    """Σ k̂_j, or Σ k_j, over parts of `each` keys -> sums (P, KV, D) float64."""
    added, _, _ = kernels(k.shape[2], FORMS[k.dtype])
    places = k.address, k.strides[0], k.strides[1], rates.address, rates.strides[0]
    added[sums.shape[:2], THREADS](*places, k.shape[1], int(raw), each, sums)


def score_keys(k: Array, rates: Array, sums: Array, scores: Array) -> None:
    """-k̂_i · a with a the direction of Σ_p sums (P, KV, D) -> scores (KV, S)."""
    _, scored, keys = kernels(k.shape[2], FORMS[k.dtype])
    places = k.address, k.strides[0], k.strides[1], rates.address, rates.strides[0], k.shape[1]
    most = max(1, BLOCKS * machine().processors // k.shape[0])  # each adds up the parts
    grid = min(-(-k.shape[1] // keys), most), k.shape[0]
    scored[grid, THREADS](*places, sums, scores.address, scores.strides[0])


@cache
def kernels(dim: int, form: str) -> tuple[Kernel, Kernel, int]:
    """Both kernels for a head_dim, and how many keys a block of the second scores."""
    PIECES = dim // 8
    WIDE = 1 << (PIECES - 1).bit_length()  # threads that share a key
    SHIFT, AT_ONCE = WIDE.bit_length() - 1, THREADS // WIDE  # keys that a block reads at once
    SUMS, KEYS, SHARES = AT_ONCE * dim, AT_ONCE * AHEAD * TURNS, THREADS // dim
    unpack = unpack_bf16 if form == "bf16" else unpack_f16

    @device
    def read(words, keys, k_row, j, last):
        """The pieces of AHEAD keys from j on, AT_ONCE apart; the last one's for those beyond."""
        for u in range(AHEAD):
            a, b, c, d = load_four(keys + min(j + u * AT_ONCE, last) * k_row)
            words[4 * u], words[4 * u + 1], words[4 * u + 2], words[4 * u + 3] = a, b, c, d

    @kernel(name=f"sum_{dim}_{form}", threads=THREADS)
    def add(k, k_head, k_row, rates, rates_head, size, raw, each, sums):
        shared = cuda.shared.array(SUMS, np.float64)
        words = cuda.local.array(WORDS, uint32)
        total = cuda.local.array(8, float64)
        part, head, thread = cuda.blockIdx.x, cuda.blockIdx.y, cuda.threadIdx.x
        piece, own = thread & (WIDE - 1), thread >> SHIFT
        keys, lengths = k + head * k_head + 16 * min(piece, PIECES - 1), rates + head * rates_head
        stop = min((part + 1) * each, size)
        for n in range(8):
            total[n] = 0.0
        j = part * each + own
        while j < stop:
            read(words, keys, k_row, j, stop - 1)
            for u in range(AHEAD):
                rate = load_real(lengths + 4 * min(j + u * AT_ONCE, stop - 1))
                if raw != 0:
                    rate = float32(1)
                if j + u * AT_ONCE >= stop:
                    rate = float32(0)
                for n in range(4):
                    low, high = unpack(words[4 * u + n])
                    total[2 * n] += float64(low * rate)
                    total[2 * n + 1] += float64(high * rate)
            j += AHEAD * AT_ONCE
        if piece < PIECES:
            for n in range(8):
                shared[own * dim + 8 * piece + n] = total[n]
        cuda.syncthreads()
        d = thread
        while d < dim:
            whole = 0.0
            for n in range(AT_ONCE):
                whole += shared[n * dim + d]
            sums[part, head, d] = whole
            d += THREADS

    @device
    def make_anchor(sums, head, shared, squares, towards):
        """The unit vector along the sum of all parts of a head -> towards."""
        thread, total = cuda.threadIdx.x, 0.0
        share, d, parts = thread // dim, thread % dim, sums.shape[0]
        part = share
        while part < parts and share < SHARES:
            for u in range(PARTS):
                x = sums[min(part + u * SHARES, parts - 1), head, d]
                if part + u * SHARES < parts:
                    total += x
            part += PARTS * SHARES
        shared[thread] = total
        cuda.syncthreads()
        if thread < dim:
            for other in range(1, SHARES):
                total += shared[other * dim + thread]
        else:
            total = 0.0
        square = warp_sum(total * total)
        if thread % 32 == 0:
            squares[thread // 32] = square
        cuda.syncthreads()
        square = 0.0
        for warp in range(WARPS):
            square += squares[warp]
        if thread < dim:
            towards[thread] = total * rate_of(square)
        cuda.syncthreads()

    @kernel(name=f"score_{dim}_{form}", threads=THREADS)
    def score(k, k_head, k_row, rates, rates_head, size, sums, scores, scores_head):
        shared = cuda.shared.array(THREADS, np.float64)
        squares = cuda.shared.array(WARPS, np.float64)
        towards = cuda.shared.array(dim, np.float32)
        words = cuda.local.array(WORDS, uint32)
        anchor = cuda.local.array(8, float32)
        head, thread = cuda.blockIdx.y, cuda.threadIdx.x
        piece, own = thread & (WIDE - 1), thread >> SHIFT
        place = min(piece, PIECES - 1)
        keys = k + head * k_head + 16 * place
        j = cuda.blockIdx.x * KEYS + own
        read(words, keys, k_row, j, size - 1)
        make_anchor(sums, head, shared, squares, towards)
        for n in range(8):
            anchor[n] = towards[8 * place + n]
            if piece >= PIECES:
                anchor[n] = float32(0)
        turn = 0
        while j - own < size:
            for u in range(AHEAD):
                along = float32(0)
                for n in range(4):
                    low, high = unpack(words[4 * u + n])
                    along += low * anchor[2 * n] + high * anchor[2 * n + 1]
                for n in range(SHIFT):
                    along += cuda.shfl_xor_sync(0xFFFFFFFF, along, WIDE >> (n + 1))
                i = j + u * AT_ONCE
                if piece == 0 and i < size:
                    rate = load_real(rates + head * rates_head + 4 * i)
                    store_real(scores + head * scores_head + 4 * i, -along * rate)
            turn += 1
            j += AHEAD * AT_ONCE
            if turn == TURNS:
                turn = 0
                j += (cuda.gridDim.x - 1) * KEYS
            read(words, keys, k_row, j, size - 1)

    return add, score, KEYS
