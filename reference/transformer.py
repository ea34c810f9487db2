"""The forward pass, written once: every backend runs these lines over its own arrays.

For each layer and each chunk of T tokens (decoding is a chunk of one):

    1  project q, k, v; norm them where the family does; rotate q and k at their true positions
    2  append k, v and positions to the layer's cache
    3  select which keys the chunk reads, then attend causally
    4  project the output, add the residual
    5  feed-forward, dense or sparse, add the residual
    6  evict back to the budget, using what this chunk's attention saw

Several chunks may share a pass, of several sequences or of one: their rows stand under each other in every matrix
product (steps 1, 4 and 5), and each attends to its sequence's cache in its turn (2, 3 and 6). This file does not know
NumPy's arrays from a GPU's, a checkpoint's file format, or a family's name.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import numpy as np

from reference.checks import whole
from reference.config import ModelConfig, Rope
from reference.eviction import Seen
from reference.fastforward import Block
from reference.policy import Policy
from reference.state import Chunk, State, check_tokens
from reference.trace import Counts, Trace
from reference.weights import Weights, check_weights

CHUNK = 128  # tokens per prefill chunk, as in the papers' tables
TOGETHER = 4  # chunks of a prompt that share a pass: each weight is then read a quarter as often


@dataclass(frozen=True)
class Model:
    """A config, the weights in the backend's own layout, and the backend that computes with them."""

    config: ModelConfig
    weights: Weights
    backend: ModuleType

    def __post_init__(self) -> None:
        check_weights(self.weights, self.config)


def forward(model: Model, chunks: Sequence[Chunk]) -> Any:
    """One pass: hidden states after the last norm, the chunks' rows under each other (ΣT, E). Advances every state."""
    config, weights, backend = model.config, model.weights, model.backend
    x = backend.embed(
        np.concatenate([chunk.token_ids for chunk in chunks]), weights.embedding, scale=config.embedding_scale
    )
    ends = np.cumsum([len(chunk.token_ids) for chunk in chunks])
    rows = [slice(end - len(chunk.token_ids), end) for chunk, end in zip(chunks, ends, strict=True)]
    rotations = {rope: _rotation(model, rope, chunks, x.dtype) for rope in set(config.ropes) if rope}
    for n, w in enumerate(weights.layers):
        normed = backend.rms_norm(x, w.attention_norm, eps=config.rms_eps)
        q, k, v = backend.linear_each(normed, [(w.w_q, w.b_q), (w.w_k, w.b_k), (w.w_v, w.b_v)])  # (ΣT, H·D), (ΣT, KV·D)
        q = backend.split_heads(q, config.heads)  # (H, ΣT, D)
        k, v = backend.split_heads(k, config.kv_heads), backend.split_heads(v, config.kv_heads)  # (KV, ΣT, D)
        if w.q_norm is not None:
            q = backend.rms_norm(q, w.q_norm, eps=config.rms_eps)
            k = backend.rms_norm(k, w.k_norm, eps=config.rms_eps)
        if (rope := config.ropes[n]) is not None:
            q, k = (backend.rotate(heads, *rotations[rope]) for heads in (q, k))
        attended = [_attend(model, n, chunk, q[:, r], k[:, r], v[:, r]) for chunk, r in zip(chunks, rows, strict=True)]
        out = backend.linear(backend.concatenate(attended), w.w_o, w.b_o)
        if w.post_attention_norm is not None:
            out = backend.rms_norm(out, w.post_attention_norm, eps=config.rms_eps)
        x = backend.add(x, out)

        normed = backend.rms_norm(x, w.ffn_norm, eps=config.rms_eps)
        out = _feed_forward(model, n, chunks, rows, normed)
        if w.post_ffn_norm is not None:
            out = backend.rms_norm(out, w.post_ffn_norm, eps=config.rms_eps)
        x = backend.add(x, out)
    for chunk in chunks:
        chunk.state.position += len(chunk.token_ids)
    return backend.rms_norm(x, weights.final_norm, eps=config.rms_eps)


