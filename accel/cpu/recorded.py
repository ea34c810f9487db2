"""Tokens of decoding that are recorded once, as a list of kernel calls, and then run as a whole.

For every token dense decoding makes the same few hundred calls, with Python between them that takes a fifth of the
time. Few of their words change: where the new keys are written and how many a token sees. So a cache keeps the list of
its calls with every layer's weights, and buffers that all layers share. A token writes what has changed into the list,
for all layers at once, and runs it without coming back to Python. The kernels and their arguments are those that the
forward pass calls one by one, and so is every bit of the answer.

That holds for sequences that read all their keys and run all neurons: without a policy, a window or a trace. All else
goes call by call.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Sequence
from dataclasses import fields
from typing import Any

import numpy as np

from accel.cpu.attention.by_key import FEW as FEW_COLUMNS
from accel.cpu.attention.by_key import attend_few, few_places
from accel.cpu.attention.call import _merge
from accel.cpu.attention.layout import lay_out
from accel.cpu.attention.reads import WORDS, Read
from accel.cpu.cache import FEW as FEW_WRITTEN
from accel.cpu.ffn.activation import _activate
from accel.cpu.ffn.call import _few, _join, few_shape
from accel.cpu.layers import _add, _rms_norm, _rotate, embed
from accel.cpu.linear.columns import write_columns
from accel.cpu.linear.few_tokens import FEW, STREAMS, read, rows_read
from accel.cpu.linear.rows import padded
from accel.cpu.runtime.arrays import Grouped, address, matrix, readable, rows
from accel.cpu.runtime.calls import Calls
from accel.cpu.runtime.memory import SMALL, fresh
from accel.cpu.runtime.team import THREADS
from accel.cpu.simd import HALF, LANES
from accel.shared.lazy import Consecutive
from reference import Model, Policy
from reference.attention import split_heads
from reference.layers import rotation_tables
from reference.state import Chunk
from reference.weights import LayerWeights

Layers = Callable[[Model, Sequence[Chunk]], Any]
_DENSE = Policy()
_Q, _K, _V = (Read._fields.index(name) for name in ("q", "k", "v"))

# What this file knows to compute with: a model that has more is left to the forward pass.
_WEIGHTS = {
    *("attention_norm", "w_q", "w_k", "w_v", "w_o", "ffn_norm", "w_gate", "w_up", "w_down", "b_q", "b_k", "b_v", "b_o"),
    *("q_norm", "k_norm", "post_attention_norm", "post_ffn_norm"),
}
_SETTINGS = {
    *("family", "layers", "width", "heads", "kv_heads", "head_dim", "ffn_width", "vocab_size", "max_positions"),
    *("ropes", "windows", "attention_scale", "rms_eps", "activation", "tied"),
    *("embedding_scale", "residual_scale", "logit_scale"),
}


def run_pass(layers: Layers, model: Model, chunks: Sequence[Chunk]) -> Any:
    """What `layers` returns, the hidden states (ΣT, E): in one step where every chunk is a token of dense decoding."""
    if not _is_plain(model, chunks):
        return layers(model, chunks)
    holder: Any = chunks[0].state.cache
    if holder.step is None or not holder.step.fits(model, chunks):
        holder.step = Step(model, chunks) if _is_known(model) else None
    return layers(model, chunks) if holder.step is None else holder.step.run(model, chunks)


def _is_plain(model: Model, chunks: Sequence[Chunk]) -> bool:
    """Whether every chunk is a token of a sequence of its own that reads all keys and runs all neurons."""
    if len(chunks) > FEW or any(model.config.windows):
        return False
    for chunk in chunks:
        state = chunk.state
        if not chunk.decoding or state.trace is not None or state.policy != _DENSE:
            return False
        for layer in state.cache.layers:
            room = layer._room  # type: ignore[attr-defined]
            if not (room.consecutive and room.start == 0 and room.size == chunk.first and layer.received is None):
                return False
    return True


def _is_known(model: Model) -> bool:
    """Whether this file knows all that the model has, and its weights lie as kernels of a few tokens read them, whole
    vectors at a time."""
    config = model.config
    if any(getattr(config, f.name) != f.default for f in fields(config) if f.name not in _SETTINGS):
        return False
    widths = config.width, config.heads * config.head_dim, config.ffn_width
    if any(width % 32 for width in widths) or config.heads // config.kv_heads > FEW_COLUMNS:
        return False
    if np.dtype(model.weights.stored_cache) == np.float16 and not HALF:
        return False
    if model.weights.final_norm.dtype != np.float32:
        return False
    return all(_lies_ready(layer) for layer in model.weights.layers)


def _lies_ready(layer: LayerWeights) -> bool:
    """Whether a layer has nothing that is not known here, and nothing that must be copied to be read."""
    for name, weight in layer.arrays().items():
        if name not in _WEIGHTS:
            return False
        if isinstance(weight, Grouped):
            continue
        lying = weight.T if name == "w_down" else weight
        if readable(lying) is not lying or (weight.ndim == 1 and weight.dtype != np.float32):
            return False
    matrices = layer.w_gate, layer.w_up, layer.w_down
    return all(isinstance(w, Grouped) for w in matrices) or (
        all(isinstance(w, np.ndarray) for w in matrices) and layer.w_gate.dtype == layer.w_up.dtype
    )


class Step:
    """The calls of a token each of some sequences."""

    def __init__(self, model: Model, chunks: Sequence[Chunk]) -> None:
        self._model = weakref.ref(model)
        self._caches = [weakref.ref(chunk.state.cache) for chunk in chunks]
        self._calls, self._tokens = Calls(), len(chunks)
        self._memory: dict[tuple[str, int], np.ndarray] = {}
        held: Any = chunks[0].state.cache.layers[0]
        self._list_calls(model, (rows(held._k)[3], rows(held._v)[3]))
        self._calls.finish()

    def fits(self, model: Model, chunks: Sequence[Chunk]) -> bool:
        """Whether these are the same sequences of the same model."""
        alike = self._model() is model and len(self._caches) == len(chunks)
        return alike and all(own() is chunk.state.cache for own, chunk in zip(self._caches, chunks, strict=True))

    def run(self, model: Model, chunks: Sequence[Chunk]) -> np.ndarray:
        """The token of every sequence: appends it to the caches, and returns the hidden states (T, E)."""
        config = model.config
        ids = np.concatenate([chunk.token_ids for chunk in chunks])
        self._x[...] = embed(ids, model.weights.embedding, scale=config.embedding_scale)
        spans = [(chunk.first, 1, chunk.length) for chunk in chunks]
        for rope, (cosine, sine) in self._tables.items():
            cosine[...], sine[...] = rotation_tables(rope, config.head_dim, spans, np.dtype(np.float32))
        self._place(chunks)
        laid = self._lay_out(model, chunks)
        self._calls.run()
        del laid
        for chunk in chunks:
            for layer in chunk.state.cache.layers:
                layer._room.append(1, chunk.first)  # type: ignore[attr-defined]
                layer._show()  # type: ignore[attr-defined]
                layer.newest = chunk.first
            counts, seen = chunk.state.counts, chunk.first + 1
            counts.keys_read += seen
            counts.keys_visible += seen
            counts.neurons_run += config.ffn_width
            counts.neurons_total += config.ffn_width
        return self._hidden.copy()

    def _place(self, chunks: Sequence[Chunk]) -> None:
        """Where each layer's new columns are written, in buffers that have room for them."""
        for i, chunk in enumerate(chunks):
            layers: list[Any] = chunk.state.cache.layers
            for layer in layers:
                if (wanted := layer._room.wanted_for(1)) > layer.capacity:
                    layer._move(wanted)
            at = self._places(layers)
            end, (k_head, k_row, _), (v_head, v_row, _) = chunk.first, layers[0]._k.strides, layers[0]._v.strides
            self._calls.set(
                self._writes[:, i], to_k=at[0] + end * k_row, to_k_head=k_head, to_k_row=k_row,
                to_v=at[1] + end * v_row, to_v_head=v_head, to_v_row=v_row, to_positions=at[2] + 8 * end,
                to_rates=at[3] + 4 * end, room=layers[0].capacity, sums=at[4],
            )  # fmt: skip
            self._positions[i] = end
            self._stored[:, i] = at[:2].T

    def _places(self, layers: Sequence[Any]) -> np.ndarray:
        """Addresses of every layer's buffers of keys, values, positions, inverse norms and sums, (5, L)."""
        names = ("_k", "_v", "_positions", "_rates", "_sums")
        return np.array([[address(getattr(layer, name)) for layer in layers] for name in names], np.int64)

    def _lay_out(self, model: Model, chunks: Sequence[Chunk]) -> list[Any]:
        """Write how each sequence's keys are shared out, which is alike in all layers; returns what must live."""
        every = []
        for i, chunk in enumerate(chunks):
            held: Any = chunk.state.cache.layers[0]
            k, v, at = (x[:, : chunk.first + 1] for x in (held._k, held._v, held._positions))
            q = self._queries[0][:, i : i + 1]
            one = lay_out([(q, k, chunk.first, Consecutive(at, 0))], model.config.attention_scale, None, None)[0]
            partial = fresh(one.parts, one.heads, 1, one.dim) if one.parts > 1 else None
            stats = np.empty((one.parts, one.heads, 1, 2), np.float32)
            self._table[:, i] = one.words(v, self._attended[i : i + 1], partial, stats)
            self._table[:, i, _Q : _Q + 4] = [rows(queries[:, i : i + 1]) for queries in self._queries]
            every.append((one, partial, stats))
        self._table[:, :, [_K, _V]] = self._stored
        self._calls.leave_out(self._merges, all(partial is None for _, partial, _ in every))
        return every

    def _list_calls(self, model: Model, kinds: tuple[int, int]) -> None:
        """Every kernel call of a token, layer after layer."""
        config, weights, tokens, hold = model.config, model.weights, self._tokens, self._calls.hold
        e, h, kv, d = config.width, config.heads, config.kv_heads, config.head_dim
        self._x, self._hidden, normed, out = (hold(fresh(tokens, e)) for _ in range(4))
        q, k, v = (hold(fresh(tokens, heads * d)) for heads in (h, kv, kv))
        by_head = [split_heads(x, heads) for x, heads in ((q, h), (k, kv), (v, kv))]
        turned_q, turned_k, normed_q, normed_k = (hold(fresh(heads, tokens, d)) for heads in (h, kv, h, kv))
        self._attended = hold(fresh(tokens, h, d))
        self._positions = hold(np.empty(tokens, np.int64))
        self._table = hold(np.zeros((config.layers, tokens, WORDS), np.int64))
        self._stored = np.zeros((config.layers, tokens, 2), np.int64)  # where keys and values stand
        self._queries: list[np.ndarray] = []
        self._tables = {
            rope: [hold(np.empty((tokens, rope.rotated(d) // 2), np.float32)) for _ in range(2)]
            for rope in set(config.ropes)
            if rope
        }
        line, size = hold(fresh(THREADS * padded(d, LANES))), few_places(0, d).end
        memory = hold(fresh(size // 4 * THREADS))
        writes: list[list[int]] = []
        self._merges: list[int] = []
        for n, w in enumerate(weights.layers):
            x = self._norm(self._x, w.attention_norm, normed, config.rms_eps)
            self._read(x, [(w.w_q, w.b_q, q), (w.w_k, w.b_k, k), (w.w_v, w.b_v, v)])
            queries, keys, values = by_head
            if w.q_norm is not None:
                queries = self._norm(queries, w.q_norm, normed_q, config.rms_eps)
                keys = self._norm(keys, w.k_norm, normed_k, config.rms_eps)
            if (rope := config.ropes[n]) is not None:
                tables, half = [address(table) for table in self._tables[rope]], rope.rotated(d) // 2
                for source, target in ((queries, turned_q), (keys, turned_k)):
                    self._calls.add(_rotate, *rows(source), *tables, address(target), len(source), tokens, d, half)
                queries, keys = turned_q, turned_k
            self._queries.append(queries)
            each = [(keys[:, i : i + 1], values[:, i : i + 1], i) for i in range(tokens)]
            writes.append([self._write(*one, kinds, line) for one in each])
            table = address(self._table[n])
            self._calls.add(attend_few, table, tokens, address(memory), size)
            self._merges.append(self._calls.add(_merge, table, tokens))
            self._read(self._attended.reshape(tokens, h * d), [(w.w_o, w.b_o, out)])
            self._add(self._norm(out, w.post_attention_norm, normed, config.rms_eps), config.residual_scale)
            x = self._norm(self._x, w.ffn_norm, normed, config.rms_eps)
            self._feed_forward(x, w, config.activation == "silu", out)
            self._add(self._norm(out, w.post_ffn_norm, normed, config.rms_eps), config.residual_scale)
        self._norm(self._x, weights.final_norm, self._hidden, config.rms_eps)
        self._writes = np.array(writes)

    def _norm(self, x: np.ndarray, weight: np.ndarray | None, out: np.ndarray, eps: float) -> np.ndarray:
        """RMSNorm of x in `out`; x itself where the family has none there."""
        if weight is None:
            return x
        heads = len(x) if x.ndim == 3 else 1
        shape = heads, x.shape[-2], x.shape[-1]
        self._calls.add(_rms_norm, *rows(x), address(weight), address(out), *shape, float(eps))
        return out

    def _add(self, out: np.ndarray, scale: float) -> None:
        """The residual."""
        self._calls.add(_add, address(self._x), address(out), float(scale), address(self._x), *self._x.shape)

    def _read(self, x: np.ndarray, maps: Sequence[tuple[Any, np.ndarray | None, np.ndarray]]) -> None:
        """Several maps (W, b, y) of one x."""
        hold = self._calls.hold
        words = hold(np.array([(*matrix(w), 0 if b is None else address(b), address(y), len(w)) for w, b, y in maps]))
        memory = hold(np.empty(THREADS * STREAMS, np.int64))
        self._calls.add(
            read, address(x), x.shape[1], address(words), len(maps), *x.shape, rows_read(words[0, 1]), address(memory)
        )

    def _write(self, k: np.ndarray, v: np.ndarray, i: int, kinds: tuple[int, int], line: np.ndarray) -> int:
        """The call that appends a sequence's token to its cache; where to is written into it later."""
        (kv, _, d), (k_kind, v_kind) = k.shape, kinds
        return self._calls.add(
            write_columns, *rows(k), *rows(v), address(self._positions) + 8 * i, 0, 0, 0, 0, k_kind, 0, 0, 0, v_kind,
            0, 0, 0, 0, address(line), kv, 1, d, workers=1 if k.size <= FEW_WRITTEN else THREADS,
        )  # fmt: skip

    def _feed_forward(self, x: np.ndarray, w: LayerWeights, silu: bool, y: np.ndarray) -> None:
        """As ffn/call.py does it for a few tokens, and for weights in 8 bits ffn/eight_bits.py."""
        (tokens, dim), count = x.shape, len(w.w_gate)
        if isinstance(w.w_gate, Grouped):
            hidden, ups = self._shared("hidden", 2 * tokens * count).reshape(2, tokens, count)
            self._read(x, [(w.w_gate, None, hidden), (w.w_up, None, ups)])
            self._calls.add(_activate, address(hidden), address(ups), tokens * count, int(silu))
            self._read(hidden, [(w.w_down, None, y)])
            return
        each, part, parts = few_shape(w.w_gate.strides[0], count)
        weights = *matrix(w.w_gate), *matrix(w.w_up), *matrix(w.w_down.T), 0
        size = parts * tokens * dim
        sums = address(self._shared("sums", size + THREADS * 2 * (STREAMS + tokens * each)))
        self._calls.add(_few, address(x), *weights, sums, tokens, dim, count, int(silu), sums + 4 * size, part, each)
        self._calls.add(_join, sums, parts, tokens, dim, address(y), workers=1 if size < SMALL else THREADS)

    def _shared(self, name: str, floats: int) -> np.ndarray:
        """Memory of exactly so many numbers that all layers work in."""
        if (name, floats) not in self._memory:
            self._memory[name, floats] = fresh(floats)
        return self._memory[name, floats]
