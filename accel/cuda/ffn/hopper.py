"""The FFN of chosen neurons on Hopper's tensor cores, their weights read where they stand.

    hidden   h (T, K) = act(W_gate[M] x) · (W_up[M] x)    a block for up to 64 neurons and 128 tokens
    output   y (T, E) = h W_down[:, M]ᵀ                   four blocks for 128 numbers of 128 tokens, a quarter of K each
    add      y                                            their sums, in the order of the blocks

In the first the weights are the rows of the product: eight gate rows stand above the up rows of the same neurons, so
that a thread ends up with both sums of a neuron and token. In the second the tokens are, and a neuron's row of W_down
is a term of the sum. As in attention (attention/hopper.py) one warpgroup copies and two multiply.

What limits it: reading the weights once for every 128 tokens; and from the second-level cache a block's tokens come
beside its weights, as many bytes again.
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
)
from accel.cuda.ptx.copy import copies_arrive, copy_four, copy_four_of_more
from accel.cuda.ptx.memory import as_real, load_four, load_long, shared_address, store_four, store_pair
from accel.cuda.ptx.numbers import exp2, narrow, reciprocal
from accel.cuda.ptx.wgmma import column_major, onto_shared, row_major, wait
from accel.cuda.runtime.arrays import F32, Array, empty
from accel.cuda.runtime.device import machine
from accel.cuda.runtime.kernels import Kernel, device, kernel
from accel.cuda.runtime.tiers import FORMS
from reference.contract import ACTIVATIONS

TOKENS, NEURONS, OUTS = 128, 64, 128  # of a block, at most
ROWS = 2 * NEURONS  # of weights
STEP, ROW = 64, 128  # numbers of a row at a time, and their bytes
SPLITS = 4  # blocks that share the neurons of a result
THREADS = 384  # two warpgroups that multiply and one that fetches
STAGES = 6  # buffers of a ring
W_TILE, T_TILE = ROWS * ROW, TOKENS * ROW  # bytes of a buffer's weights and of its tokens
STAGE = W_TILE + T_TILE
SHARED = 1024 + STAGES * (STAGE + 16)
ADDERS = 256
LOG2_E = np.float32(1.4426950408889634)


def gathered_ffn(x: Array, w_gate: Array, w_up: Array, down: Array, neurons: Array, act: str) -> Array:
    """x (T, E), w_gate and w_up (F, E), down (F, E), all of one 16-bit type, neurons (K,) -> (T, E) float32."""
    (tokens, width), count, form = x.shape, neurons.shape[0], FORMS[w_gate.dtype]
    columns, token_tiles = -(-width // OUTS), -(-tokens // TOKENS)
    waves = -(-count // (NEURONS * machine().processors))
    each = 8 * -(-count // (8 * waves * machine().processors))  # neurons of a block, so that none is left without
    groups, steps = -(-count // each), -(-count // STEP)
    hidden, out = empty((tokens, steps * STEP), w_gate.dtype), empty((tokens, width), F32)
    parts = empty((SPLITS, tokens, width), F32)
    places = (w.address if n == 0 else w.strides[0] for w in (w_gate, w_up) for n in range(2))
    first, second = kernels(form)
    first[(groups, token_tiles), THREADS](
        x.address, x.strides[0], tokens, width // STEP, *places, neurons.address, neurons.strides[0], count, each,
        ACTIVATIONS.index(act), hidden,
    )  # fmt: skip
    second[(columns, token_tiles, SPLITS), THREADS](
        hidden.address, hidden.strides[0], tokens, steps, -(-steps // SPLITS), down.address, down.strides[0], width,
        neurons.address, neurons.strides[0], count, parts.address,
    )  # fmt: skip
    _add[-(-out.size // (4 * ADDERS)), ADDERS](parts.address, out.size, out.address)
    return out


@device
def _place(row, chunk):
    """Where a 16-byte chunk of a row of 128 bytes lies."""
    return row * ROW + ((chunk ^ (row & 7)) << 4)


@device
def _activation(x, act):
    """x · σ(x), or by tanh x · σ(2u), u = √(2/π) (x + 0.044715 x³): without a call or division (attention/tiles.py)."""
    z = x
    if act != 0:
        z = float32(1.5957691216057308) * (x + float32(0.044715) * x * x * x)
    return x * reciprocal(float32(1) + exp2(-z * LOG2_E))


@device
def _start(ready, thread):
    """The ring's barriers: full ones, and as many empty ones behind them."""
    if thread == 0:
        for stage in range(STAGES):
            barrier_init(ready + 8 * stage, 128)
            barrier_init(ready + 8 * (STAGES + stage), 8)
        fence_barriers()


