"""What the forward pass does besides attention, products and rotation: embedding, RMSNorm, drawing, and its moves.

All of these read each number once or twice; memory is their limit, and the launch where tokens are few. The residual
stream is float32; what feeds a product is stored as the weights are.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import fields, replace
from typing import Any

import numpy as np
from numba import cuda

from accel.cuda.linear.sums import Sum
from accel.cuda.ptx.numbers import narrow, wide
from accel.cuda.ptx.simulator import SIMULATED
from accel.cuda.ptx.warp import warp_sum
from accel.cuda.runtime.arrays import F32, F64, I64, Array, empty, stored, to_backend, under_each_other, write
from accel.cuda.runtime.capped import capped
from accel.cuda.runtime.device import free_memory, here
from accel.cuda.runtime.errors import tokens
from accel.cuda.runtime.kernels import Kernel, blocks, device, kernel
from accel.cuda.runtime.moves import joined, packed, put, zeros
from accel.cuda.runtime.pool import pool
from accel.cuda.runtime.reduce import HALF, THREADS, WARP
from accel.cuda.runtime.views import plain, to_numpy
from reference import contract
from reference.experts import Expert
from reference.predictor import FastForwardWeights
from reference.sampling import Sampling
from reference.weights import LayerWeights, Weights

MANY = 768  # threads of a block for a row of a model's width: more would leave each too few registers
MOST_PARTS = 512  # of the logits, each with a highest of its own


def embed(token_ids: Any, table: Array, *, scale: float = 1.0) -> Array:
    """Rows of the embedding table times `scale`: token_ids (T,), table (V, E) -> (T, E) float32."""
    sizes = contract.embed(token_ids, table)
    if isinstance(token_ids, np.ndarray):
        outside = token_ids[(token_ids < 0) | (token_ids >= sizes["V"])]
        if outside.size:
            raise ValueError(f"token_ids: got id {outside[0]}, wanted 0 to {sizes['V'] - 1}")
        ids = here.given["ids"] if "ids" in here.given else to_backend(token_ids)
    else:
        ids = tokens(to_backend(token_ids), sizes["V"])
    out = empty((sizes["T"], sizes["E"]), F32)
    if out.size:
        _embed[sizes["T"], THREADS](ids, table, float(scale), out)
    return out


def rms_norm(x: Any, weight: Array, *, eps: float) -> Array:
    """x / √(mean(x²) + eps) · weight over the last axis: x (…, E), weight (E,) -> (…, E), stored as the weight is. Of
    a residual that nobody has added up yet, the sum is left beside it."""
    contract.rms_norm(x, weight)
    out = empty(x.shape, weight.dtype, activation=True)
    total = empty(x.shape, F32) if isinstance(x, Sum) else out
    parts, scale = (x.taken(total), x.scale) if isinstance(x, Sum) else (None, 1.0)
    first, second = parts or (plain(x),) * 2
    if out.size:
        left, right, whole, made = (a if a.ndim == 3 else _rows(a) for a in (first, second, total, out))
        norm, threads = (_norm_few, THREADS) if x.shape[-1] < MANY or SIMULATED else (_norm_many, MANY)
        norm[(left.shape[1], left.shape[0]), threads](
            left, right, int(bool(parts)), scale, weight, float(eps), whole, made
        )  # fmt: skip
    return out


def soft_cap(x: Array, *, scale: float = 1.0, cap: float | None = None) -> Array:
    """cap · tanh(scale · x / cap), or scale · x without a cap: x (T, V) -> (T, V) float32."""
    sizes = contract.soft_cap(x, scale, cap)
    if scale == 1 and cap is None:
        return x
    out = empty(x.shape, F32)
    if out.size:
        _soft_cap[(sizes["T"], blocks(sizes["V"], THREADS)), THREADS](x, float(scale), float(cap or 0), out)
    return out


def concatenate(parts: Sequence[Array]) -> Array:
    """Rows of several sequences under each other: (T_1, E), (T_2, E), … -> (ΣT, E). A view where they lie so
    already."""
    seen = under_each_other(parts)
    return joined(list(parts), parts[0].dtype) if seen is None else seen


def join_dims(x: Array, y: Array, width: int) -> Array:
    """Heads whose dimensions are those of x, of y, then zeros: (H, T, D), (H or 1, T, R) -> (H, T, width)."""
    contract.join_dims(x, y, width)
    x, y = plain(x), plain(y)
    heads, rows, dim = x.shape
    filled = dim + y.shape[2]
    out = (empty if filled == width else zeros)((heads, rows, width), x.dtype)
    step = out.dtype.itemsize
    every = y.seen(y.address, (heads, *y.shape[1:]), (y.strides[0] if len(y) > 1 else 0, *y.strides[1:]))
    for part, first in ((x, 0), (every, dim)):
        put(part, out.seen(out.address + first * step, part.shape, out.strides))
    return out


def split_heads(x: Array, heads: int) -> Array:
    """(T, H·D) -> (H, T, D), a view."""
    return x.split(1, heads).axes(1, 0, 2)


def merge_heads(x: Array) -> Array:
    """(H, T, D) -> (T, H·D), a view where the heads of a token lie side by side."""
    rows = x.axes(1, 0, 2)
    seen = rows.join(1)
    return packed(rows).join(1) if seen is None else seen  # type: ignore[return-value]


def draw(logits: Array, sampling: Sampling, rng: np.random.Generator, seen: np.ndarray | None = None) -> int:
    """The next token id from logits (V,), seen (V,) bool on the host. Greedy and without a penalty, the highest is
    found on the device, so that little comes back."""
    penalised = sampling.repetition_penalty is not None and seen is not None
    if sampling.temperature or penalised or not isinstance(logits, Array):
        return sampling.draw(to_numpy(logits), rng, seen)
    count = max(1, min(-(-len(logits) // (8 * THREADS)), MOST_PARTS))
    peaks, places, found = empty((count,), F32), empty((count,), I64), empty((2,), I64)
    _peaks[count, THREADS](logits, peaks, places)
    _highest[1, THREADS](peaks, places, found)
    token, finite = to_numpy(found)
    return int(token) if finite else sampling.draw(to_numpy(logits), rng)  # which says what is wrong


def prepare_weights(weights: Weights) -> Weights:
    """A model's weights on the device; float64 becomes float32. W_down lies neuron by neuron, (F, E) in memory under
    the shape (E, F), so that chosen neurons are rows. Matrices that multiply the same rows lie under each other, so
    that one product serves them (`linear_each`). MemoryError where the device has no room for them."""
    _make_sure_of(weights.nbytes // (2 if weights.embedding.dtype == F64 else 1), weights.embedding.dtype)

    def moved(arrays: Mapping[str, Any]) -> dict[str, Any]:
        there = dict(arrays)
        for name in [name for name in there if name.endswith("w_down")]:
            there[name] = to_backend(np.ascontiguousarray(there[name].T)).axes(1, 0)
        gates = [(name, name.replace("w_gate", "w_up")) for name in there if name.endswith("w_gate")]
        for names in [("w_q", "w_k", "w_v"), ("b_q", "b_k", "b_v"), *gates]:
            if all(name in there for name in names):
                there |= zip(names, _joined([there[name] for name in names]), strict=True)
        return {name: to_backend(array) for name, array in there.items()}

    def fetched(expert: Expert) -> Expert:
        return Expert(**moved(vars(expert)))

    embedding = to_backend(weights.embedding)
    output = embedding if weights.output is weights.embedding else to_backend(weights.output)
    stored = [layer.stored and layer.stored.prepared(fetched) for layer in weights.layers]
    layers = tuple(map(LayerWeights.of, [moved(layer.arrays()) for layer in weights.layers], stored))
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


def _make_sure_of(wanted: int, dtype: np.dtype) -> None:
    """MemoryError in one line unless the device has so many bytes for weights of this type."""
    if SIMULATED:
        return
    pool.clear()
    free, gib = free_memory(), 2**30
    if wanted > free:
        half = wanted / 2 if dtype.itemsize > 2 else np.inf
        fits = "dtype='bfloat16' would fit" if half < free else "a smaller model or backend='cpu' would do"
        raise MemoryError(f"cuda: the weights take {wanted / gib:.2f} GiB and {free / gib:.2f} are free; {fits}")


def _joined(arrays: Sequence[Any]) -> Sequence[Any]:
    """Host arrays of one type and width on the device, under each other; others as they are."""
    if any(not isinstance(array, np.ndarray) or array.dtype != arrays[0].dtype for array in arrays):
        return arrays
    if any(array.shape[1:] != arrays[0].shape[1:] for array in arrays):
        return arrays
    dtype = stored(arrays[0].dtype)
    whole = empty((sum(map(len, arrays)), *arrays[0].shape[1:]), dtype)
    parts, start = [], 0
    for array in arrays:
        parts.append(whole[start : start + len(array)])
        write(parts[-1], np.ascontiguousarray(array, dtype))
        start += len(array)
    return parts


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
def _soft_cap(x, scale, cap, out):
    t, i = cuda.blockIdx.x, cuda.blockIdx.y * cuda.blockDim.x + cuda.threadIdx.x
    if i < out.shape[1]:
        out[t, i] = capped(wide(x[t, i]) * np.float32(scale), np.float32(cap))


def _rms_norm(name: str, threads: int) -> Kernel:
    """The kernel for blocks of so many threads: of x, or where it `adds`, of x + scale · y, left in `total`."""
    warps = threads // WARP

    @kernel(name=name, threads=threads)
    def rms_norm(x, y, adds, scale, weight, eps, total, out):
        memory = cuda.shared.array(warps, np.float32)
        t, head, thread = cuda.blockIdx.x, cuda.blockIdx.y, cuda.threadIdx.x
        row, other, whole, made = x[head, t], y[head, t], total[head, t], out[head, t]
        squares = np.float32(0)
        i = thread
        while i < row.shape[0]:
            part = wide(row[i])
            if adds != 0:
                part += np.float32(scale) * wide(other[i])
                whole[i] = narrow(whole, part)
            squares += part * part
            i += threads
        squares = warp_sum(squares)
        if thread % WARP == 0:
            memory[thread // WARP] = squares
        cuda.syncthreads()
        squares = np.float32(0)
        warp = thread % WARP
        while warp < warps:
            squares += memory[warp]
            warp += WARP
        squares = warp_sum(squares)
        rate = np.float32(1) / math.sqrt(squares / np.float32(row.shape[0]) + np.float32(eps))
        i = thread
        while i < row.shape[0]:
            part = wide(row[i])
            if adds != 0:
                part += np.float32(scale) * wide(other[i])
            made[i] = narrow(made, part * rate * wide(weight[i]))
            i += threads

    return rms_norm


_norm_few, _norm_many = _rms_norm("norm_few", THREADS), _rms_norm("norm_many", MANY)  # rows of a head, of a model


@device
def _above(x, i, best, at):
    """Whether x at place i goes before the best so far."""
    if math.isnan(x):
        return not math.isnan(best) or i < at
    return x > best or (x == best and i < at)


@device
def _best(best, at, values, indexes):
    """What goes before all others of a block, in every thread."""
    thread = cuda.threadIdx.x
    values[thread], indexes[thread] = best, at
    cuda.syncthreads()
    step = HALF
    while step > 0:
        if thread < step and _above(values[thread + step], indexes[thread + step], values[thread], indexes[thread]):
            values[thread], indexes[thread] = values[thread + step], indexes[thread + step]
        cuda.syncthreads()
        step >>= 1
    return values[0], indexes[0]


@kernel
def _peaks(logits, peaks, places):
    """Each block's highest and its index, ties to the lower; NaN counts as the highest of all, as in NumPy."""
    values = cuda.shared.array(THREADS, np.float32)
    indexes = cuda.shared.array(THREADS, np.int64)
    each = (logits.shape[0] + peaks.shape[0] - 1) // peaks.shape[0]
    i = cuda.blockIdx.x * each + cuda.threadIdx.x
    stop = min((cuda.blockIdx.x + 1) * each, logits.shape[0])
    best, at = np.float32(-np.inf), logits.shape[0]
    while i < stop:
        x = wide(logits[i])
        if _above(x, i, best, at):
            best, at = x, i
        i += THREADS
    best, at = _best(best, at, values, indexes)
    if cuda.threadIdx.x == 0:
        peaks[cuda.blockIdx.x], places[cuda.blockIdx.x] = best, at


@kernel
def _highest(peaks, places, found):
    """The highest of the blocks' and whether it is finite."""
    values = cuda.shared.array(THREADS, np.float32)
    indexes = cuda.shared.array(THREADS, np.int64)
    i = cuda.threadIdx.x
    best, at = np.float32(-np.inf), places[0]
    while i < peaks.shape[0]:
        if _above(peaks[i], places[i], best, at):
            best, at = peaks[i], places[i]
        i += THREADS
    best, at = _best(best, at, values, indexes)
    if cuda.threadIdx.x == 0:
        found[0], found[1] = at, 1 if math.isfinite(best) else 0
