"""The forward pass, written once: every backend runs these lines over its own arrays.

For each layer and each chunk of T tokens (decoding is a chunk of one):

    1  norm, project q, k, v; norm q and k where the family does; rotate them at their true positions
    2  append k, v and positions to the layer's cache
    3  select which keys the chunk reads, then attend causally
    4  project the output, norm it where the family does, add the residual
    5  norm, feed-forward, dense, sparse or a mixture of experts, norm it where the family does, add the residual
    6  evict back to the budget, using what this chunk's attention saw

Several chunks share a pass, of one sequence or of several: their rows stand under each other in every matrix product
(steps 1, 4 and 5); how they attend, and which of them together, is `attend`'s matter (2, 3 and 6). This file does not
know NumPy's arrays from a GPU's, a checkpoint's file format, or a family's name.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from reference.attend import attend
from reference.checks import require, whole
from reference.config import ModelConfig, Rope
from reference.fastforward import Block
from reference.latent import latent_heads
from reference.mixture import mixture_layer
from reference.model import Model
from reference.policy import Policy
from reference.state import Chunk, State, by_sequence, check_tokens
from reference.trace import Counts, Trace
from reference.weights import LayerWeights

CHUNK = 128  # tokens per prefill chunk, as in the papers' tables
TOGETHER = 4  # chunks of a prompt that share a pass, where the backend does not say: each weight is read as much less


def forward(model: Model, chunks: Sequence[Chunk]) -> Any:
    """One pass: hidden states after the last norm, the chunks' rows under each other (ΣT, E). Advances every state."""
    marks = [(state, state.mark()) for state in {id(chunk.state): chunk.state for chunk in chunks}.values()]
    try:
        hidden = getattr(model.backend, "run_pass", _run_pass)(_layers, model, chunks)
        for chunk in chunks:
            chunk.state.position += len(chunk.token_ids)
    except BaseException as error:  # an interrupt too: a state must not be left with layers of different length
        for state, mark in marks:
            state.take_back(mark, f"interrupted ({type(error).__name__})")
        raise
    for state, _ in marks:
        state.logits = None  # those of a position that has passed
        for layer, window in zip(state.cache.layers, model.config.windows, strict=True):
            if window is not None:
                layer.keep_newest(window)
    return hidden


def _run_pass(layers: Callable[[Model, Sequence[Chunk]], Any], model: Model, chunks: Sequence[Chunk]) -> Any:
    return layers(model, chunks)


def _layers(model: Model, chunks: Sequence[Chunk]) -> Any:
    """What `forward` returns, from the first embedding to the last norm."""
    config, weights, backend, sequences = model.config, model.weights, model.backend, by_sequence(chunks)
    x = backend.embed(
        np.concatenate([chunk.token_ids for chunk in chunks]), weights.embedding, scale=config.embedding_scale
    )
    spans = [(chunk.first, len(chunk.token_ids), chunk.length) for chunk in chunks]
    rotations: dict[Rope | None, Any] = {
        rope: backend.rotation_tables(rope, config.rotated_dim, spans, x.dtype) for rope in set(config.ropes) if rope
    }

    def norm(x: Any, weight: Any) -> Any:
        return _norm(backend, config, x, weight)

    for n, w in enumerate(weights.layers):
        normed = norm(x, w.attention_norm)
        project = _heads if config.latent is None else latent_heads
        rope = config.ropes[n]
        rotation = None if rope is None else rotations[rope]
        q, k, v = project(backend, config, w, normed, rotation)  # (H, ΣT, D), (KV, ΣT, D) twice
        out = backend.linear(attend(model, n, sequences, q, k, v), w.w_o, w.b_o)
        x = backend.add(x, norm(out, w.post_attention_norm), scale=config.residual_scale)

        out = _feed_forward(model, n, sequences, norm(x, w.ffn_norm))
        x = backend.add(x, norm(out, w.post_ffn_norm), scale=config.residual_scale)
    return norm(x, weights.final_norm)


def _norm(backend: Any, config: ModelConfig, x: Any, weight: Any) -> Any:
    """RMSNorm where the family has it there."""
    return x if weight is None else backend.rms_norm(x, weight, eps=config.rms_eps)


def _heads(backend: Any, config: ModelConfig, w: LayerWeights, x: Any, rotation: Any) -> tuple[Any, Any, Any]:
    """Step 1 without latents: q (H, T, D), k and v (KV, T, D) from the normed hidden states (T, E)."""
    q, k, v = backend.linear_each(x, [(w.w_q, w.b_q), (w.w_k, w.b_k), (w.w_v, w.b_v)])  # (ΣT, H·D), (ΣT, KV·D)
    if config.joint_qk_norm:
        q, k = _norm(backend, config, q, w.q_norm), _norm(backend, config, k, w.k_norm)
    q = backend.split_heads(q, config.heads)  # (H, ΣT, D)
    k, v = backend.split_heads(k, config.kv_heads), backend.split_heads(v, config.kv_heads)  # (KV, ΣT, D)
    if not config.joint_qk_norm:
        q, k = _norm(backend, config, q, w.q_norm), _norm(backend, config, k, w.k_norm)
    if rotation is not None:
        q, k = (backend.rotate(heads, *rotation) for heads in (q, k))
    return q, k, v