def _rotation(model: Model, rope: Rope, chunks: Sequence[Chunk], dtype: np.dtype) -> tuple[Any, Any]:
    """Cosines and sines of all rows' positions, (ΣT, D/2) each."""
    tables = [rope.table(model.config.head_dim, chunk.positions, chunk.length) for chunk in chunks]
    cosine, sine = (np.concatenate(parts).astype(dtype) for parts in zip(*tables, strict=True))
    return model.backend.to_backend(cosine), model.backend.to_backend(sine)


def _attend(model: Model, n: int, chunk: Chunk, q: Any, k: Any, v: Any) -> Any:
    """Steps 2, 3 and 6 for one chunk from its q (H, T, D), k and v (KV, T, D): append, select, attend, evict.

    Returns the heads' outputs side by side (T, H·D). Nothing reads the cache between steps 3 and 6, and the next
    chunk of the same sequence must find it evicted.
    """
    config, backend = model.config, model.backend
    cache, positions = chunk.state.cache.layers[n], chunk.positions
    past = cache.size
    cache.append(k, v, positions)
    keys, values, k_positions, columns = cache.k, cache.v, cache.positions, None
    select, window = chunk.state.policy.at(n).select, config.windows[n]
    if select is not None and window is None and past > select.budget_of(past):
        columns = select.columns(backend, q, cache, past)  # (KV, B + T)
        keys, values, k_positions = cache.gather(columns)
    out = backend.attention(
        q, keys, values, positions, k_positions, scale=config.attention_scale, window=window
    )  # (H, T, D)
    chunk.state.counts.read(n, k_positions.shape[1], cache.size)
    if chunk.state.trace is not None:
        chosen = None if columns is None else backend.to_numpy(k_positions)[:, : -q.shape[1]]  # the past alone
        chunk.state.trace.read(n, chunk.first, chosen)
    seen = Seen(q, positions, keys, k_positions, columns, cache, config.attention_scale, chunk.decoding, backend)
    _evict(model, n, chunk, seen)
    return backend.merge_heads(out)


def _feed_forward(model: Model, n: int, chunks: Sequence[Chunk], rows: list[slice], x: Any) -> Any:
    """Step 5: the FFN of every row, (ΣT, E) -> (ΣT, E). Where all are dense, one product serves all sequences."""
    parts = [chunk.state.policy.at(n).ffn for chunk in chunks]
    if any(parts):
        each = zip(chunks, parts, rows, strict=True)
        return model.backend.concatenate([_by_blocks(model, n, chunk, part, x[r]) for chunk, part, r in each])
    for chunk in chunks:
        _note_neurons(model, n, chunk, chunk.first, len(chunk.token_ids), None)
    w = model.weights.layers[n]
    return model.backend.gated_ffn(x, w.w_gate, w.w_up, w.w_down, act=model.config.activation)


def _by_blocks(model: Model, n: int, chunk: Chunk, part: Any, x: Any) -> Any:
    """The FFN of one sequence, each block with the neurons that its policy part chooses for it: (T, E) -> (T, E)."""
    cache, outputs = chunk.state.cache.layers[n], []
    step = part.block if part else len(x)
    for start in range(0, len(x), step):
        rows, first = x[start : start + step], chunk.first + start
        block = Block(
            rows, first, chunk.length, chunk.decoding, n, model.weights.layers[n], model.config, cache, model.backend
        )
        output, neurons = part.run(block) if part else (block.dense(), None)
        _note_neurons(model, n, chunk, first, len(rows), neurons)
        outputs.append(output)
    return model.backend.concatenate(outputs)


def _note_neurons(model: Model, n: int, chunk: Chunk, first: int, tokens: int, neurons: Any) -> None:
    """Count what a block of `tokens` ran, and trace it: neurons (K,), or None for all of them."""
    state, width = chunk.state, model.config.ffn_width
    state.counts.ran(n, tokens * (width if neurons is None else len(neurons)), tokens * width)
    if state.trace is not None:
        state.trace.ran(n, first, None if neurons is None else model.backend.to_numpy(neurons))


