"""The methods inside transformers: its models, its `generate`, our attention and cache.

    from thresher.hf import wrap
    model = wrap(AutoModelForCausalLM.from_pretrained(…), Policy(evict="keydiff:budget=2048"))
    model.generate(**inputs)

Importing this module registers an attention called "thresher". With a `Cache` of ours it does per layer what the
engine's own forward pass does (reference/attend.py): it takes the queries in chunks, appends, selects, attends, evicts.
A prompt given in one piece is so read as in a chunked prefill, and what a layer holds never exceeds budget + chunk.
Tensors on the processor go through `accel.cpu`, on an NVIDIA GPU through `accel.cuda`, without a copy.

What transformers keeps for itself: the FFN, so that a policy may not thin it. What is refused, in one line: padding
(give sequences of one length, or one by one), gradients, soft-capped scores, attention sinks, beam search.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from types import ModuleType
from typing import Any, cast

import ml_dtypes
import numpy as np
import torch
import transformers
from transformers.cache_utils import CacheLayerMixin
from transformers.masking_utils import AttentionMaskInterface

from reference import CHUNK, Chunk, Counts, LayerCache, Model, ModelConfig, Policy, State
from reference.attend import attend
from reference.checks import require, whole
from thresher.kernels import compile_kernels
from thresher.torch import backend_for, to_array, to_tensor

NAME = "thresher"
_LAYER = "_thresher_layer"  # the attribute by which keys bring their layer of a Cache to the attention
_UNKNOWN = ("s_aux",)  # what some families add to attention, and the contract has not


def wrap(model: Any, policy: Policy | None = None, *, chunk: int = CHUNK) -> Any:
    """Let a transformers model run under a policy: returns the same model.

    Every call and every `generate` without a cache of its own gets a fresh `Cache(model.config, policy, chunk=chunk)`.
    Raises ValueError for a policy that the model cannot run under, and, when called, for a cache of another kind.
    """
    Cache(model.config, policy, chunk=chunk)  # so that a mistake is told now

    def give_cache(_: Any, args: tuple[Any, ...], named: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        given = named.get("past_key_values")
        if isinstance(given, Cache):
            return args, named
        fresh = given is None or given.get_seq_length() == 0  # `generate` brings an empty one
        require(fresh, f"past_key_values: got a {type(given).__name__} in use, wanted a thresher.hf.Cache")
        return args, {**named, "past_key_values": Cache(model.config, policy, chunk=chunk)}

    model.set_attn_implementation(NAME)
    model.register_forward_pre_hook(give_cache, with_kwargs=True)
    return model


class Cache(transformers.Cache):
    """Keys and values in the engine's own caches, selected from and evicted by a policy.

    config: the model's. chunk: tokens of a prompt that select and are evicted after at a time. A fraction in the policy
    is a share of all that has been read when the newest prompt ends. `states` holds, once something was read, one
    `reference.State` per sequence: its counts, and the positions still held.
    """

    def __init__(self, config: Any, policy: Policy | None = None, *, chunk: int = CHUNK) -> None:
        self.shape = _shape(config.get_text_config(decoder=True))
        self.policy, self.chunk = policy or Policy(), whole("chunk", chunk)
        parts = [self.policy, *self.policy.overrides.values()]
        require(not any(part.ffn for part in parts), "policy: got an ffn, wanted none: transformers runs the FFN")
        self.policy.check(self.shape)
        self.states: list[State] = []
        super().__init__(layers=[_Layer(self, n) for n in range(self.shape.layers)])

    @property
    def nbytes(self) -> int:
        """Bytes held for all sequences."""
        return sum(state.cache.nbytes for state in self.states)

    def begin(self, sequences: int, backend: ModuleType, dtype: np.dtype) -> None:
        """Make room for a batch, where there is none yet; ValueError for another batch than before."""
        if not self.states:
            compile_kernels(backend, self.policy)
            self.states = [
                State(backend.new_cache(self.shape, dtype), self.policy, Counts.zeros(self.shape.layers))
                for _ in range(sequences)
            ]
        held = len(self.states)
        require(held == sequences, f"past_key_values: got {sequences} sequences, wanted the {held} that it holds")

    def reset(self) -> None:
        """Forget everything."""
        self.states = []


class _Layer(CacheLayerMixin):
    """One layer of a Cache, as transformers asks for it."""

    def __init__(self, cache: Cache, number: int) -> None:
        super().__init__()
        self.cache, self.number = cache, number
        self.is_sliding = cache.shape.windows[number] is not None

    def held(self, sequence: int) -> LayerCache:
        """What is held of a sequence."""
        return self.cache.states[sequence].cache.layers[self.number]

    def get_seq_length(self) -> int:
        """Tokens seen, whether or not they are still held: the position of the next one."""
        return self.held(0).newest + 1 if self.cache.states else 0

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """As if all tokens seen were held: no mask is made from it, positions alone decide what a query sees."""
        return self.get_seq_length() + query_length, 0

    def get_max_length(self) -> int:
        """No bound."""
        return -1

    def lazy_initialization(self, key_states: Any, value_states: Any) -> None:
        """Nothing: `attend` makes what it needs."""

    def update(self, key_states: Any, value_states: Any, *_: Any, **__: Any) -> tuple[Any, Any]:
        """The new keys and values as they are; `attend` appends them when the queries are there too."""
        setattr(key_states, _LAYER, self)
        return key_states, value_states

    def attend(self, query: Any, key: Any, value: Any, scale: float, cap: float | None) -> list[torch.Tensor]:
        """Attention of new tokens to what is held, chunk by chunk: (B, H, T, D), (B, KV, T, D) -> (T, H·D) each."""
        cache, backend, dtype = self.cache, backend_for(query, key, value), _dtype(key)
        cache.begin(len(query), backend, dtype)
        model = cast(Model, _Attending(replace(cache.shape, attention_scale=scale, score_cap=cap), backend))
        window, tokens, outs = cache.shape.windows[self.number], query.shape[2], []
        for n, state in enumerate(cache.states):
            first, layer = self.held(n).newest + 1, self.held(n)
            if self.number == 0 and (tokens > 1 or first == 0):
                state.policy = cache.policy.resolve(first + tokens)
            spans = [slice(start, min(start + cache.chunk, tokens)) for start in range(0, tokens, cache.chunk)]
            ids = np.zeros(tokens, np.int64)  # what they are does not matter here, only how many
            decoding = tokens == 1 and first > 0
            chunks = [Chunk(state, ids[s], first + s.start, first + tokens, s, decoding) for s in spans]
            outs.append(to_tensor(attend(model, self.number, [chunks], *map(to_array, (query[n], key[n], value[n])))))
            if window is not None:
                layer.keep_newest(window)
            state.position = first + tokens
        return outs

    def reorder_cache(self, beam_idx: Any) -> None:
        """Beams are not supported."""
        raise ValueError("past_key_values: got beams to reorder, wanted num_beams=1: a thresher.hf.Cache has none")

    def crop(self, tokens_to_remove: int) -> None:
        """What was evicted for tokens cannot be had back without them."""
        raise ValueError("past_key_values: got a crop, wanted none: a thresher.hf.Cache cannot take tokens back")


@dataclass(frozen=True)
class _Attending:
    """As much of a Model as attention needs."""

    config: ModelConfig
    backend: ModuleType


def attention(
    module: Any,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: Any = None,
    scaling: float | None = None,
    dropout: float = 0.0,
    sliding_window: int | None = None,
    softcap: float | None = None,
    **named: Any,
) -> tuple[torch.Tensor, None]:
    """transformers' attention interface: query (B, H, T, D), key and value (B, KV, S, D) -> (B, T, H, D).

    Keys that come from a `Cache` of ours are selected and evicted by its policy; without one, or with another, this is
    dense attention, the queries being those of the last T keys. Raises ValueError for what the contract does not have.
    """
    layer = getattr(key, _LAYER, None)
    batch, heads, tokens, dim = query.shape
    require(attention_mask is None, "attention_mask: got a mask of four axes, wanted none: causality is by position")
    require(getattr(module, "is_causal", True), "attention: got a module that is not causal, wanted a decoder's")
    require(not dropout, f"dropout: got {dropout}, wanted 0: the model must be in eval mode")
    unknown = [name for name in _UNKNOWN if named.get(name) is not None]
    require(not unknown, f"attention: got {', '.join(unknown)}, wanted none: the contract has no such part")
    scale = dim**-0.5 if scaling is None else scaling
    if layer is not None:
        window = layer.cache.shape.windows[layer.number]
        told = f"sliding_window: got {sliding_window} in layer {layer.number}, wanted {window} as the config has it"
        require(sliding_window == window, told)
        outs = layer.attend(query, key, value, scale, softcap)
    else:
        backend, keys = backend_for(query, key, value), key.shape[2]
        positions = backend.to_backend(np.broadcast_to(np.arange(keys), (key.shape[1], keys)))
        reads = [(*map(to_array, each), keys - tokens, positions) for each in zip(query, key, value, strict=True)]
        outs = [
            to_tensor(out) for out in backend.attention_each(reads, scale=scale, window=sliding_window, cap=softcap)
        ]
    return torch.stack(outs).reshape(batch, tokens, heads, dim).to(query.dtype), None


def mask(*_: Any, attention_mask: torch.Tensor | None = None, **__: Any) -> None:
    """transformers' mask interface: no mask is needed, and one that hides tokens is refused."""
    padded = attention_mask is not None and not bool(attention_mask.all())
    require(not padded, "attention_mask: got padding, wanted sequences of one length, or one at a time")


