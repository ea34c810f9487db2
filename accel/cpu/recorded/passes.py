"""Which passes are recorded: a token each of some sequences, of a model whose weights lie ready.

A layer may read all that it holds, or choose a fixed number of keys by QUOKA. It may grow, or be at the budget of an
eviction, where every token finds what the one before it found. All else goes call by call: windows, traces, a layer on
its way to H2O's budget, thinned FFNs.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import fields
from typing import Any

import numpy as np

from accel.cpu.attention.by_key import FEW as FEW_COLUMNS
from accel.cpu.linear.few_tokens import FEW
from accel.cpu.recorded.sequence import Methods, without_caote
from accel.cpu.recorded.step import Step
from accel.cpu.runtime.arrays import Grouped, readable
from accel.cpu.simd import HALF
from reference import H2O, FastForward, KeyDiff, Model, Policy, Quoka, SnapKV, Tova
from reference.state import Chunk
from reference.weights import LayerWeights

Layers = Callable[[Model, Sequence[Chunk]], Any]

# What a step knows to compute with: a model that has more is left to the forward pass.
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
    """What `layers` returns, the hidden states (ΣT, E): in one step where every chunk is a token that can be so."""
    methods = _methods(model, chunks)
    if methods is None:
        return layers(model, chunks)
    holder: Any = chunks[0].state.cache
    if holder.step is None or not holder.step.fits(model, chunks, methods):
        holder.step = Step(model, chunks, methods) if _is_known(model) else None
    return layers(model, chunks) if holder.step is None else holder.step.run(model, chunks)


def _methods(model: Model, chunks: Sequence[Chunk]) -> list[list[Methods]] | None:
    """What every sequence's layers do at this token; None where that is not all known here. Makes room for it."""
    if len(chunks) > FEW or any(model.config.windows):
        return None
    every = []
    for chunk in chunks:
        state = chunk.state
        if not chunk.decoding or state.trace is not None:
            return None
        own = []
        for n, layer in enumerate(state.cache.layers):
            methods = _methods_of(layer, state.policy.at(n), alone=len(chunks) == 1)
            if methods is None:
                return None
            own.append(methods)
        every.append(own)
    for chunk in chunks:
        for each in chunk.state.cache.layers:
            each.make_room(1)  # type: ignore[attr-defined]
    return every


def _methods_of(layer: Any, policy: Policy, alone: bool) -> Methods | None:
    """The methods at work in a layer. None where they do more than a step knows, or not the same at every token."""
    select, evict, size = policy.select, policy.evict, layer.size
    if layer._room.start or not (policy.ffn is None or (alone and _is_dense(policy.ffn, layer))):
        return None
    if select is not None:
        if type(select) is not Quoka or not select.standard or isinstance(select.budget, float):
            return None
        select = select if size > select.budget else None
    base = without_caote(evict)
    if (layer.received is not None) != isinstance(base, H2O):
        return None
    if evict is None or base is None:
        return Methods(select, None)
    if type(base) not in (KeyDiff, H2O, Tova, SnapKV) or isinstance(base.budget, float) or size > base.budget:
        return None
    if isinstance(base, KeyDiff):
        if base.anchor != "normalised" or not layer._summed:
            return None
    elif select is not None or (size < base.budget and not isinstance(base, Tova)):
        return None  # keys that were not read, or what the method notes on its way
    if isinstance(base, SnapKV) and not _is_window(layer.queries, base.window):
        return None
    return Methods(select, evict if size == base.budget else None)


def _is_window(queries: np.ndarray | None, window: int) -> bool:
    """Whether the queries held are as many as SnapKV's window has."""
    if queries is None or queries.shape[1] != window:
        return False
    return queries.dtype == np.float32 and queries.flags.c_contiguous


def _is_dense(ffn: Any, layer: Any) -> bool:
    """Whether a decoded token runs all neurons, and nothing is noted of it."""
    return type(ffn) is FastForward and not ffn.decode and (ffn.neurons == "predictor" or layer.neurons is not None)


def _is_known(model: Model) -> bool:
    """Whether a step knows all that the model has, and its weights lie as kernels of a few tokens read them, whole
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
