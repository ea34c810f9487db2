"""Rotation of queries and keys, and the angles for it.

A table holds the cosines and sines of angle position · frequency for every token of a pass. The angles grow with the
text, and float32 would not do for them; so cosines and sines of the first position and of the steps from it come from
the host, and one kernel puts them together in float64 (Abramowitz & Stegun 4.3.16 and 4.3.17):

    cos(a + b) = cos a · cos b - sin a · sin b          sin(a + b) = sin a · cos b + cos a · sin b
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import numpy as np
from numba import cuda

from accel.cuda.ptx.numbers import narrow, wide
from accel.cuda.runtime.arrays import F32, F64, Array, empty, to_backend, write
from accel.cuda.runtime.device import here
from accel.cuda.runtime.kernels import kernel
from accel.cuda.runtime.reduce import THREADS
from reference import contract
from reference import layers as meaning
from reference.config import Rope

STEPS = 2048  # positions that one pair of tables of steps reaches


def rotate(x: Array, cosine: Array, sine: Array) -> Array:
    """Turn each pair (x_i, x_{i + R/2}) by its angle: x (H, T, D), cosine and sine (T, R/2) -> (H, T, D), the heads
    of a token side by side in memory. All numbers of a head after the first R stay."""
    sizes = contract.rotate(x, cosine, sine)
    out = empty((sizes["T"], sizes["H"], sizes["D"]), x.dtype, activation=True).axes(1, 0, 2)
    if out.size:
        _rotate[(sizes["T"], sizes["H"]), THREADS](x, cosine, sine, out)
    return out


def rotation_tables(
    rope: Rope, head_dim: int, spans: Sequence[tuple[int, int, int]], dtype: np.dtype
) -> tuple[Array, Array]:
    """Cosines and sines for `rotate`, (ΣT, R/2) each: spans of (first position, T, length of the prompt)."""
    if rope in here.given:
        return here.given[rope]
    if all(count == 1 for _, count, _ in spans):
        cosine, sine = meaning.rotation_tables(rope, head_dim, spans, F32)
        return to_backend(cosine), to_backend(sine)
    rows = sum(count for _, count, _ in spans)
    out = empty((2, rows, rope.rotated(head_dim) // 2), F32)
    start = 0
    for first, count, length in _without_seams(spans):
        steps = _steps(rope.frequencies(head_dim, length).tobytes())
        begun = _float64(rope.table(head_dim, np.array([first]), length))
        _put_together[(count, 1), THREADS](begun, steps, out[0, start : start + count], out[1, start : start + count])
        start += count
    return out[0], out[1]


def _without_seams(spans: Sequence[tuple[int, int, int]]) -> list[tuple[int, int, int]]:
    """The spans, those that follow one another as one, of at most STEPS positions."""
    runs: list[tuple[int, int, int]] = []
    for first, count, length in spans:
        if runs and runs[-1][0] + runs[-1][1] == first and runs[-1][2] == length:
            runs[-1] = (runs[-1][0], runs[-1][1] + count, length)
        else:
            runs.append((first, count, length))
    return [
        (first + start, min(STEPS, count - start), length)
        for first, count, length in runs
        for start in range(0, count, STEPS)
    ]


@lru_cache(8)
def _steps(frequencies: bytes) -> Array:
    """Cosines and sines of 0 … STEPS - 1 steps of frequencies (R/2,) float64 -> (2, STEPS, R/2) float64."""
    angles = np.arange(STEPS)[:, None] * np.frombuffer(frequencies, F64)
    return _float64([np.cos(angles), np.sin(angles)])


def _float64(tables: Sequence[np.ndarray]) -> Array:
    host = np.ascontiguousarray(tables, F64)
    out = empty(host.shape, F64)
    write(out, host)
    return out


@kernel
def _put_together(begun, steps, cosine, sine):
    t, i = cuda.blockIdx.x, cuda.threadIdx.x
    while i < cosine.shape[1]:
        c, s, x, y = begun[0, 0, i], begun[1, 0, i], steps[0, t, i], steps[1, t, i]
        cosine[t, i] = c * x - s * y
        sine[t, i] = s * x + c * y
        i += cuda.blockDim.x


@kernel
def _rotate(x, cosine, sine, out):
    t, head, i = cuda.blockIdx.x, cuda.blockIdx.y, cuda.threadIdx.x
    half = cosine.shape[1]
    while i < half:
        c, s = wide(cosine[t, i]), wide(sine[t, i])
        a, b = wide(x[head, t, i]), wide(x[head, t, half + i])
        out[head, t, i] = narrow(out, a * c - b * s)
        out[head, t, half + i] = narrow(out, b * c + a * s)
        i += cuda.blockDim.x
    i = 2 * half + cuda.threadIdx.x
    while i < x.shape[2]:
        out[head, t, i] = narrow(out, wide(x[head, t, i]))
        i += cuda.blockDim.x