def _evict(model: Model, n: int, chunk: Chunk, seen: Seen) -> None:
    """Step 6: a layer with a window keeps its window, any other its budget."""
    state, to_numpy = chunk.state, model.backend.to_numpy
    evict, window, cache = state.policy.at(n).evict, model.config.windows[n], state.cache.layers[n]
    if window is not None:
        cache.keep_newest(window)
    elif evict is not None:
        before = cache.positions
        if (evicted := evict.evict(seen)) is not None:
            scores, kept = evicted
            state.counts.evicted(n, scores.shape[1] - kept.shape[1])
            if state.trace is not None:
                state.trace.evicted(n, chunk.first, to_numpy(before), to_numpy(scores), to_numpy(kept))


def logits(model: Model, hidden: Any) -> np.ndarray:
    """Scores of every vocabulary entry for the next token, on the host: hidden (T, E) -> (T, V)."""
    return model.backend.to_numpy(model.backend.linear(hidden, model.weights.output))


def new_state(model: Model, policy: Policy | None = None, *, trace: bool = False) -> State:
    """A sequence with nothing in it yet. ValueError where the policy cannot mean anything for this model."""
    policy = policy or Policy()
    policy.check(model.config)
    cache = model.backend.new_cache(model.config, model.weights.embedding.dtype)
    return State(cache, policy, Counts.zeros(model.config.layers), trace=Trace() if trace else None)


def prefill(
    model: Model,
    state: State,
    token_ids: Sequence[int] | np.ndarray,
    *,
    chunk: int = CHUNK,
    every: bool = False,
    progress: Callable[[int], None] | None = None,
) -> np.ndarray:
    """Read a prompt in chunks and advance the state: token_ids (T,) -> logits (1, V) of the next token, or with `every`
    those after each token (T, V).

    Fractions in the state's policy are resolved here, once, against the length of this prompt. `progress` is called
    with the tokens done after each pass. Raises ValueError for an empty prompt, an id outside the vocabulary, or a
    prompt that ends beyond the model's positions, before anything is computed.
    """
    ids = check_tokens(model.config, state, token_ids)
    whole("chunk", chunk)
    length = state.position + len(ids)
    state.policy = state.policy.resolve(length)
    for n, layer in enumerate(state.cache.layers):
        layer.reserve(_most_held(model, state, n, length, chunk))
    rows = []
    for start in range(0, len(ids), TOGETHER * chunk):
        part, first = ids[start : start + TOGETHER * chunk], state.position
        chunks = [Chunk(state, part[n : n + chunk], first + n, length) for n in range(0, len(part), chunk)]
        hidden = forward(model, chunks)
        if every:
            rows.append(logits(model, hidden))
        if progress is not None:
            progress(len(part))
    if not every:
        rows.append(logits(model, hidden[-1:]))
    state.logits = rows[-1][-1]
    return np.concatenate(rows)


def _most_held(model: Model, state: State, n: int, length: int, chunk: int) -> int:
    """Tokens that a layer holds at most while a prompt is read: its window or budget and one chunk, or all."""
    evict, window = state.policy.at(n).evict, model.config.windows[n]
    limit = window if window is not None else evict.budget if evict else length
    return min(length, limit + chunk)


def decode(model: Model, states: Sequence[State], token_ids: Sequence[int]) -> None:
    """Give every sequence its next token, in one pass: writes each state's logits of the token after."""
    chunks = []
    for state, token in zip(states, token_ids, strict=True):
        ids = check_tokens(model.config, state, [token])
        chunks.append(Chunk(state, ids, state.position, state.position + 1, decoding=True))
    for state, row in zip(states, logits(model, forward(model, chunks)), strict=True):
        state.logits = row
