"""The FFN of chosen neurons on tensor cores, their weights read where they stand: nothing is gathered before.

    hidden   h (T, K) = act(W_gate[M] x) · (W_up[M] x)      a block for 64 neurons and 128 tokens
    output   y (T, E) = h W_down[:, M]ᵀ                     a block for 32 numbers of 128 tokens

In the first the neurons are the rows of the product: a warp has the gate's rows of 16 neurons above the up's rows of
the same, so that a thread ends up with both sums of a neuron and token. In the second the tokens are, and a neuron's
row of W_down is a term of the sum. W_down lies neuron by neuron. Rows come in tiles of 64 numbers a few tiles ahead, by
cp.async; rows of h are padded with zeros to whole tiles. On Hopper hopper.py does the same by wgmma.

What limits it: reading the chosen weights once for every 128 tokens.
"""

from __future__ import annotations

from functools import cache

import numpy as np
from numba import cuda, float32

from accel.cuda.ffn.activation import activation
from accel.cuda.ptx import mma
from accel.cuda.ptx.copy import copies_commit, copies_wait, copy_four
from accel.cuda.ptx.memory import load_long, shared_address, store_pair
from accel.cuda.ptx.numbers import narrow
from accel.cuda.runtime.arrays import F32, Array, empty
from accel.cuda.runtime.kernels import Kernel, device, kernel
from accel.cuda.runtime.moves import cast, packed
from accel.cuda.runtime.tiers import FORMS, tier
from reference.contract import ACTIVATIONS

TOKENS, NEURONS, OUTS = 128, 64, 32  # of a block
STEP = 64  # numbers of a row at a time: 128 bytes
ROW = 128  # bytes of it in shared memory


def fits(w_gate: Array, w_up: Array, w_down: Array, neurons: Array, x: Array) -> bool:
    """Whether tensor cores can compute it: 16-bit weights of one type, in lines, W_down's columns too."""
    weights = w_gate, w_up, w_down.axes(1, 0)
    if tier() == "portable" or not neurons.size or not x.size or w_gate.shape[1] % STEP or x.address % 16:
        return False
    alike = w_gate.dtype in FORMS and all(w.dtype == w_gate.dtype for w in weights)
    return alike and all(w.strides[1] == 2 and w.strides[0] % 16 == 0 and w.address % 16 == 0 for w in weights)