def _feed_forward(model: Model, n: int, sequences: Sequence[list[Chunk]], x: Any) -> Any:
    """Step 5: the FFN of every row, (ΣT, E) -> (ΣT, E). Where all are dense, one product serves all sequences."""
    if any(own[0].state.policy.at(n).ffn for own in sequences):
        return model.backend.concatenate([_by_blocks(model, n, own, x) for own in sequences])
    return _dense(model, n, sequences, x)


def _dense(model: Model, n: int, sequences: Sequence[list[Chunk]], x: Any) -> Any:
    """The FFN of the rows of these sequences' chunks, with all neurons: (T, E) -> (T, E)."""
    for own in sequences:
        _note_neurons(model, n, own[0].state, [(chunk.first, len(chunk.token_ids), None) for chunk in own])
    w = model.weights.layers[n]
    if w.experts is not None:
        return mixture_layer(model.backend, model.config, w, x)
    return model.backend.gated_ffn(x, w.w_gate, w.w_up, w.w_down, act=model.config.activation)


def _by_blocks(model: Model, n: int, chunks: list[Chunk], x: Any) -> Any:
    """The FFN of one sequence's chunks, each block with the neurons that its policy part chooses for it: x of all
    sequences (ΣT, E) -> (T, E)."""
    state, start = chunks[0].state, chunks[0].rows.start
    part, x = state.policy.at(n).ffn, x[start : chunks[-1].rows.stop]
    if part is None:
        return _dense(model, n, [chunks], x)
    blocks: list[Block] = []
    for chunk in chunks:
        for at in range(chunk.rows.start, chunk.rows.stop, part.block):
            rows = slice(at - start, min(at + part.block, chunk.rows.stop) - start)
            first, cache = chunk.first + at - chunk.rows.start, state.cache.layers[n]
            blocks.append(Block(x[rows], rows, first, chunk.length, chunk.decoding, n, model, cache))
    output, ran = part.run(x, blocks)
    each = zip(blocks, ran, strict=True)
    _note_neurons(model, n, state, [(block.first, len(block.x), neurons) for block, neurons in each])
    return output


def _note_neurons(model: Model, n: int, state: State, blocks: Sequence[tuple[int, int, Any]]) -> None:
    """Count what blocks ran, and trace it: the position of the first token, tokens, and neurons (K,), or None for all
    of them, of each."""
    width = model.config.neurons(n)
    run = sum(tokens * (width if neurons is None else len(neurons)) for _, tokens, neurons in blocks)
    state.counts.ran(n, run, width * sum(tokens for _, tokens, _ in blocks))
    if state.trace is not None:
        for first, _, neurons in blocks:
            state.trace.ran(n, first, None if neurons is None else model.backend.to_numpy(neurons))


def logits(model: Model, hidden: Any) -> Any:
    """Scores of every vocabulary entry for the next token: hidden (T, E) -> (T, V)."""
    scores = model.backend.linear(hidden, model.weights.output)
    return model.backend.soft_cap(scores, scale=model.config.logit_scale, cap=model.config.logit_cap)


def new_state(model: Model, policy: Policy | None = None, *, trace: bool = False) -> State:
    """A sequence with nothing in it yet. ValueError where the policy cannot mean anything for this model."""
    policy = policy or Policy()
    policy.check(model.config)
    cache = model.backend.new_cache(model.config, model.weights.stored_cache)
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
    rows, together = [], _together(model) * chunk
    for start in range(0, len(ids), together):
        part, first = ids[start : start + together], state.position
        steps = [slice(n, min(n + chunk, len(part))) for n in range(0, len(part), chunk)]
        hidden = forward(model, [Chunk(state, part[step], first + step.start, length, step) for step in steps])
        if every:
            rows.append(logits(model, hidden))
        if progress is not None:
            progress(len(part))
    if not every:
        rows.append(logits(model, hidden[len(hidden) - 1 :]))
    state.logits = rows[-1][len(rows[-1]) - 1]
    return np.concatenate([model.backend.to_numpy(part) for part in rows])


def _together(model: Model) -> int:
    """Chunks of a prompt that share a pass."""
    return getattr(model.backend, "TOGETHER", TOGETHER)


def _most_held(model: Model, state: State, n: int, length: int, chunk: int) -> int:
    """Tokens that a layer holds at most while a prompt is read: its window and a pass, its budget and a chunk, or
    all."""
    evict, window = state.policy.at(n).evict, model.config.windows[n]
    if window is not None:
        return min(length, window + _together(model) * chunk)
    return min(length, evict.budget + chunk) if evict else length


def decode(model: Model, states: Sequence[State], token_ids: Sequence[int]) -> None:
    """Give every sequence its next token, in one pass: writes each state's logits of the token after.

    Raises ValueError for a state that is given twice, and as `prefill` does.
    """
    require(len({id(state) for state in states}) == len(states), "states: got one twice, wanted every sequence once")
    chunks: list[Chunk] = []
    for state, token in zip(states, token_ids, strict=True):
        ids = check_tokens(model.config, state, [token])
        place = len(chunks)
        chunks.append(Chunk(state, ids, state.position, state.position + 1, slice(place, place + 1), decoding=True))
    rows = logits(model, forward(model, chunks))
    for n, state in enumerate(states):
        state.logits = rows[n]