def _shape(config: Any) -> ModelConfig:
    """What attention and a policy must know of a transformers config."""
    layers, window = config.num_hidden_layers, getattr(config, "sliding_window", None)
    types = getattr(config, "layer_types", None) or [None if window is None else "sliding_attention"] * layers
    wanted = (None, "full_attention", "sliding_attention")
    require(set(types) <= set(wanted), f"layer_types: got {', '.join(map(str, set(types)))}, wanted attention alone")
    heads = config.num_attention_heads
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // heads
    return ModelConfig(
        family=config.model_type,
        layers=layers,
        width=config.hidden_size,
        heads=heads,
        kv_heads=getattr(config, "num_key_value_heads", None) or heads,
        head_dim=head_dim,
        ffn_width=1,  # transformers' matter, as are the rotations
        vocab_size=config.vocab_size,
        max_positions=config.max_position_embeddings,
        ropes=(None,) * layers,
        windows=tuple(window if kind == "sliding_attention" else None for kind in types),
        attention_scale=head_dim**-0.5,
    )


def _dtype(tensor: torch.Tensor) -> np.dtype:
    """What a cache stores for such keys."""
    return np.dtype(ml_dtypes.bfloat16 if tensor.dtype == torch.bfloat16 else str(tensor.dtype).removeprefix("torch."))


transformers.AttentionInterface.register(NAME, attention)
AttentionMaskInterface.register(NAME, mask)
