"""FastForward's predictor: which neurons a block of tokens will need.

    a = softmax(q_pred·Xᵀ / √E) X,   s = ReLU(a W1) W2

Both matrices are read once, in pieces of FOUR columns of PART rows, a thread for each. The blocks of W1 average their
columns of x for themselves. What the parts find is added up in their order, by every block of W2 that needs some of it,
and at the end. What limits it: the launches, then memory.
"""

from __future__ import annotations

import math
from functools import cache
from typing import Any, NamedTuple

import numpy as np
from numba import cuda, float32

from accel.cuda.ptx.numbers import wide
from accel.cuda.ptx.simulator import SIMULATED
from accel.cuda.ptx.warp import warp_sum
from accel.cuda.runtime.arrays import F32, Array, empty
from accel.cuda.runtime.kernels import Kernel, blocks, device, kernel
from accel.cuda.runtime.reduce import THREADS, WARP, block_max, block_sum
from accel.cuda.runtime.tiers import FORMS
from accel.cuda.runtime.views import to_numpy
from reference import contract
from reference import fastforward as meaning

PART = 2 if SIMULATED else 32  # rows of a matrix that a thread goes through
SHARES = THREADS // PART  # threads that add up one number of a part
MANY = 2 if SIMULATED else 512  # threads for a token
WARPS = MANY // WARP
FOUR = 4  # neighbouring columns of a thread
AHEAD = 2 if SIMULATED else 8  # numbers that a thread asks for at once, or it would wait for each
TURNS = PART // AHEAD
PIECES = FOUR * AHEAD


def predictor_scores(x: Array, predictor: Any) -> Array:
    """s from a block x (T, E) of at least one token -> (F,) float32."""
    sizes, first, second = contract.predictor_scores(x, predictor), predictor.w1, predictor.w2
    logits, out = empty((sizes["T"],), F32), empty((sizes["F"],), F32)
    hidden = empty((blocks(sizes["E"], PART), first.shape[1]), F32)
    scores = empty((blocks(hidden.shape[1], PART), sizes["F"]), F32)
    _logits[sizes["T"], MANY](x, predictor.q_pred, logits)
    grid = blocks(hidden.shape[1], FOUR * THREADS), len(hidden)
    products(_form(first)).pool[grid, THREADS](x, logits, first, first.address, first.strides[0], hidden)
    grid = blocks(sizes["F"], FOUR * THREADS), len(scores)
    products(_form(second)).multiply[grid, THREADS](hidden, second, second.address, second.strides[0], scores)
    _add_parts[blocks(sizes["F"], THREADS), THREADS](scores, out)
    return out


def _form(matrix: Array) -> str:
    """How four neighbouring numbers of a matrix are read: at once, or one by one."""
    if SIMULATED or matrix.dtype not in FORMS or matrix.strides[1] != 2 or matrix.shape[1] % FOUR:
        return "plain"
    return FORMS[matrix.dtype] if matrix.strides[0] % 8 == 0 and matrix.address % 8 == 0 else "plain"


def layer_densities(importance: Any, density: float) -> np.ndarray:
    """Each layer's share of its neurons, as `reference.layer_densities`, which has L numbers to work on: on the
    host."""
    return meaning.layer_densities(to_numpy(importance) if isinstance(importance, Array) else importance, density)


