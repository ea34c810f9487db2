"""The FFN of chosen neurons on Hopper's tensor cores, their weights read where they stand.

    hidden   h (T, K) = act(W_gate[M] x) · (W_up[M] x)      two blocks for 128 neurons and 128 tokens, half of E each
    output   y (T, E) = h W_down[:, M]ᵀ                     four blocks for 128 numbers of 128 tokens, a quarter of K each

For 128 tokens the weights are as long on their way from memory as the products take, and every block needs its tokens
besides. So a block takes as many weights as its registers hold sums for, and the sum of a product is shared out among
the blocks of a cluster, which run at the same time: each leaves what it found in memory, they meet, and each adds up a
part of the result, in the order of the blocks.

In the first the weights are the rows of the product. Eight gate rows stand above the up rows of the same neurons, so
that a thread ends up with both sums of a neuron and token. In the second the tokens are the rows, and a neuron's row of
W_down is a term of the sum. As in attention (attention/hopper.py) one warpgroup copies and two multiply.

What limits it: reading the chosen weights once for every 128 tokens.
"""

from __future__ import annotations

from functools import cache

import numpy as np
from numba import cuda, float32, int64

from accel.cuda.ptx.barrier import (
    barrier_arrive,
    barrier_init,
    barrier_wait,
    fence_barriers,
    fence_shared,
    fewer_registers,
    meet_cluster,
    more_registers,
)
from accel.cuda.ptx.copy import copies_arrive, copy_four
from accel.cuda.ptx.memory import load_long, load_pair, shared_address, store_pair
from accel.cuda.ptx.numbers import exp2, narrow, reciprocal
from accel.cuda.ptx.wgmma import column_major, onto_shared, row_major, wait
from accel.cuda.runtime.arrays import F32, Array, empty
from accel.cuda.runtime.kernels import Kernel, device, kernel
from accel.cuda.runtime.tiers import FORMS
from reference.contract import ACTIVATIONS

TOKENS, NEURONS, OUTS = 128, 128, 128  # of the blocks of a cluster
STEP, ROW = 64, 128  # numbers of a row at a time, and their bytes
THREADS = 384  # two warpgroups that multiply and one that fetches
HALVES, QUARTERS = 2, 4  # blocks of a cluster
LOG2_E = np.float32(1.4426950408889634)


