"""What a transformer does to one token at a time: embedding, RMSNorm, rotation, linear maps, the gated FFN.

Each function is its formula. Weights keep the checkpoint's (out, in) order; 16-bit and 8-bit weights are widened where
they are read. The last few functions are the moves that the forward pass makes between the formulas.

Sources: Zhang & Sennrich, RMSNorm (arXiv 1910.07467); Su et al., RoFormer (arXiv 2104.09864); Shazeer, GLU variants
(arXiv 2002.05202).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from reference import contract
from reference.checks import one_of, widen
from reference.config import Rope
from reference.contract import ACTIVATIONS
from reference.int8 import Matrix, dequantize, plain
from reference.predictor import FastForwardWeights
from reference.sampling import Sampling
from reference.weights import LayerWeights, Weights


def embed(token_ids: np.ndarray, table: Matrix, *, scale: float = 1.0) -> np.ndarray:
    """Rows of the embedding table times `scale`: token_ids (T,) of 0 ≤ id < V, table (V, E) -> (T, E)."""
    vocab_size = contract.embed(token_ids, table)["V"]
    check_ids(token_ids, vocab_size)
    rows = widen(table[token_ids] if isinstance(table, np.ndarray) else dequantize(table.rows(token_ids)))  # (T, E)
    return rows * rows.dtype.type(scale)


def check_ids(token_ids: np.ndarray, vocab_size: int) -> None:
    """ValueError where an id is not in the vocabulary."""
    outside = token_ids[(token_ids < 0) | (token_ids >= vocab_size)]
    if outside.size:
        raise ValueError(f"token_ids: got id {outside[0]}, wanted 0 to {vocab_size - 1}")


def rms_norm(x: np.ndarray, weight: np.ndarray, *, eps: float) -> np.ndarray:
    """x / √(mean(x²) + eps) · weight over the last axis: x (..., E), weight (E,) -> (..., E).

    Also the norm of each head's queries and keys in families that have one, with E read as D.
    """
    contract.rms_norm(x, weight)
    x = widen(x)
    mean_square = np.mean(x * x, axis=-1, keepdims=True)
    return x / np.sqrt(mean_square + x.dtype.type(eps)) * weight.astype(x.dtype, copy=False)


def rotate(x: np.ndarray, cosine: np.ndarray, sine: np.ndarray) -> np.ndarray:
    """Turn each pair (x_i, x_{i + R/2}) by its angle: x (H, T, D), cosine and sine (T, R/2) -> (H, T, D).

    The two halves of a head pair up, as in Hugging Face checkpoints; where R < D, those of its first R numbers, and the
    rest stay. `Rope.table` makes the cosines and sines.
    """
    half = contract.rotate(x, cosine, sine)["R/2"]
    x = widen(x)
    cosine, sine = cosine.astype(x.dtype, copy=False), sine.astype(x.dtype, copy=False)
    first, second, rest = np.split(x, [half, 2 * half], axis=-1)  # (H, T, R/2) each, (H, T, D - R)
    return np.concatenate([first * cosine - second * sine, second * cosine + first * sine, rest], axis=-1)


def linear(x: np.ndarray, weight: Matrix, bias: np.ndarray | None = None) -> np.ndarray:
    """x Wᵀ + b: x (T, in), weight (out, in), bias (out,) -> (T, out)."""
    contract.linear(x, weight, bias)
    x = widen(x)
    y = x @ plain(weight).astype(x.dtype, copy=False).T
    return y if bias is None else y + bias.astype(x.dtype, copy=False)


def linear_each(x: np.ndarray, maps: Sequence[tuple[Matrix, np.ndarray | None]]) -> list[np.ndarray]:
    """Several linear maps (W, b) of one input, as a backend may do them in one pass: x (T, in) -> (T, out) each."""
    return [linear(x, weight, bias) for weight, bias in maps]


def sigmoid(x: np.ndarray) -> np.ndarray:
    """1 / (1 + e^(-x)), written with e^(-|x|) so that nothing overflows."""
    e = np.exp(-np.abs(x))
    return np.where(x >= 0, 1, e) / (1 + e)


def silu(x: np.ndarray) -> np.ndarray:
    """x · σ(x)."""
    return x * sigmoid(x)


def gelu_tanh(x: np.ndarray) -> np.ndarray:
    """x/2 · (1 + tanh u) with u = √(2/π) (x + 0.044715 x³), the approximation that Gemma is trained with.

    Written as x · σ(2u), which is the same: 1 + tanh u would cancel where u is far below zero.
    """
    return x * sigmoid(np.sqrt(8 / np.pi).astype(x.dtype) * (x + 0.044715 * x * x * x))


def activate(x: np.ndarray, act: str) -> np.ndarray:
    """The activation called `act`, elementwise; ValueError for a name that is none of ACTIVATIONS."""
    one_of("act", act, ACTIVATIONS)
    return silu(x) if act == "silu" else gelu_tanh(x)


def gated_ffn(x: np.ndarray, w_gate: Matrix, w_up: Matrix, w_down: Matrix, *, act: str = "silu") -> np.ndarray:
    """W_down (act(W_gate x) * (W_up x)): x (T, E), w_gate and w_up (F, E), w_down (E, F) -> (T, E)."""
    contract.gated_ffn(x, w_gate, w_up, w_down, act)
    return linear(activate(linear(x, w_gate), act) * linear(x, w_up), w_down)


# The moves between the formulas. An accelerated backend offers them under the same names.


def add(x: np.ndarray, y: np.ndarray, *, scale: float = 1.0) -> np.ndarray:
    """The residual: x + scale · y, both (T, E)."""
    contract.add(x, y, scale)
    return x + y * y.dtype.type(scale)


def soft_cap(x: np.ndarray, *, scale: float = 1.0, cap: float | None = None) -> np.ndarray:
    """cap · tanh(scale · x / cap), which stays between -cap and cap and is nearly scale · x near 0; without a cap
    scale · x itself. Of logits (T, V); attention caps its scores in the same way."""
    contract.soft_cap(x, scale, cap)
    if scale == 1 and cap is None:
        return x
    x = widen(x)
    x = x * x.dtype.type(scale)
    return x if cap is None else np.tanh(x / x.dtype.type(cap)) * x.dtype.type(cap)


def join_dims(x: np.ndarray, y: np.ndarray, width: int) -> np.ndarray:
    """Heads whose dimensions are those of x, then those of y, then zeros: (H, T, D), (H or 1, T, R) -> (H, T, width).

    A y of one head stands in all of them.
    """
    contract.join_dims(x, y, width)
    heads, tokens, dim = x.shape
    joined: np.ndarray = np.zeros((heads, tokens, width), x.dtype)
    joined[..., :dim], joined[..., dim : dim + y.shape[2]] = x, y
    return joined


def concatenate(parts: Sequence[np.ndarray]) -> np.ndarray:
    """Rows of several sequences under each other: (T_1, E), (T_2, E), … -> (ΣT, E)."""
    return parts[0] if len(parts) == 1 else np.concatenate(parts)


def rotation_tables(
    rope: Rope, head_dim: int, spans: Sequence[tuple[int, int, int]], dtype: np.dtype
) -> tuple[np.ndarray, np.ndarray]:
    """Cosines and sines for `rotate`, (ΣT, R/2) each: spans of (first position, T, length of the prompt)."""
    tables = [rope.table(head_dim, np.arange(first, first + count), length) for first, count, length in spans]
    cosine, sine = (np.concatenate(parts).astype(dtype) for parts in zip(*tables, strict=True))
    return cosine, sine


def draw(logits: np.ndarray, sampling: Sampling, rng: np.random.Generator, seen: np.ndarray | None = None) -> int:
    """The next token id by `Sampling.draw`: logits (V,) in the backend, seen (V,) bool on the host."""
    return sampling.draw(to_numpy(logits), rng, seen)


def to_backend(x: np.ndarray) -> np.ndarray:
    """A host array as this backend keeps it: here, the array itself."""
    return x


def to_numpy(x: np.ndarray) -> np.ndarray:
    """An array of this backend on the host: here, the array itself."""
    return x


def prepare_weights(weights: Weights) -> Weights:
    """A model's weights in the layout that this backend computes with: here, as they were loaded."""

    def fetched(layer: LayerWeights) -> LayerWeights:
        stored = layer.stored
        return layer if stored is None else replace(layer, experts=stored.prepared(lambda expert: expert))

    return replace(weights, layers=tuple(map(fetched, weights.layers)))


def prepare_fastforward(weights: FastForwardWeights) -> FastForwardWeights:
    """Trained predictors and compensators in the layout that this backend computes with: here, as they were loaded."""
    return weights