@kernel(threads=MANY)
def _logits(x, query, logits):
    memory = cuda.shared.array(WARPS, np.float32)
    asked, others = cuda.local.array(AHEAD, np.float32), cuda.local.array(AHEAD, np.float32)
    row, thread = x[cuda.blockIdx.x], cuda.threadIdx.x
    along, last = np.float32(0), row.shape[0] - 1
    i = thread
    while i <= last:
        for u in range(AHEAD):
            at = min(i + u * MANY, last)
            asked[u], others[u] = wide(row[at]), wide(query[at])
        for u in range(AHEAD):
            if i + u * MANY <= last:
                along += asked[u] * others[u]
        i += AHEAD * MANY
    along = warp_sum(along)
    if thread % WARP == 0:
        memory[thread // WARP] = along
    cuda.syncthreads()
    if thread == 0:
        for warp in range(1, WARPS):
            along += memory[warp]
        logits[cuda.blockIdx.x] = along / math.sqrt(np.float32(last + 1))


class Products(NamedTuple):
    """The kernels that go through a matrix: W1, the average of x on the way, and W2."""

    pool: Kernel
    multiply: Kernel


@cache
def products(form: str) -> Products:
    """Both for one form of matrix: "bf16", "f16", or "plain"."""
    if form == "plain":

        @device
        def read(asked, u, matrix, place, row, i, n):
            for c in range(FOUR):
                asked[FOUR * u + c] = wide(matrix[i, min(n + c, matrix.shape[1] - 1)])

    else:
        from accel.cuda.ptx.memory import load_two, unpack_bf16, unpack_f16

        unpack = unpack_bf16 if form == "bf16" else unpack_f16

        @device
        def read(asked, u, matrix, place, row, i, n):
            low, high = load_two(place + i * row + 2 * n)
            asked[FOUR * u], asked[FOUR * u + 1] = unpack(low)
            asked[FOUR * u + 2], asked[FOUR * u + 3] = unpack(high)

    @device
    def multiply_part(vector, matrix, place, row, sums):
        """This block's PART numbers times as many rows of a matrix, at the thread's columns."""
        asked, total = cuda.local.array(PIECES, float32), cuda.local.array(FOUR, float32)
        n, first = FOUR * (cuda.blockIdx.x * THREADS + cuda.threadIdx.x), cuda.blockIdx.y * PART
        last = matrix.shape[0] - 1
        for c in range(FOUR):
            total[c] = float32(0)
        if n < matrix.shape[1]:
            for turn in range(TURNS):
                for u in range(AHEAD):
                    read(asked, u, matrix, place, row, min(first + turn * AHEAD + u, last), n)
                for u in range(AHEAD):
                    for c in range(FOUR):
                        total[c] += vector[turn * AHEAD + u] * asked[FOUR * u + c]
            for c in range(FOUR):
                if n + c < matrix.shape[1]:
                    sums[cuda.blockIdx.y, n + c] = total[c]

    @kernel(name=f"pool_{form}", threads=THREADS)
    def pool(x, logits, matrix, place, row, sums):
        memory = cuda.shared.array(THREADS, np.float32)
        weights = cuda.shared.array(THREADS, np.float32)
        pooled = cuda.shared.array(PART, np.float32)
        asked = cuda.local.array(AHEAD, np.float32)
        thread, tokens = cuda.threadIdx.x, x.shape[0]
        peak, total, own = np.float32(-np.inf), np.float32(0), np.float32(0)
        t = thread
        while t < tokens:
            if not logits[t] <= peak:
                peak = logits[t]
            t += THREADS
        peak = block_max(peak, memory)
        e, share = cuda.blockIdx.y * PART + thread % PART, thread // PART
        column = x[:, min(e, x.shape[1] - 1)]
        start = 0
        while start < tokens:
            weight = np.float32(0)
            if start + thread < tokens:
                weight = math.exp(logits[start + thread] - peak)
            weights[thread] = weight
            total += weight
            cuda.syncthreads()
            for turn in range(TURNS):
                for u in range(AHEAD):
                    asked[u] = wide(column[min(start + (turn * AHEAD + u) * SHARES + share, tokens - 1)])
                for u in range(AHEAD):
                    own += weights[(turn * AHEAD + u) * SHARES + share] * asked[u]
            cuda.syncthreads()
            start += THREADS
        total = block_sum(total, memory)
        memory[thread] = own
        cuda.syncthreads()
        if thread < PART:
            for other in range(1, SHARES):
                own += memory[other * PART + thread]
            pooled[thread] = own / total if e < x.shape[1] else np.float32(0)
        cuda.syncthreads()
        multiply_part(pooled, matrix, place, row, sums)

    @kernel(name=f"multiply_{form}", threads=THREADS)
    def multiply(given, matrix, place, row, sums):
        memory = cuda.shared.array(THREADS, np.float32)
        vector = cuda.shared.array(PART, np.float32)
        asked = cuda.local.array(AHEAD, np.float32)
        thread, parts = cuda.threadIdx.x, given.shape[0]
        r, own = cuda.blockIdx.y * PART + thread % PART, np.float32(0)
        i = min(r, matrix.shape[0] - 1)
        p = thread // PART
        while p < parts:
            for u in range(AHEAD):
                asked[u] = given[min(p + u * SHARES, parts - 1), i]
            for u in range(AHEAD):
                if p + u * SHARES < parts:
                    own += asked[u]
            p += AHEAD * SHARES
        memory[thread] = own
        cuda.syncthreads()
        if thread < PART:
            for share in range(1, SHARES):
                own += memory[share * PART + thread]
            vector[thread] = max(own, np.float32(0)) if r < matrix.shape[0] else np.float32(0)
        cuda.syncthreads()
        multiply_part(vector, matrix, place, row, sums)

    return Products(pool, multiply)


@kernel
def _add_parts(sums, out):
    n = cuda.blockIdx.x * cuda.blockDim.x + cuda.threadIdx.x
    if n < out.shape[0]:
        last = sums.shape[0] - 1
        total = np.float32(0)
        part = 0
        while part <= last:
            for u in range(AHEAD):
                x = sums[min(part + u, last), n]
                if part + u <= last:
                    total += x
            part += AHEAD
        out[n] = total
