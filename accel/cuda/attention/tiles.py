"""What both tiers of attention on tensor cores share: how rows come to shared memory, and where a row's keys end.

Tiles lie in shared memory as the 128-byte swizzle has it (ptx/wgmma.py). Division is a call on the device, and a kernel
with a call in it gets its wgmma one after the other: `divide` multiplies by what `inverse` computed on the host.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numba import cuda, float32, uint32

from accel.cuda.ptx.copy import copy_four
from accel.cuda.ptx.memory import (
    as_real,
    lane_again,
    load_four,
    load_long,
    load_word,
    pack_bf16,
    pack_f16,
    store_shared_four,
)
from accel.cuda.ptx.numbers import exp2, reciprocal
from accel.cuda.runtime.kernels import device

DIMS = (64, 80, 96, 128, 256)
LOWEST = np.float32(-3e38)  # peak of a row that has seen nothing yet
TWICE_LOG2E, THIRD, SMALL = np.float32(2 / math.log(2)), np.float32(1 / 3), np.float32(0.05)


def inverse(divisor: int) -> int:
    """What `divide` multiplies by."""
    return 2**32 // divisor + 1


@device
def divide(number, by):
    """number // divisor for number · divisor below 2³²."""
    return (number * by) >> 32


@device
def tanh(x):
    """tanh x to about 1e-5 of itself, without a call: 1 - 2 / (1 + e^2x), or x - x³/3 for small x, where the former
    would be a difference of nearly equal numbers."""
    large = float32(1) - float32(2) * reciprocal(float32(1) + exp2(x * TWICE_LOG2E))
    small = x - x * x * x * THIRD  # both are computed, so that threads need not part
    return small if abs(x) < SMALL else large


def factors(scale: float, cap: float | None) -> tuple[float, float]:
    """What 2^(rate · x) takes of scores x = q·k, or of x = tanh(by · q·k) under a soft cap: rate and by."""
    log2e = math.log2(math.e)
    return (scale * log2e, 0.0) if cap is None else (cap * log2e, scale / cap)


def bender(count: int, capped: bool) -> Any:
    """The device function that makes tanh(by · s_i) of the first `count` numbers of a local array, or leaves them."""

    @device
    def bend(s, by):
        if capped:
            for i in range(count):
                s[i] = tanh(s[i] * float32(by))

    return bend


@device
def sees(token, head, tokens, before, held, window, bounds):
    """The first column that a query sees, and the first after them."""
    lo, hi = 0, min(before + token + 1, held)
    if window != 0:
        lo = max(before + token + 1 - window, 0)
    if bounds != 0:
        at = bounds + 8 * (head * tokens + token)
        lo, hi = load_word(at), load_word(at + 4)
    return lo, hi


def row_reader(dim: int, keys: int) -> Any:
    """The device function by which one warp of four copies its quarter of a tile of `keys` rows of dim numbers: from
    column `first` on, those beyond `last` as `last`; where there are `columns`, `kept` of them, the rows that stand
    there, and after them those from `own` on."""
    CHUNKS, EACH = dim // 8, keys // 4  # 16-byte pieces of a row; rows that a warp copies
    WIDE = 1 << (CHUNKS - 1).bit_length()  # lanes that share a row
    SHIFT, AT_ONCE = WIDE.bit_length() - 1, 32 // WIDE

    @device
    def read_rows(to, source, row_bytes, columns, kept, own, first, last):
        lane = lane_again()
        mine = min(first + (lane & (EACH - 1)), last)
        if columns != 0:
            mine = load_long(columns + 8 * mine) if mine < kept else own + mine - kept
        chunk = lane & (WIDE - 1)
        for turn in range(EACH // AT_ONCE):
            row = turn * AT_ONCE + (lane >> SHIFT)
            column = cuda.shfl_sync(0xFFFFFFFF, mine, row)
            if chunk < CHUNKS:
                at = (chunk >> 3) * (keys * 128) + row * 128 + (((chunk & 7) ^ (row & 7)) << 4)
                copy_four(to + at, source + column * row_bytes + chunk * 16)

    return read_rows


def query_reader(dim: int, form: str, panel: int) -> Any:
    """The device function by which 128 threads bring `count` query rows of a KV head from `first` on, as 16-bit
    numbers, to row `at` on of panels of so many rows; zeros for rows that there are none of."""
    CHUNKS = dim // 8
    WIDE = 1 << (CHUNKS - 1).bit_length()
    SHIFT = WIDE.bit_length() - 1
    pack = pack_bf16 if form == "bf16" else pack_f16

    @device
    def read_queries(to, at, count, first, rows, q, q_head, q_token, q_wide, head, group, by_group, thread):
        item = thread
        while item < count * WIDE:
            r = first + (item >> SHIFT)
            c = item & (WIDE - 1)
            if c < CHUNKS:
                a, b, x, y = uint32(0), uint32(0), uint32(0), uint32(0)
                if r < rows:
                    t = divide(r, by_group)
                    place = q + (head * group + r - t * group) * q_head + t * q_token
                    if q_wide != 0:
                        e, f, g, h = load_four(place + 32 * c)
                        a, b = pack(as_real(e), as_real(f)), pack(as_real(g), as_real(h))
                        e, f, g, h = load_four(place + 32 * c + 16)
                        x, y = pack(as_real(e), as_real(f)), pack(as_real(g), as_real(h))
                    else:
                        a, b, x, y = load_four(place + 16 * c)
                row = at + (item >> SHIFT)
                store_shared_four(to + (c >> 3) * (panel * 128) + row * 128 + (((c & 7) ^ (row & 7)) << 4), a, b, x, y)
            item += 128

    return read_queries
