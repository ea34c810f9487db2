"""CAOTE on the device: c_j = α_j / (1 - α_j) · ‖o - v_j‖, with the values read twice.

    shares     for each head Σh, the top token, and Σh without it
    outputs    sums of h_i v_i and of v_i without the top token, by parts of the tokens, then o of all and of the others
    caote      c of every token for the heads of a group, joined

Sums are float64: 1 - α and o without the top token are then differences of nothing. What limits it: memory.
"""

from __future__ import annotations

import math

import numpy as np
from numba import cuda

from accel.cuda.ptx.numbers import wide
from accel.cuda.ptx.warp import warp_sum
from accel.cuda.runtime.arrays import F32, F64, I64, Array, empty
from accel.cuda.runtime.errors import NEGATIVE_SCORE, note, word
from accel.cuda.runtime.kernels import blocks, kernel
from accel.cuda.runtime.reduce import THREADS, WARP, block_sum
from reference import contract
from reference.caote import GUARD
from reference.contract import JOINS

PART, PARTS = 64, 64  # least tokens that a block sums, and most blocks of a head
AHEAD = 8  # numbers that a thread asks for at once, or it would wait for each
WARPS = THREADS // WARP  # tokens that a block weighs, one to a warp


def caote_scores(h: Array, v: Array, *, fast: bool = False, group: str = "mean") -> Array:
    """c_j from base scores h ≥ 0 (H, S) and values v (KV, S, D) -> (KV, S) float32, higher = keep."""
    sizes = contract.caote_scores(h, v, group)
    heads, dim, size = sizes["H"], sizes["D"], sizes["S"]
    scores = empty((sizes["KV"], size), F32)
    if scores.size:
        sums, tops = empty((heads, 2), F64), empty((heads,), I64)
        _shares[heads, THREADS](h, sums, tops, word())
        parts = min(blocks(size, PART), PARTS)
        partial, outputs = empty((parts, heads, 2, dim), F64), empty((heads, 2, dim), F64)
        _sum_values[(parts, heads), THREADS](h, v, tops, blocks(size, parts), partial)
        _outputs[heads, THREADS](h, v, sums, tops, partial, int(fast), outputs)
        grid = blocks(size, WARPS), sizes["KV"]
        _caote[grid, THREADS](h, v, sums, tops, outputs, int(fast), JOINS.index(group), scores)
    return scores


@kernel
def _shares(h, sums, tops, word):
    memory = cuda.shared.array(THREADS, np.float64)
    values = cuda.shared.array(THREADS, np.float32)
    places = cuda.shared.array(THREADS, np.int64)
    head, thread = cuda.blockIdx.x, cuda.threadIdx.x
    best, at = np.float32(-1), 0
    i = thread
    while i < h.shape[1]:
        x = wide(h[head, i])
        if not x >= 0:
            note(word, NEGATIVE_SCORE)
        if x > best:
            best, at = x, i
        i += THREADS
    values[thread], places[thread] = best, at
    cuda.syncthreads()
    for n in range(THREADS):
        if values[n] > best or (values[n] == best and places[n] < at):
            best, at = values[n], places[n]
    others = 0.0
    i = thread
    while i < h.shape[1]:
        if i != at:
            others += np.float64(wide(h[head, i]))
        i += THREADS
    others = block_sum(others, memory)
    if thread == 0:
        sums[head, 0], sums[head, 1] = others + np.float64(best), others
        tops[head] = at


@kernel
def _sum_values(h, v, tops, each, partial):
    part, head, d = cuda.blockIdx.x, cuda.blockIdx.y, cuda.threadIdx.x
    kv = head // (h.shape[0] // v.shape[0])
    values, shares = cuda.local.array(AHEAD, np.float32), cuda.local.array(AHEAD, np.float32)
    start, stop, top = part * each, min((part + 1) * each, v.shape[1]), tops[head]
    while d < v.shape[2]:
        weighed, plain = 0.0, 0.0
        i = start
        while i < stop:
            for u in range(AHEAD):
                at = min(i + u, stop - 1)
                values[u], shares[u] = wide(v[kv, at, d]), wide(h[head, at])
            for u in range(AHEAD):
                if i + u < stop and i + u != top:
                    weighed += np.float64(shares[u]) * np.float64(values[u])
                    plain += np.float64(values[u])
            i += AHEAD
        partial[part, head, 0, d], partial[part, head, 1, d] = weighed, plain
        d += THREADS


@kernel
def _outputs(h, v, sums, tops, partial, fast, outputs):
    head, d = cuda.blockIdx.x, cuda.threadIdx.x
    kv = head // (h.shape[0] // v.shape[0])
    values, others = cuda.local.array(AHEAD, np.float64), cuda.local.array(AHEAD, np.float64)
    top, rest = tops[head], max(v.shape[1] - 1, 1)
    while d < v.shape[2]:
        weighed, plain = 0.0, 0.0
        part, last = 0, partial.shape[0] - 1
        while part <= last:
            for u in range(AHEAD):
                at = min(part + u, last)
                values[u], others[u] = partial[at, head, 0, d], partial[at, head, 1, d]
            for u in range(AHEAD):
                if part + u <= last:
                    weighed += values[u]
                    plain += others[u]
            part += AHEAD
        x = np.float64(wide(v[kv, top, d]))
        if fast != 0:
            outputs[head, 0, d] = (plain + x) / v.shape[1]
            outputs[head, 1, d] = outputs[head, 0, d]
        else:
            whole = sums[head, 0]
            if whole == 0:
                whole = 1.0
            outputs[head, 0, d] = (weighed + np.float64(wide(h[head, top])) * x) / whole
            if sums[head, 1] > 0:
                outputs[head, 1, d] = weighed / sums[head, 1]
            else:
                outputs[head, 1, d] = plain / rest
        d += THREADS


@kernel
def _caote(h, v, sums, tops, outputs, fast, join, scores):
    j, kv = cuda.blockIdx.x * WARPS + cuda.threadIdx.x // WARP, cuda.blockIdx.y
    group, lane = h.shape[0] // v.shape[0], cuda.threadIdx.x % WARP
    if j < v.shape[1]:
        joined = 0.0
        for head in range(kv * group, (kv + 1) * group):
            whole = sums[head, 0]
            if whole == 0:
                whole = 1.0
            is_top = j == tops[head]
            share = np.float64(wide(h[head, j])) / whole
            remaining = 1 - share
            if is_top:
                remaining = sums[head, 1] / whole
            which = 0
            if is_top:
                which = 1
            squares = 0.0  # of numbers whose squares may leave float32
            d = lane
            while d < v.shape[2]:
                x = outputs[head, which, d] - np.float64(wide(v[kv, j, d]))
                squares += x * x
                d += WARP
            squares = warp_sum(squares)
            c = share * math.sqrt(squares)
            if fast != 0:
                c /= max(remaining, GUARD)
            elif not is_top:
                c /= remaining
            if join == 0:
                joined += c / group
            elif join == 1:
                joined = max(joined, c)
            else:
                joined += c * c
        if join == 2:
            joined = math.sqrt(joined)
        if lane == 0:
            scores[kv, j] = joined