def gathered_ffn(x: Array, w_gate: Array, w_up: Array, w_down: Array, neurons: Array, act: str) -> Array:
    """x (T, E), w_gate and w_up (F, E), w_down (E, F), neurons (K,) -> (T, E) float32."""
    x, down = packed(cast(x, w_gate.dtype)), w_down.axes(1, 0)
    if tier() == "wgmma":
        from accel.cuda.ffn import hopper

        return hopper.gathered_ffn(x, w_gate, w_up, down, neurons, act)
    (tokens, width), count, form = x.shape, neurons.shape[0], FORMS[w_gate.dtype]
    listed = neurons.address
    tiles, token_tiles = -(-count // NEURONS), -(-tokens // TOKENS)
    hidden, out = empty((tokens, tiles * NEURONS), w_gate.dtype), empty((tokens, width), F32)
    places = (w.address if n == 0 else w.strides[0] for w in (w_gate, w_up) for n in range(2))
    first, second = kernels(form)
    first[(tiles, token_tiles), 256](
        x.address, x.strides[0], tokens, width // STEP, *places, listed, neurons.strides[0], count,
        ACTIVATIONS.index(act), hidden,
    )  # fmt: skip
    second[(width // OUTS, token_tiles), 128](
        hidden.address, hidden.strides[0], tokens, tiles, down.address, down.strides[0], listed, neurons.strides[0],
        count, out.address, out.strides[0],
    )  # fmt: skip
    return out


@device
def _place(row, chunk):
    """Where a 16-byte chunk of a row of 128 bytes lies."""
    return row * ROW + ((chunk ^ (row & 7)) << 4)


@cache
def kernels(form: str) -> tuple[Kernel, Kernel]:
    """Both kernels for weights of one form."""
    A_TILE, B_TILE, STAGES = 2 * NEURONS * ROW, TOKENS * ROW, 3
    STAGE, HALF = A_TILE + B_TILE, TOKENS // 2
    SUMS, PITCH = 2 * HALF // 2, NEURONS + 4  # what a warp stores at once then lies in different banks
    UP = TOKENS * PITCH
    multiply = mma.from_shared(2, HALF, STEP, 2 * NEURONS, TOKENS, form, onto=True)
    arrived = copies_wait(STAGES - 2)

    @device
    def read(to, x, x_row, token, tokens, gate, gate_row, up, up_row, chosen, step, thread):
        """A tile of weights, 16 gate rows and 16 up rows in turn, and a tile of x."""
        chunk, source = thread & 7, step * ROW + 16 * (thread & 7)
        for turn in range(2 * NEURONS // 32):
            row = turn * 32 + (thread >> 3)
            neuron = np.int64(chosen[((row >> 5) << 4) + (row & 15)])
            place = up + neuron * up_row if row & 16 else gate + neuron * gate_row
            copy_four(to + _place(row, chunk), place + source)
        for turn in range(TOKENS // 32):
            row = turn * 32 + (thread >> 3)
            copy_four(to + A_TILE + _place(row, chunk), x + min(token + row, tokens - 1) * x_row + source)

    @kernel(name=f"hidden_{form}", threads=256, shared=1024 + STAGES * STAGE)
    def hidden(x, x_row, tokens, steps, gate, gate_row, up, up_row, neurons, neuron_step, count, act, out):
        chosen = cuda.shared.array(NEURONS, np.int32)
        base = (shared_address(cuda.shared.array(0, dtype=np.uint8)) + 1023) & ~1023
        thread = cuda.threadIdx.x
        warp, lane = thread >> 5, thread & 31
        first, token = cuda.blockIdx.x * NEURONS, cuda.blockIdx.y * TOKENS
        if thread < NEURONS:
            chosen[thread] = load_long(neurons + min(first + thread, count - 1) * neuron_step)
        cuda.syncthreads()
        for stage in range(STAGES - 1):
            if stage < steps:
                read(base + stage * STAGE, x, x_row, token, tokens, gate, gate_row, up, up_row, chosen, stage, thread)
            copies_commit()
        acc = cuda.local.array(SUMS, float32)
        for i in range(SUMS):
            acc[i] = float32(0)
        half = (warp >> 2) * HALF  # the warp's tokens
        a_at = mma.lane_rows(base + (warp & 3) * (32 * ROW), lane)
        b_at = mma.lane_columns(base + A_TILE + half * ROW, lane)
        slot, ahead, step = 0, STAGES - 1, 0
        while step < steps:
            arrived()
            cuda.syncthreads()
            following = step + STAGES - 1
            if following < steps:
                to = base + ahead * STAGE
                read(to, x, x_row, token, tokens, gate, gate_row, up, up_row, chosen, following, thread)
            copies_commit()
            multiply(acc, a_at + slot * STAGE, b_at + slot * STAGE)
            slot = 0 if slot == STAGES - 1 else slot + 1
            ahead = 0 if ahead == STAGES - 1 else ahead + 1
            step += 1
        # Through shared memory, so that neighbouring threads have neighbouring neurons and no loop here is a long one
        cuda.syncthreads()
        sums = cuda.shared.array(0, dtype=np.float32)
        at = (half + 2 * (lane & 3)) * PITCH + (warp & 3) * 16 + (lane >> 2)
        for i in range(HALF // 8):
            for j in range(4):
                place = at + (8 * i + (j & 1)) * PITCH + 8 * (j >> 1)
                sums[place] = acc[4 * i + j]
                sums[UP + place] = acc[HALF // 2 + 4 * i + j]
        cuda.syncthreads()
        item = thread
        while item < TOKENS * NEURONS:
            t, n = item // NEURONS, item % NEURONS
            y = float32(0)
            if first + n < count:
                y = activation(sums[t * PITCH + n], act) * sums[UP + t * PITCH + n]
            if token + t < tokens:
                out[token + t, first + n] = narrow(out, y)
            item += 256

    H_TILE, W_TILE, DEEP = TOKENS * ROW, STEP * ROW, 4
    LEVEL, OUT_SUMS, ROWS_EACH = H_TILE + W_TILE, 2 * OUTS // 2, STEP // 32
    weigh = mma.from_shared(2, OUTS, STEP, TOKENS, STEP, form, turned=True, onto=True)
    came = copies_wait(DEEP - 2)

    @device
    def look_up(listed, neurons, neuron_step, count, step, thread):
        """Which rows a thread copies of a step: long before they are copied, or it would wait for each."""
        for turn in range(STEP // 32):
            listed[turn] = load_long(neurons + min(step * STEP + turn * 32 + (thread >> 2), count - 1) * neuron_step)

    @device
    def read_more(to, h, h_row, token, tokens, down, down_row, column, listed, step, thread):
        """A tile of h, and OUTS numbers of the rows listed."""
        chunk = thread & 7
        for turn in range(TOKENS // 16):
            row = turn * 16 + (thread >> 3)
            copy_four(to + _place(row, chunk), h + min(token + row, tokens - 1) * h_row + step * ROW + 16 * chunk)
        part = thread & 3
        for turn in range(STEP // 32):
            row = turn * 32 + (thread >> 2)
            copy_four(to + H_TILE + _place(row, part), down + listed[turn] * down_row + 2 * column + 16 * part)

    @kernel(name=f"output_{form}", threads=128, shared=1024 + DEEP * LEVEL)
    def output(h, h_row, tokens, steps, down, down_row, neurons, neuron_step, count, out, out_row):
        base = (shared_address(cuda.shared.array(0, dtype=np.uint8)) + 1023) & ~1023
        thread = cuda.threadIdx.x
        warp, lane = thread >> 5, thread & 31
        column, token = cuda.blockIdx.x * OUTS, cuda.blockIdx.y * TOKENS
        listed = cuda.local.array(ROWS_EACH, np.int64)
        for stage in range(DEEP - 1):
            if stage < steps:
                look_up(listed, neurons, neuron_step, count, stage, thread)
                read_more(base + stage * LEVEL, h, h_row, token, tokens, down, down_row, column, listed, stage, thread)
            copies_commit()
        look_up(listed, neurons, neuron_step, count, DEEP - 1, thread)
        acc = cuda.local.array(OUT_SUMS, float32)
        for i in range(OUT_SUMS):
            acc[i] = float32(0)
        a_at = mma.lane_rows(base + warp * (32 * ROW), lane)
        b_at = mma.lane_rows(base + H_TILE, lane)
        slot, ahead, step = 0, DEEP - 1, 0
        while step < steps:
            came()
            cuda.syncthreads()
            following = step + DEEP - 1
            if following < steps:
                to = base + ahead * LEVEL
                read_more(to, h, h_row, token, tokens, down, down_row, column, listed, following, thread)
                look_up(listed, neurons, neuron_step, count, following + 1, thread)
            copies_commit()
            weigh(acc, a_at + slot * LEVEL, b_at + slot * LEVEL)
            slot = 0 if slot == DEEP - 1 else slot + 1
            ahead = 0 if ahead == DEEP - 1 else ahead + 1
            step += 1
        t0 = token + warp * 32 + (lane >> 2)
        for i in range(4 * OUTS // 8):
            m, block, half = i // (OUTS // 4), (i >> 1) % (OUTS // 8), i & 1
            t = t0 + 16 * m + 8 * half
            if t < tokens:
                at = out + t * out_row + 4 * (column + 8 * block + 2 * (lane & 3))
                store_pair(at, acc[2 * i], acc[2 * i + 1])

    return hidden, output