@cache
def kernels(form: str) -> tuple[Kernel, Kernel]:
    """Both products' kernels for weights of one form."""
    SUMS, EACH = 64, TOKENS // 16  # registers of a thread; rows of 16 that a thread copies a piece of
    W_FORM, w_steps = row_major(ROWS, STEP)
    T_FORM, t_steps = row_major(TOKENS, STEP)
    multiply, ended = onto_shared(TOKENS, w_steps, t_steps, form), wait(0, SUMS)

    @kernel(name=f"hidden_wgmma_{form}", threads=THREADS, shared=SHARED, feature="a")
    def hidden(x, x_row, tokens, steps, gate, gate_row, up, up_row, neurons, neuron_step, count, each, act, out):
        rows = cuda.shared.array(ROWS, np.int64)  # where each row of weights begins
        base = (shared_address(cuda.shared.array(0, dtype=np.uint8)) + 1023) & ~1023
        ready = base + STAGES * STAGE
        thread = cuda.threadIdx.x
        warp, lane = thread >> 5, thread & 31
        first, token = cuda.blockIdx.x * each, cuda.blockIdx.y * TOKENS
        _start(ready, thread)
        if thread < ROWS:
            listed = min(first + ((thread >> 4) << 3) + (thread & 7), count - 1)
            neuron = load_long(neurons + listed * neuron_step)
            rows[thread] = up + neuron * up_row if thread & 8 else gate + neuron * gate_row
        cuda.syncthreads()
        if warp >= 8:
            mine = thread & 127
            row, chunk = mine >> 3, mine & 7
            lines = cuda.local.array(EACH, int64)
            for turn in range(EACH):
                lines[turn] = x + min(token + turn * 16 + row, tokens - 1) * x_row + 16 * chunk
            slot, phase = 0, 1  # the first time round every buffer is empty
            step = 0
            while step < steps:
                to, source = base + slot * STAGE, step * ROW
                barrier_wait(ready + 8 * (STAGES + slot), phase)
                for turn in range(EACH):
                    at = _place(turn * 16 + row, chunk)
                    if turn * 16 + row < 2 * each:
                        copy_four_of_more(to + at, rows[turn * 16 + row] + source + 16 * chunk)
                    copy_four(to + W_TILE + at, lines[turn] + source)
                copies_arrive(ready + 8 * slot)
                slot += 1
                if slot == STAGES:
                    slot = 0
                    phase ^= 1
                step += 1
        else:
            half = warp >> 2
            acc = cuda.local.array(SUMS, float32)
            for i in range(SUMS):
                acc[i] = float32(0)
            slot, phase = 0, 0
            step = 0
            while step < steps:
                barrier_wait(ready + 8 * slot, phase)
                fence_shared()
                to = base + slot * STAGE
                multiply(acc, ((to + half * 64 * ROW) >> 4) | W_FORM, ((to + W_TILE) >> 4) | T_FORM)
                ended(acc)
                if lane == 0:
                    barrier_arrive(ready + 8 * (STAGES + slot))
                slot += 1
                if slot == STAGES:
                    slot = 0
                    phase ^= 1
                step += 1
            n, t0, stop = first + warp * 8 + (lane >> 2), token + 2 * (lane & 3), min(first + each, count)
            for i in range(SUMS // 2):
                g, u = acc[4 * (i >> 1) + (i & 1)], acc[4 * (i >> 1) + (i & 1) + 2]
                t, y = t0 + 8 * (i >> 1) + (i & 1), _activation(g, act) * u
                if t < tokens and n < stop:
                    out[t, n] = narrow(out, y)
            n, t = count, token + thread  # to the end of the last step
            while cuda.blockIdx.x == cuda.gridDim.x - 1 and thread < TOKENS and t < tokens and n < out.shape[1]:
                out[t, n] = narrow(out, float32(0))
                n += 1

    D_FORM, d_steps = column_major(STEP)
    weigh = onto_shared(OUTS, t_steps, d_steps, form, turned=True)

    @kernel(name=f"output_wgmma_{form}", threads=THREADS, shared=SHARED, feature="a")
    def output(h, h_row, tokens, steps, each, down, down_row, width, neurons, neuron_step, count, parts):
        base = (shared_address(cuda.shared.array(0, dtype=np.uint8)) + 1023) & ~1023
        ready = base + STAGES * STAGE
        thread = cuda.threadIdx.x
        warp, lane = thread >> 5, thread & 31
        column, token, split = cuda.blockIdx.x * OUTS, cuda.blockIdx.y * TOKENS, cuda.blockIdx.z
        _start(ready, thread)
        cuda.syncthreads()
        start = split * each
        stop = min(start + each, steps)
        if warp >= 8:
            mine = thread & 127
            row, chunk = mine >> 3, mine & 7
            lines = cuda.local.array(EACH, int64)
            for turn in range(EACH):
                lines[turn] = h + min(token + turn * 16 + row, tokens - 1) * h_row + 16 * chunk
            part, own = lane & 15, (warp & 3) * 16  # of a row of W_down, of which a warp copies two at once
            source = down
            if column + 8 * part < width:
                source = down + 2 * column + 16 * part
            # A row is looked up a step before it is copied, or each would be waited for
            listed = load_long(neurons + min(start * STEP + own + part, count - 1) * neuron_step)
            slot, phase = 0, 1
            step = start
            while step < stop:
                to = base + slot * STAGE
                following = load_long(neurons + min((step + 1) * STEP + own + part, count - 1) * neuron_step)
                barrier_wait(ready + 8 * (STAGES + slot), phase)
                for turn in range(8):
                    r = 2 * turn + (lane >> 4)
                    neuron = cuda.shfl_sync(0xFFFFFFFF, listed, r)
                    at = (part >> 3) * (STEP * ROW) + _place(own + r, part & 7)
                    copy_four(to + at, source + neuron * down_row)
                for turn in range(EACH):
                    copy_four(to + W_TILE + _place(turn * 16 + row, chunk), lines[turn] + step * ROW)
                copies_arrive(ready + 8 * slot)
                listed = following
                slot += 1
                if slot == STAGES:
                    slot = 0
                    phase ^= 1
                step += 1
        else:
            half = warp >> 2
            acc = cuda.local.array(SUMS, float32)
            for i in range(SUMS):
                acc[i] = float32(0)
            slot, phase = 0, 0
            step = start
            while step < stop:
                barrier_wait(ready + 8 * slot, phase)
                fence_shared()
                to = base + slot * STAGE
                weigh(acc, ((to + W_TILE + half * 64 * ROW) >> 4) | T_FORM, (to >> 4) | D_FORM)
                ended(acc)
                if lane == 0:
                    barrier_arrive(ready + 8 * (STAGES + slot))
                slot += 1
                if slot == STAGES:
                    slot = 0
                    phase ^= 1
                step += 1
            t0 = token + warp * 16 + (lane >> 2)
            for i in range(SUMS // 2):
                t, e = t0 + 8 * (i & 1), column + 8 * (i >> 1) + 2 * (lane & 3)
                if t < tokens and e < width:
                    store_pair(parts + 4 * ((split * tokens + t) * width + e), acc[2 * i], acc[2 * i + 1])

    return hidden, output


@kernel(threads=ADDERS)
def _add(parts, size, out):
    i = 4 * (cuda.blockIdx.x * ADDERS + cuda.threadIdx.x)
    if i < size:
        a, b, c, d = float32(0), float32(0), float32(0), float32(0)
        for split in range(SPLITS):
            e, f, g, h = load_four(parts + 4 * (split * size + i))
            a += as_real(e)
            b += as_real(f)
            c += as_real(g)
            d += as_real(h)
        store_four(out + 4 * i, a, b, c, d)
