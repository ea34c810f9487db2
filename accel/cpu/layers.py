"""What the forward pass does besides attention and products: embedding, RMSNorm, rotation, and its moves.

All of these read each number once or twice: memory and the cost of a call are their limits, not arithmetic. Moves that
are a view or a line of NumPy are the reference's own.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from accel.cpu.linear.rows import add_row, copy_row, load_kind, load_part
from accel.cpu.runtime.arrays import Matrix, address, matrix, readable, readable_matrix, rows, under_each_other
from accel.cpu.runtime.kernels import kernel
from accel.cpu.runtime.memory import Room, fresh
from accel.cpu.runtime.team import THREADS
from accel.cpu.simd import F32, LANES, carray, fetch_add, fma, load, real, splat, store, store_some, total, words_at
from reference import contract
from reference import layers as meaning
from reference.checks import match
from reference.experts import Expert
from reference.int8 import Int8
from reference.predictor import Compensator, FastForwardLayer, FastForwardWeights, Predictor
from reference.weights import LayerWeights, Weights

ROWS_READ = 16  # rows per item


def sharing(rows: int) -> int:
    """Threads that an embedding, a norm, a residual or a rotation of so many rows is for: no more than it has items."""
    return min(THREADS, -(-rows // ROWS_READ))


def embed(token_ids: np.ndarray, table: Matrix, *, scale: float = 1.0) -> np.ndarray:
    """Rows of the embedding table times `scale`: token_ids (T,), table (V, E) -> (T, E) float32."""
    sizes = contract.embed(token_ids, table)
    meaning.check_ids(token_ids, sizes["V"])
    ids, dim = np.ascontiguousarray(token_ids, np.int64), sizes["E"]
    if isinstance(table, Int8):  # of a table that must be copied to be read no more than these rows
        table, ids = table.rows(ids), np.arange(len(ids))
    elif isinstance(table, np.ndarray) and readable(first := table[:1]) is not first:
        table, ids = table[ids], np.arange(len(ids))
    held, out = readable_matrix(table), fresh(len(ids), dim)
    if out.size:
        workers = sharing(len(ids))
        _embed(address(ids), *matrix(held), float(scale), address(out), len(ids), dim, workers=workers)
    return out


def rms_norm(x: np.ndarray, weight: np.ndarray, *, eps: float) -> np.ndarray:
    """x / √(mean(x²) + eps) · weight over the last axis: x (..., E), weight (E,) -> (..., E) float32."""
    dim = contract.rms_norm(x, weight)["E"]
    stacked = readable(x if x.ndim in (2, 3) else x.reshape(-1, dim))
    out = fresh(*x.shape)
    weight = np.ascontiguousarray(weight, np.float32)
    heads, tokens = stacked.shape[0] if stacked.ndim == 3 else 1, stacked.shape[-2]
    if out.size:
        shape = heads, tokens, dim
        _rms_norm(*rows(stacked), address(weight), address(out), *shape, float(eps), workers=sharing(heads * tokens))
    return out


def rotate(x: np.ndarray, cosine: np.ndarray, sine: np.ndarray) -> np.ndarray:
    """Turn each pair (x_i, x_{i + R/2}) by its angle: x (H, T, D), cosine and sine (T, R/2) -> (H, T, D) float32, of
    whose heads all numbers after the first R stay."""
    sizes = contract.rotate(x, cosine, sine)
    x, out = readable(x), fresh(*x.shape)
    cosine, sine = np.ascontiguousarray(cosine, np.float32), np.ascontiguousarray(sine, np.float32)
    if out.size:
        shape = (sizes[axis] for axis in ("H", "T", "D", "R/2"))
        workers = sharing(sizes["H"] * sizes["T"])
        _rotate(*rows(x), address(cosine), address(sine), address(out), *shape, workers=workers)
    return out


def add(x: np.ndarray, y: np.ndarray, *, scale: float = 1.0) -> np.ndarray:
    """The residual: x + scale · y, both (T, E) -> (T, E) float32."""
    sizes = contract.add(x, y, scale)
    x, y, out = np.ascontiguousarray(x, np.float32), np.ascontiguousarray(y, np.float32), fresh(*x.shape)
    if out.size:
        workers = sharing(sizes["T"])
        _add(address(x), address(y), float(scale), address(out), sizes["T"], sizes["E"], workers=workers)
    return out


def concatenate(parts: Sequence[np.ndarray]) -> np.ndarray:
    """Rows of several sequences under each other: (T_1, E), (T_2, E), … -> (ΣT, E) float32. A view where they lie so
    already."""
    if len(parts) == 1:
        return parts[0]
    if parts[0].dtype == np.float32 and (seen := under_each_other(parts)) is not None:
        return seen
    match(**{f"parts[{n}]": (part, f"T{n} E") for n, part in enumerate(parts)})
    parts, dim = [np.ascontiguousarray(part, np.float32) for part in parts], parts[0].shape[1]
    out = fresh(sum(len(part) for part in parts), dim)
    places = np.array([(address(part), len(part)) for part in parts], np.int64)
    if out.size:
        _stack(address(places), len(parts), address(out), dim)
    return out


def to_numpy(x: np.ndarray) -> np.ndarray:
    """An array of this backend on the host: itself, or what it stands for."""
    return np.asarray(x)


def prepare_weights(weights: Weights) -> Weights:
    """The same weights in large pages, and every W_down neuron by neuron, (F, E) in memory under the shape (E, F), so
    that chosen neurons are rows; float64 becomes float32, and 16-bit and 8-bit weights stay as they are."""
    outer = {name: getattr(weights, name) for name in ("embedding", "final_norm", "output")}
    if weights.output is weights.embedding:
        del outer["output"]
    layers = [layer.arrays() if layer.stored and layer.stored.stay else layer.alike() for layer in weights.layers]
    room = Room([_turned(name, x) for group in (*layers, outer) for name, x in group.items()])

    def prepared(layer: LayerWeights) -> LayerWeights:
        def fetched(expert: Expert) -> Expert:
            return Expert(**_placed(vars(expert), room if in_memory else None))

        in_memory = layer.stored is not None and not layer.stored.stay
        return LayerWeights.of(_placed(layer.arrays(), room), layer.stored and layer.stored.prepared(fetched))

    kept = {name: room.put(x) for name, x in outer.items()}
    return Weights(
        layers=tuple(map(prepared, weights.layers)),
        cache_dtype=weights.cache_dtype,
        **{"output": kept["embedding"], **kept},
    )


def _placed(arrays: Mapping[str, Matrix], room: Room | None) -> dict[str, Matrix]:
    """The arrays as kernels read them, in this room or in one of their own."""
    turned = {name: _turned(name, x) for name, x in arrays.items()}
    room = room or Room(turned.values())
    return {name: _turned(name, room.put(x)) for name, x in turned.items()}


def _turned(name: str, weight: Matrix) -> Matrix:
    """A W_down under the other shape; in 8 bits it stays as it is (ffn/eight_bits.py), and so does any other weight."""
    return weight.T if name.endswith("w_down") and isinstance(weight, np.ndarray) else weight


def prepare_fastforward(weights: FastForwardWeights) -> FastForwardWeights:
    """The same predictors and compensators as kernels read them: rows contiguous, float64 as float32."""
    return FastForwardWeights([_prepared(layer) for layer in weights.layers], weights.metadata)


def _prepared(layer: FastForwardLayer) -> FastForwardLayer:
    """One layer's predictor and compensator."""
    predictor = Predictor(*(readable(x) for x in (layer.predictor.q_pred, layer.predictor.w1, layer.predictor.w2)))
    c = layer.compensator
    return FastForwardLayer(predictor, c and Compensator(readable(c.c1), readable(c.c2)), layer.density)