def gathered_ffn(x: Array, w_gate: Array, w_up: Array, down: Array, neurons: Array, act: str) -> Array:
    """x (T, E), w_gate and w_up (F, E), down (F, E), all of one 16-bit type, neurons (K,) -> (T, E) float32."""
    (tokens, width), count, form = x.shape, neurons.shape[0], FORMS[w_gate.dtype]
    groups, columns, token_tiles = -(-count // NEURONS), -(-width // OUTS), -(-tokens // TOKENS)
    hidden, out = empty((tokens, groups * NEURONS), w_gate.dtype), empty((tokens, width), F32)
    sums = empty((max(groups * HALVES * NEURONS, columns * QUARTERS * OUTS) * token_tiles * TOKENS,), F32)
    places = (w.address if n == 0 else w.strides[0] for w in (w_gate, w_up) for n in range(2))
    first, second = kernels(form)
    first[(groups * HALVES, token_tiles), THREADS](
        x.address, x.strides[0], tokens, width // STEP, *places, neurons.address, neurons.strides[0], count,
        ACTIVATIONS.index(act), sums.address, hidden,
    )  # fmt: skip
    second[(columns * QUARTERS, token_tiles), THREADS](
        hidden.address, hidden.strides[0], tokens, groups * NEURONS // STEP, down.address, down.strides[0], width,
        neurons.address, neurons.strides[0], count, sums.address, out.address, out.strides[0],
    )  # fmt: skip
    return out


@device
def _place(row, chunk):
    """Where a 16-byte chunk of a row of 128 bytes lies."""
    return row * ROW + ((chunk ^ (row & 7)) << 4)


@device
def _activation(x, act):
    """x · σ(x), or by tanh x · σ(2u) with u = √(2/π) (x + 0.044715 x³): no call, no division (see attention/tiles.py)."""
    z = x
    if act != 0:
        z = float32(1.5957691216057308) * (x + float32(0.044715) * x * x * x)
    return x * reciprocal(float32(1) + exp2(-z * LOG2_E))


@device
def _start(ready, stages, thread):
    """The barriers of a ring: `stages` full ones, and as many empty ones behind them."""
    if thread == 0:
        for stage in range(stages):
            barrier_init(ready + 8 * stage, 128)
            barrier_init(ready + 8 * (stages + stage), 8)
        fence_barriers()


@cache
def kernels(form: str) -> tuple[Kernel, Kernel]:
    """Both kernels for weights of one form."""
    WEIGHTS, X_TILE, STAGES = 2 * NEURONS, TOKENS * ROW, 4  # rows of a block; bytes of a tile
    W_TILE = WEIGHTS * ROW
    STAGE = W_TILE + X_TILE
    SUMS = TOKENS  # registers of a thread: two tiles of 64 rows, TOKENS / 2 for each
    HALF = SUMS // 2
    W_FORM, w_steps = row_major(WEIGHTS, STEP)
    X_FORM, x_steps = row_major(TOKENS, STEP)
    multiply, ended = onto_shared(2, TOKENS, 64 * ROW >> 4, w_steps, x_steps, form), wait(0, SUMS)
    X_ROWS, W_ROWS = TOKENS // 16, WEIGHTS // 16  # that a thread copies a piece of

    @kernel(name=f"hidden_wgmma_{form}", threads=THREADS, shared=1024 + STAGES * (STAGE + 16), feature="a", cluster=2)
    def hidden(x, x_row, tokens, steps, gate, gate_row, up, up_row, neurons, neuron_step, count, act, sums, out):
        rows = cuda.shared.array(WEIGHTS, np.int64)  # where each row of weights begins
        base = (shared_address(cuda.shared.array(0, dtype=np.uint8)) + 1023) & ~1023
        ready = base + STAGES * STAGE
        thread = cuda.threadIdx.x
        warp, lane = thread >> 5, thread & 31
        group, rank, token = cuda.blockIdx.x >> 1, cuda.blockIdx.x & 1, cuda.blockIdx.y * TOKENS
        first = group * NEURONS
        _start(ready, STAGES, thread)
        if thread < WEIGHTS:
            place = first + ((thread >> 4) << 3) + (thread & 7)
            neuron = load_long(neurons + min(place, count - 1) * neuron_step)
            rows[thread] = up + neuron * up_row if thread & 8 else gate + neuron * gate_row
        cuda.syncthreads()
        start = rank * ((steps + 1) >> 1)
        stop = min(start + ((steps + 1) >> 1), steps)
        if warp >= 8:
            fewer_registers()
            mine = thread & 127
            row, chunk = mine >> 3, mine & 7
            lines = cuda.local.array(X_ROWS, int64)
            for turn in range(X_ROWS):
                lines[turn] = x + min(token + turn * 16 + row, tokens - 1) * x_row + 16 * chunk
            slot, phase = 0, 1  # the first time round every buffer is empty
            step = start
            while step < stop:
                to, source = base + slot * STAGE, step * ROW
                barrier_wait(ready + 8 * (STAGES + slot), phase)
                for turn in range(W_ROWS):
                    copy_four(to + _place(turn * 16 + row, chunk), rows[turn * 16 + row] + source + 16 * chunk)
                for turn in range(X_ROWS):
                    copy_four(to + W_TILE + _place(turn * 16 + row, chunk), lines[turn] + source)
                copies_arrive(ready + 8 * slot)
                slot += 1
                if slot == STAGES:
                    slot = 0
                    phase ^= 1
                step += 1
        else:
            more_registers()
            half, mine = warp >> 2, thread & 127
            acc = cuda.local.array(SUMS, float32)
            own = cuda.local.array(HALF, float32)
            for i in range(SUMS):
                acc[i] = float32(0)
            slot, phase = 0, 0
            step = start
            while step < stop:
                barrier_wait(ready + 8 * slot, phase)
                fence_shared()
                to = base + slot * STAGE
                multiply(acc, ((to + half * 128 * ROW) >> 4) | W_FORM, ((to + W_TILE) >> 4) | X_FORM)
                ended(acc)
                if lane == 0:
                    barrier_arrive(ready + 8 * (STAGES + slot))
                slot += 1
                if slot == STAGES:
                    slot = 0
                    phase ^= 1
                step += 1
            # Of its two tiles of rows a block finishes the one of its rank, and leaves the other's sums to the other
            place = (cuda.blockIdx.y * cuda.gridDim.x + cuda.blockIdx.x) * 2 + half
            theirs = ((cuda.blockIdx.y * cuda.gridDim.x + (cuda.blockIdx.x ^ 1)) * 2 + half) * (512 * HALF)
            for i in range(HALF // 2):
                a, b, c, d = acc[2 * i], acc[2 * i + 1], acc[HALF + 2 * i], acc[HALF + 2 * i + 1]
                own[2 * i], own[2 * i + 1] = (a, b) if rank == 0 else (c, d)
                a, b = (c, d) if rank == 0 else (a, b)
                store_pair(sums + place * (512 * HALF) + 8 * (i * 128 + mine), a, b)
            meet_cluster()
            for i in range(HALF // 2):
                a, b = load_pair(sums + theirs + 8 * (i * 128 + mine))
                own[2 * i] += a
                own[2 * i + 1] += b
            n = first + ((half * 2 + rank) * 4 + (warp & 3)) * 8 + (lane >> 2)
            t0 = token + 2 * (lane & 3)
            for i in range(HALF // 2):
                g, u = own[4 * (i >> 1) + (i & 1)], own[4 * (i >> 1) + (i & 1) + 2]
                t, y = t0 + 8 * (i >> 1) + (i & 1), float32(0)
                if n < count:
                    y = _activation(g, act) * u
                if t < tokens:
                    out[t, n] = narrow(out, y)

    H_TILE, D_TILE, DEEP = TOKENS * ROW, STEP * 2 * OUTS, 6
    LEVEL, PARTS = H_TILE + D_TILE, OUTS // 2
    H_FORM, h_steps = row_major(TOKENS, STEP)
    D_FORM, d_steps = column_major(STEP)
    weigh, weighed = onto_shared(1, OUTS, 0, h_steps, d_steps, form, turned=True), wait(0, PARTS)

    @kernel(name=f"output_wgmma_{form}", threads=THREADS, shared=1024 + DEEP * (LEVEL + 16), feature="a", cluster=4)
    def output(h, h_row, tokens, steps, down, down_row, width, neurons, neuron_step, count, sums, out, out_row):
        base = (shared_address(cuda.shared.array(0, dtype=np.uint8)) + 1023) & ~1023
        ready = base + DEEP * LEVEL
        thread = cuda.threadIdx.x
        warp, lane = thread >> 5, thread & 31
        rank, token = cuda.blockIdx.x & 3, cuda.blockIdx.y * TOKENS
        column = (cuda.blockIdx.x >> 2) * OUTS
        _start(ready, DEEP, thread)
        cuda.syncthreads()
        each = (steps + 3) >> 2
        start = rank * each
        stop = min(start + each, steps)
        if warp >= 8:
            fewer_registers()
            mine = thread & 127
            row, chunk = mine >> 3, mine & 7
            lines = cuda.local.array(X_ROWS, int64)
            for turn in range(X_ROWS):
                lines[turn] = h + min(token + turn * 16 + row, tokens - 1) * h_row + 16 * chunk
            part = lane & 15  # of a row of W_down, of which a warp copies two at once
            source = down
            if column + 8 * part < width:
                source = down + 2 * column + 16 * part
            own = (warp & 3) * 16
            # A row is looked up a step before it is copied, or each would be waited for
            listed = load_long(neurons + min(start * STEP + own + part, count - 1) * neuron_step)
            slot, phase = 0, 1
            step = start
            while step < stop:
                to = base + slot * LEVEL
                following = load_long(neurons + min((step + 1) * STEP + own + part, count - 1) * neuron_step)
                barrier_wait(ready + 8 * (DEEP + slot), phase)
                for turn in range(8):
                    r = 2 * turn + (lane >> 4)
                    neuron = cuda.shfl_sync(0xFFFFFFFF, listed, r)
                    at = H_TILE + (part >> 3) * (STEP * ROW) + _place(own + r, part & 7)
                    copy_four(to + at, source + neuron * down_row)
                for turn in range(X_ROWS):
                    copy_four(to + _place(turn * 16 + row, chunk), lines[turn] + step * ROW)
                copies_arrive(ready + 8 * slot)
                listed = following
                slot += 1
                if slot == DEEP:
                    slot = 0
                    phase ^= 1
                step += 1
        else:
            more_registers()
            half, mine = warp >> 2, thread & 127
            acc = cuda.local.array(PARTS, float32)
            for i in range(PARTS):
                acc[i] = float32(0)
            slot, phase = 0, 0
            step = start
            while step < stop:
                barrier_wait(ready + 8 * slot, phase)
                fence_shared()
                to = base + slot * LEVEL
                weigh(acc, ((to + half * 64 * ROW) >> 4) | H_FORM, ((to + H_TILE) >> 4) | D_FORM)
                weighed(acc)
                if lane == 0:
                    barrier_arrive(ready + 8 * (DEEP + slot))
                slot += 1
                if slot == DEEP:
                    slot = 0
                    phase ^= 1
                step += 1
            place = sums + ((cuda.blockIdx.y * cuda.gridDim.x + cuda.blockIdx.x) * 2 + half) * (512 * PARTS)
            for i in range(PARTS // 2):
                store_pair(place + 8 * (i * 128 + mine), acc[2 * i], acc[2 * i + 1])
            meet_cluster()
            place = sums + ((cuda.blockIdx.y * cuda.gridDim.x + cuda.blockIdx.x - rank) * 2 + half) * (512 * PARTS)
            t0 = token + half * 64 + (warp & 3) * 16 + (lane >> 2)
            for i in range(PARTS // 8):
                p = rank * (PARTS // 8) + i  # a quarter of the pairs of numbers that a thread has
                a, b = float32(0), float32(0)
                for other in range(QUARTERS):
                    c, d = load_pair(place + other * (1024 * PARTS) + 8 * (p * 128 + mine))
                    a += c
                    b += d
                t, e = t0 + 8 * (p & 1), column + 8 * (p >> 1) + 2 * (lane & 3)
                if t < tokens and e < width:
                    store_pair(out + t * out_row + 4 * e, a, b)

    return hidden, output
