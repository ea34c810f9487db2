"""What a transformer does to one token at a time: embedding, RMSNorm, rotation, linear maps, the gated FFN.

Each function is its formula. Weights keep the checkpoint's (out, in) order; 16-bit weights are widened where they are
read. The last few functions are the moves that the forward pass makes between the formulas.

Sources: Zhang & Sennrich, RMSNorm (arXiv 1910.07467); Su et al., RoFormer (arXiv 2104.09864); Shazeer, GLU variants
(arXiv 2002.05202).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from reference.checks import match, require, widen
from reference.weights import Weights


def embed(token_ids: np.ndarray, table: np.ndarray, *, scale: float = 1.0) -> np.ndarray:
    """Rows of the embedding table times `scale`: token_ids (T,) of 0 ≤ id < V, table (V, E) -> (T, E)."""
    require(np.ndim(token_ids) == 1, f"token_ids: got shape {np.shape(token_ids)}, wanted (T,)")
    vocab_size = table.shape[0]
    ids = np.asarray(token_ids)
    require(ids.dtype.kind in "iu", f"token_ids: got dtype {ids.dtype}, wanted an integer type")
    outside = ids[(ids < 0) | (ids >= vocab_size)]
    require(outside.size == 0, f"token_ids: got id {outside[:1]}, wanted 0 to {vocab_size - 1}")
    rows = widen(table[ids])  # (T, E)
    return rows * rows.dtype.type(scale)


def rms_norm(x: np.ndarray, weight: np.ndarray, *, eps: float) -> np.ndarray:
    """x / √(mean(x²) + eps) · weight over the last axis: x (..., E), weight (E,) -> (..., E).

    Also the norm of each head's queries and keys in families that have one, with E read as D.
    """
    match(weight=(weight, "E"))
    require(
        x.shape[-1] == weight.shape[0], f"x: got last axis {x.shape[-1]}, wanted {weight.shape[0]}, the weight's length"
    )
    x = widen(x)
    mean_square = np.mean(x * x, axis=-1, keepdims=True)
    return x / np.sqrt(mean_square + x.dtype.type(eps)) * weight.astype(x.dtype, copy=False)


def rotate(x: np.ndarray, cosine: np.ndarray, sine: np.ndarray) -> np.ndarray:
    """Turn each pair (x_i, x_{i + D/2}) by its angle: x (H, T, D), cosine and sine (T, D/2) -> (H, T, D).

    The two halves of a head pair up, as in Hugging Face checkpoints. `Rope.table` makes the cosines and sines.
    """
    sizes = match(x=(x, "H T D"), cosine=(cosine, "T D/2"), sine=(sine, "T D/2"))
    half = sizes["D"] // 2
    require(sizes["D/2"] == half, f"cosine: got {sizes['D/2']} angles, wanted {half}, half of head_dim")
    x = widen(x)
    cosine, sine = cosine.astype(x.dtype, copy=False), sine.astype(x.dtype, copy=False)
    first, second = x[..., :half], x[..., half:]  # (H, T, D/2) each
    return np.concatenate([first * cosine - second * sine, second * cosine + first * sine], axis=-1)


def linear(x: np.ndarray, weight: np.ndarray, bias: np.ndarray | None = None) -> np.ndarray:
    """x Wᵀ + b: x (T, in), weight (out, in), bias (out,) -> (T, out)."""
    match(x=(x, "T in"), weight=(weight, "out in"), **({} if bias is None else {"bias": (bias, "out")}))
    x = widen(x)
    y = x @ weight.astype(x.dtype, copy=False).T
    return y if bias is None else y + bias.astype(x.dtype, copy=False)


def linear_each(x: np.ndarray, maps: Sequence[tuple[np.ndarray, np.ndarray | None]]) -> list[np.ndarray]:
    """Several linear maps (W, b) of one input, as a backend may do them in one pass: x (T, in) -> (T, out) each."""
    return [linear(x, weight, bias) for weight, bias in maps]


def silu(x: np.ndarray) -> np.ndarray:
    """x / (1 + e^(-x)), written with e^(-|x|) so that nothing overflows."""
    e = np.exp(-np.abs(x))
    return x * np.where(x >= 0, 1, e) / (1 + e)


def gelu_tanh(x: np.ndarray) -> np.ndarray:
    """x/2 · (1 + tanh(√(2/π) (x + 0.044715 x³))), the approximation that Gemma is trained with."""
    return 0.5 * x * (1 + np.tanh(np.sqrt(2 / np.pi).astype(x.dtype) * (x + 0.044715 * x * x * x)))


ACTIVATIONS = {"silu": silu, "gelu_tanh": gelu_tanh}


def activate(x: np.ndarray, act: str) -> np.ndarray:
    """The activation called `act`, elementwise; ValueError for a name that is none of ACTIVATIONS."""
    require(act in ACTIVATIONS, f"act: got {act!r}, wanted one of {', '.join(ACTIVATIONS)}")
    return ACTIVATIONS[act](x)


def gated_ffn(
    x: np.ndarray, w_gate: np.ndarray, w_up: np.ndarray, w_down: np.ndarray, *, act: str = "silu"
) -> np.ndarray:
    """W_down (act(W_gate x) * (W_up x)): x (T, E), w_gate and w_up (F, E), w_down (E, F) -> (T, E)."""
    match(x=(x, "T E"), w_gate=(w_gate, "F E"), w_up=(w_up, "F E"), w_down=(w_down, "E F"))
    return linear(activate(linear(x, w_gate), act) * linear(x, w_up), w_down)


# The moves between the formulas. An accelerated backend offers them under the same names.


def add(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """The residual: x + y, both (T, E)."""
    return x + y


def concatenate(parts: Sequence[np.ndarray]) -> np.ndarray:
    """Rows of several sequences under each other: (T_1, E), (T_2, E), … -> (ΣT, E)."""
    return parts[0] if len(parts) == 1 else np.concatenate(parts)


def split_heads(x: np.ndarray, heads: int) -> np.ndarray:
    """(T, H·D) -> (H, T, D)."""
    return x.reshape(x.shape[0], heads, -1).transpose(1, 0, 2)


def merge_heads(x: np.ndarray) -> np.ndarray:
    """(H, T, D) -> (T, H·D)."""
    return x.transpose(1, 0, 2).reshape(x.shape[1], -1)


def to_backend(x: np.ndarray) -> np.ndarray:
    """A host array as this backend keeps it: here, the array itself."""
    return x


def to_numpy(x: np.ndarray) -> np.ndarray:
    """An array of this backend on the host: here, the array itself."""
    return x


def prepare_weights(weights: Weights) -> Weights:
    """A model's weights in the layout that this backend computes with: here, as they were loaded."""
    return weights