@kernel
def _embed(task, worker, ids, table, row, kind, scale, out, tokens, dim):
    listed, by = carray(words_at(ids), tokens), splat(real(scale))
    while True:
        first = fetch_add(task, 1) * ROWS_READ
        if first >= tokens:
            return
        for t in range(first, min(first + ROWS_READ, tokens)):
            source, target = table + listed[t] * row, out + 4 * t * dim
            for i in range(0, dim, LANES):
                part = load_part(source, kind, i, dim - i) * by
                if i + LANES <= dim:
                    store(target + 4 * i, part)
                else:
                    store_some(target + 4 * i, dim - i, part)


@kernel
def _rms_norm(task, worker, x, x_head, x_row, kind, weight, out, heads, tokens, dim, eps):
    size = 4 if kind == F32 else 2
    while True:
        first = fetch_add(task, 1) * ROWS_READ
        if first >= heads * tokens:
            return
        for r in range(first, min(first + ROWS_READ, heads * tokens)):
            source, target = x + r // tokens * x_head + r % tokens * x_row, out + 4 * r * dim
            squares = splat(np.float32(0.0))
            for i in range(0, dim, LANES):
                part = load_kind(source + size * i, kind, dim - i)
                squares = fma(part, part, squares)
            rate = splat(np.float32(1.0) / np.sqrt(total(squares) / np.float32(dim) + real(eps)))
            for i in range(0, dim, LANES):
                part = load_kind(source + size * i, kind, dim - i) * rate
                if i + LANES <= dim:
                    store(target + 4 * i, part * load(weight + 4 * i))
                else:
                    store_some(target + 4 * i, dim - i, part * load_kind(weight + 4 * i, F32, dim - i))


@kernel
def _add(task, worker, x, y, scale, out, tokens, dim):
    while True:
        first = fetch_add(task, 1) * ROWS_READ
        if first >= tokens:
            return
        at, count = 4 * first * dim, min(ROWS_READ, tokens - first) * dim
        copy_row(x + at, out + at, count, 1.0)
        add_row(y + at, F32, count, real(scale), out + at)


@kernel
def _stack(task, worker, places, parts, out, dim):
    listed = carray(words_at(places), (parts, 2))
    while True:
        n = fetch_add(task, 1)
        if n >= parts:
            return
        copy_row(listed[n, 0], out + 4 * listed[:n, 1].sum() * dim, listed[n, 1] * dim, 1.0)


@kernel
def _rotate(task, worker, x, x_head, x_row, kind, cosine, sine, out, heads, tokens, dim, half):
    size = 4 if kind == F32 else 2
    while True:
        first = fetch_add(task, 1) * ROWS_READ
        if first >= heads * tokens:
            return
        for r in range(first, min(first + ROWS_READ, heads * tokens)):
            source, target = x + r // tokens * x_head + r % tokens * x_row, out + 4 * r * dim
            for i in range(0, half, LANES):
                left = half - i
                c = load_kind(cosine + 4 * (r % tokens * half + i), F32, left)
                s = load_kind(sine + 4 * (r % tokens * half + i), F32, left)
                a = load_kind(source + size * i, kind, left)
                b = load_kind(source + size * (half + i), kind, left)
                if left >= LANES:
                    store(target + 4 * i, a * c - b * s)
                    store(target + 4 * (half + i), b * c + a * s)
                else:
                    store_some(target + 4 * i, left, a * c - b * s)
                    store_some(target + 4 * (half + i), left, b * c + a * s)
            for i in range(2 * half, dim, LANES):
                rest = load_kind(source + size * i, kind, dim - i)
                if dim - i >= LANES:
                    store(target + 4 * i, rest)
                else:
                    store_some(target + 4 * i, dim - i, rest)
