"""The calls of a token each of some sequences, from the embedding to the last norm."""

from __future__ import annotations

import weakref
from collections.abc import Sequence
from typing import Any

import numpy as np

from accel.cpu.attention.by_key import attend_few, few_places
from accel.cpu.attention.call import _merge
from accel.cpu.attention.reads import WORDS
from accel.cpu.ffn.activation import _activate
from accel.cpu.ffn.call import _few, _join, few_shape
from accel.cpu.layers import _add, _rms_norm, _rotate, embed, sharing
from accel.cpu.linear.few_tokens import STREAMS, read, rows_read
from accel.cpu.methods.caote import no_negatives
from accel.cpu.methods.topk import numbers_only
from accel.cpu.recorded.sequence import Methods, OneSequence
from accel.cpu.runtime.arrays import Grouped, address, matrix, rows
from accel.cpu.runtime.calls import Calls
from accel.cpu.runtime.memory import SMALL, fresh
from accel.cpu.runtime.team import THREADS
from reference import Model
from reference.attention import split_heads
from reference.layers import rotation_tables
from reference.state import Chunk
from reference.weights import LayerWeights


class Step:
    """The calls of a token each of some sequences."""

    def __init__(self, model: Model, chunks: Sequence[Chunk], methods: Sequence[Sequence[Methods]]) -> None:
        self._model, self._calls, self._tokens = weakref.ref(model), Calls(), len(chunks)
        self._memory: dict[tuple[str, int], np.ndarray] = {}
        config, hold = model.config, self._calls.hold
        self._attended = hold(fresh(self._tokens, config.heads, config.head_dim))
        self._table = hold(np.zeros((config.layers, self._tokens, WORDS), np.int64))
        self._wrong = hold(np.zeros(2, np.int64))  # heads whose scores are NaN, or below zero where they must not be
        self._sequences = [
            OneSequence(
                self._calls, self._shared, config, chunk, own, self._table[:, i], self._attended[i : i + 1], self._wrong
            )
            for i, (chunk, own) in enumerate(zip(chunks, methods, strict=True))
        ]
        caches: list[Any] = [chunk.state.cache for chunk in chunks]
        self._list_calls(model, [cache.layers for cache in caches])
        self._calls.finish()
        for one, cache in zip(self._sequences, caches, strict=True):
            one.finish(cache.layers)

    def fits(self, model: Model, chunks: Sequence[Chunk], methods: Sequence[Sequence[Methods]]) -> bool:
        """Whether these are the same sequences of the same model, and their buffers and methods are the same."""
        if self._model() is not model or len(self._sequences) != len(chunks):
            return False
        each = zip(self._sequences, chunks, methods, strict=True)
        return all(one.fits(chunk, own) for one, chunk, own in each)

    def run(self, model: Model, chunks: Sequence[Chunk]) -> np.ndarray:
        """The token of every sequence: appends it to the caches, and returns the hidden states (T, E)."""
        config = model.config
        ids = np.concatenate([chunk.token_ids for chunk in chunks])
        self._x[...] = embed(ids, model.weights.embedding, scale=config.embedding_scale)
        spans = [(chunk.first, 1, chunk.length) for chunk in chunks]
        for rope, (cosine, sine) in self._tables.items():
            cosine[...], sine[...] = rotation_tables(rope, config.head_dim, spans, np.dtype(np.float32))
        for one, chunk in zip(self._sequences, chunks, strict=True):
            one.begin(chunk)
        in_ranges = np.max([one.parts for one in self._sequences], axis=0) > 1  # layer by layer
        self._calls.leave_out(self._merges, ~in_ranges)
        self._wrong[:] = 0
        try:
            self._calls.run()
        finally:  # an interrupt comes when all is done, and then it must be noted too
            if self._calls.have_run():
                for one, chunk in zip(self._sequences, chunks, strict=True):
                    one.end(chunk)
        no_negatives(self._wrong[1:])
        numbers_only(self._wrong)
        return self._hidden.copy()

    def _list_calls(self, model: Model, caches: Sequence[Sequence[Any]]) -> None:
        """Every kernel call of a token, layer after layer."""
        config, weights, tokens, hold = model.config, model.weights, self._tokens, self._calls.hold
        e, h, kv, d = config.width, config.heads, config.kv_heads, config.head_dim
        self._x, self._hidden, normed, out = (hold(fresh(tokens, e)) for _ in range(4))
        q, k, v = (hold(fresh(tokens, heads * d)) for heads in (h, kv, kv))
        by_head = [split_heads(x, heads) for x, heads in ((q, h), (k, kv), (v, kv))]
        turned_q, turned_k, normed_q, normed_k = (hold(fresh(heads, tokens, d)) for heads in (h, kv, h, kv))
        self._tables = {
            rope: [hold(np.empty((tokens, rope.rotated(d) // 2), np.float32)) for _ in range(2)]
            for rope in set(config.ropes)
            if rope
        }
        size = few_places(0, d).end
        memory = hold(fresh(size // 4 * THREADS))
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
                    shape, workers = (len(source), tokens, d, half), sharing(len(source) * tokens)
                    self._calls.add(_rotate, *rows(source), *tables, address(target), *shape, workers=workers)
                queries, keys = turned_q, turned_k
            for i, (one, layers) in enumerate(zip(self._sequences, caches, strict=True)):
                one.before(n, layers[n], *(heads[:, i : i + 1] for heads in (queries, keys, values)))
            table = address(self._table[n])
            self._calls.add(attend_few, table, tokens, address(memory), size)
            for one, layers in zip(self._sequences, caches, strict=True):
                one.after(n, layers[n])
            self._merges.append(self._calls.add(_merge, table, tokens))
            self._read(self._attended.reshape(tokens, h * d), [(w.w_o, w.b_o, out)])
            self._add(self._norm(out, w.post_attention_norm, normed, config.rms_eps), config.residual_scale)
            x = self._norm(self._x, w.ffn_norm, normed, config.rms_eps)
            self._feed_forward(x, w, config.activation == "silu", out)
            self._add(self._norm(out, w.post_ffn_norm, normed, config.rms_eps), config.residual_scale)
        self._norm(self._x, weights.final_norm, self._hidden, config.rms_eps)

    def _norm(self, x: np.ndarray, weight: np.ndarray | None, out: np.ndarray, eps: float) -> np.ndarray:
        """RMSNorm of x in `out`; x itself where the family has none there."""
        if weight is None:
            return x
        heads = len(x) if x.ndim == 3 else 1
        shape = heads, x.shape[-2], x.shape[-1]
        workers = sharing(heads * x.shape[-2])
        self._calls.add(_rms_norm, *rows(x), address(weight), address(out), *shape, float(eps), workers=workers)
        return out

    def _add(self, out: np.ndarray, scale: float) -> None:
        """The residual."""
        here, workers = address(self._x), sharing(self._tokens)
        self._calls.add(_add, here, address(out), float(scale), here, *self._x.shape, workers=workers)

    def _read(self, x: np.ndarray, maps: Sequence[tuple[Any, np.ndarray | None, np.ndarray]]) -> None:
        """Several maps (W, b, y) of one x."""
        hold = self._calls.hold
        words = hold(np.array([(*matrix(w), 0 if b is None else address(b), address(y), len(w)) for w, b, y in maps]))
        memory = hold(np.empty(THREADS * STREAMS, np.int64))
        each = rows_read(words[0, 1], words[:, 5].sum())
        self._calls.add(read, address(x), x.shape[1], address(words), len(maps), *x.shape, each, address(memory))

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
