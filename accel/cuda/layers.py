"""What the forward pass does besides attention and products: embedding, RMSNorm, rotation, and its moves.

All of these read each number once or twice; memory is their limit, and the launch where tokens are few. The residual
stream is float32; what feeds a product is stored as the weights are.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import fields, replace
from typing import Any

import numpy as np
from numba import cuda

from accel.cuda.ptx.numbers import narrow, wide
from accel.cuda.runtime.arrays import F32, Array, empty, to_backend
from accel.cuda.runtime.kernels import kernel
from accel.cuda.runtime.moves import joined, packed
from accel.cuda.runtime.reduce import THREADS, block_sum
from accel.cuda.runtime.views import to_numpy
from reference import contract
from reference import layers as meaning
from reference.checks import require
from reference.config import Rope
from reference.predictor import FastForwardWeights
from reference.sampling import Sampling
from reference.weights import LayerWeights, Weights


def embed(token_ids: Any, table: Array, *, scale: float = 1.0) -> Array:
    """Rows of the embedding table times `scale`: token_ids (T,), table (V, E) -> (T, E) float32."""
    sizes = contract.embed(token_ids, table)
    if isinstance(token_ids, np.ndarray) and token_ids.size:
        low, high = int(token_ids.min()), int(token_ids.max())
        wrong = low if low < 0 else high
        require(low >= 0 and high < sizes["V"], f"token_ids: got id {wrong}, wanted 0 to {sizes['V'] - 1}")
    ids, out = to_backend(token_ids), empty((sizes["T"], sizes["E"]), F32)
    if out.size:
        _embed[sizes["T"], THREADS](ids, table, float(scale), out)
    return out


def rms_norm(x: Array, weight: Array, *, eps: float) -> Array:
    """x / √(mean(x²) + eps) · weight over the last axis: x (…, E), weight (E,) -> (…, E), stored as the weight is."""
    contract.rms_norm(x, weight)
    out = empty(x.shape, weight.dtype, activation=True)
    if out.size:
        stacked, made = (a if a.ndim == 3 else _rows(a) for a in (x, out))
        _rms_norm[(stacked.shape[1], stacked.shape[0]), THREADS](stacked, weight, float(eps), made)
    return out


def rotate(x: Array, cosine: Array, sine: Array) -> Array:
    """Turn each pair (x_i, x_{i + D/2}) by its angle: x (H, T, D), cosine and sine (T, D/2) -> (H, T, D), the heads
    of a token side by side in memory."""
    sizes = contract.rotate(x, cosine, sine)
    out = empty((sizes["T"], sizes["H"], sizes["D"]), x.dtype, activation=True).axes(1, 0, 2)
    if out.size:
        _rotate[(sizes["T"], sizes["H"]), THREADS](x, cosine, sine, out)
    return out


def concatenate(parts: Sequence[Array]) -> Array:
    """Rows of several sequences under each other: (T_1, E), (T_2, E), … -> (ΣT, E). A view where they lie so
    already."""
    first, end = parts[0], parts[0].address
    for part in parts:
        if part.memory is not first.memory or part.address != end or not part.contiguous or part.dtype != first.dtype:
            return joined(list(parts), first.dtype)
        end += part.nbytes
    return first.seen(first.address, (sum(len(part) for part in parts), *first.shape[1:]), first.strides)


def split_heads(x: Array, heads: int) -> Array:
    """(T, H·D) -> (H, T, D), a view."""
    return x.split(1, heads).axes(1, 0, 2)


def merge_heads(x: Array) -> Array:
    """(H, T, D) -> (T, H·D), a view where the heads of a token lie side by side."""
    rows = x.axes(1, 0, 2)
    seen = rows.join(1)
    return packed(rows).join(1) if seen is None else seen  # type: ignore[return-value]


def rotation_tables(
    rope: Rope, head_dim: int, spans: Sequence[tuple[int, int, int]], dtype: np.dtype
) -> tuple[Array, Array]:
    """Cosines and sines for `rotate`, (ΣT, D/2) each: spans of (first position, T, length of the prompt)."""
    cosine, sine = meaning.rotation_tables(rope, head_dim, spans, F32)
    return to_backend(cosine), to_backend(sine)


def draw(logits: Array, sampling: Sampling, rng: np.random.Generator) -> int:
    """The next token id from logits (V,). The highest is found on the device, so that one number comes back."""
    if sampling.temperature or not isinstance(logits, Array):
        return sampling.draw(to_numpy(logits), rng)
    out = empty((1,), np.dtype(np.int64))
    _highest[1, THREADS](logits, out)
    return int(to_numpy(out)[0])


def prepare_weights(weights: Weights) -> Weights:
    """A model's weights on the device; float64 becomes float32. W_down lies neuron by neuron, (F, E) in memory under
    the shape (E, F), so that chosen neurons are rows."""

    def moved(layer: LayerWeights) -> LayerWeights:
        there = {f.name: to_backend(getattr(layer, f.name)) for f in fields(layer) if f.name != "w_down"}
        down = np.ascontiguousarray(layer.w_down.T)
        return LayerWeights(**there, w_down=to_backend(down).axes(1, 0))

    embedding = to_backend(weights.embedding)
    output = embedding if weights.output is weights.embedding else to_backend(weights.output)
    layers = tuple(moved(layer) for layer in weights.layers)
    return Weights(embedding, layers, to_backend(weights.final_norm), output)


def prepare_fastforward(weights: FastForwardWeights) -> FastForwardWeights:
    """Trained predictors and compensators on the device."""

    def moved(part: Any) -> Any:
        return part and type(part)(**{f.name: to_backend(getattr(part, f.name)) for f in fields(part)})

    layers = [
        replace(layer, predictor=moved(layer.predictor), compensator=moved(layer.compensator))
        for layer in weights.layers
    ]
    return FastForwardWeights(layers, weights.metadata)


def _rows(x: Array) -> Array:
    """x (…, E) as (1, rows, E)."""
    flat = packed(x)
    width, step = x.shape[-1], x.dtype.itemsize
    return flat.seen(flat.address, (1, math.prod(x.shape[:-1]), width), (0, width * step, step))


@kernel
def _embed(ids, table, scale, out):
    t, i = cuda.blockIdx.x, cuda.threadIdx.x
    while i < out.shape[1]:
        out[t, i] = wide(table[ids[t], i]) * np.float32(scale)
        i += cuda.blockDim.x


@kernel
def _rms_norm(x, weight, eps, out):
    memory = cuda.shared.array(THREADS, np.float32)
    t, head, thread = cuda.blockIdx.x, cuda.blockIdx.y, cuda.threadIdx.x
    squares = np.float32(0)
    i = thread
    while i < x.shape[2]:
        part = wide(x[head, t, i])
        squares += part * part
        i += THREADS
    mean = block_sum(squares, memory) / np.float32(x.shape[2])
    rate = np.float32(1) / math.sqrt(mean + np.float32(eps))
    i = thread
    while i < x.shape[2]:
        out[head, t, i] = narrow(out, wide(x[head, t, i]) * rate * wide(weight[i]))
        i += THREADS


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


@kernel
def _highest(logits, out):
    """The index of the largest, ties to the lower: every thread's own, then the best of those."""
    values = cuda.shared.array(THREADS, np.float32)
    places = cuda.shared.array(THREADS, np.int64)
    thread = cuda.threadIdx.x
    best, at = wide(logits[0]), 0
    i = thread
    while i < logits.shape[0]:
        x = wide(logits[i])
        if x > best or (x == best and i < at):
            best, at = x, i
        i += THREADS
    values[thread], places[thread] = best, at
    cuda.syncthreads()
    if thread == 0:
        for n in range(1, THREADS):
            if values[n] > best or (values[n] == best and places[n] < at):
                best, at = values[n], places[n]
        out[0] = at
