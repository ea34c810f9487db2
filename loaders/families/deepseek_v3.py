"""deepseek_v3: latent attention, and after the first layers mixtures of experts with sigmoid scores, groups, a bias
that corrects the choice, and a shared expert.

A file has several weights in one tensor: W_q and its rotated part head by head, W_k and W_v head by head, W_dkv above
W_kr. They are taken apart here; where a model turns neighbouring dimensions (2i, 2i + 1), its rows are put in the order
of halves (i, i + R/2), as `rotate` turns them.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from loaders.family import EXPERT_NAMES, LLAMA_NAMES, Family, Made
from loaders.rope import read_rope, rope_parameters
from loaders.settings import Settings
from reference import Latent, Mixture

NAMES = {
    **{weight: name for weight, name in LLAMA_NAMES.items() if weight not in ("w_q", "w_k", "w_v")},
    "w_q_down": "self_attn.q_a_proj.weight",
    "q_down_norm": "self_attn.q_a_layernorm.weight",
    "kv_down_norm": "self_attn.kv_a_layernorm.weight",
}
BIASES = {"b_q_down": "self_attn.q_a_proj.bias", "b_o": "self_attn.o_proj.bias"}
MIXTURE_NAMES = {
    **EXPERT_NAMES,
    "router_bias": "mlp.gate.e_score_correction_bias",
    "w_gate": "mlp.shared_experts.gate_proj.weight",
    "w_up": "mlp.shared_experts.up_proj.weight",
    "w_down": "mlp.shared_experts.down_proj.weight",
}


def differences(settings: Settings) -> dict[str, Any]:
    """Latent attention, and experts from layer `first_k_dense_replace` on."""
    layers, first = settings.whole("num_hidden_layers"), settings.number("first_k_dense_replace")
    settings.require("moe_layer_freq", settings.get("moe_layer_freq", 1) == 1, "1")
    return {**attention(settings), "mixture": mixture(settings, tuple(n >= first for n in range(layers)))}


def attention(settings: Settings) -> dict[str, Any]:
    """The fields of latent attention. With YaRN, `mscale_all_dim` multiplies the scores: (0.1 m ln factor + 1)²."""
    latent, heads = _latent(settings), settings.whole("num_attention_heads")
    rope, m = read_rope(settings), rope_parameters(settings).number("mscale_all_dim", 0.0)
    sharper = 0.1 * m * math.log(rope.factor) + 1 if m and rope.scaling != "none" and rope.factor > 1 else 1.0
    return {
        "latent": latent,
        "kv_heads": heads,
        "head_dim": latent.head_dim,
        "attention_scale": (latent.unrotated + latent.rotated) ** -0.5 * sharper**2,
    }


def mixture(settings: Settings, layers: tuple[bool, ...]) -> Mixture | None:
    """The experts of these layers; None where no layer has any."""
    settings.require("scoring_func", settings.get("scoring_func", "sigmoid") == "sigmoid", "sigmoid")
    width, shared = settings.whole("moe_intermediate_size"), settings.get("n_shared_experts", 0)
    settings.require("n_shared_experts", type(shared) is int and shared >= 0, "a whole number")
    if not any(layers):
        return None
    return Mixture(
        layers,
        experts=settings.whole("n_routed_experts"),
        chosen=settings.whole("num_experts_per_tok"),
        width=width,
        shared_width=width * shared,
        score="sigmoid",
        groups=settings.whole("n_group"),
        groups_chosen=settings.whole("topk_group"),
        normalised=settings.flag("norm_topk_prob"),
        scale=settings.number("routed_scaling_factor"),
    )


def made(settings: Settings) -> Mapping[str, Made]:
    """The weights that are parts of a file's tensors."""
    latent, heads, width = _latent(settings), settings.whole("num_attention_heads"), settings.whole("hidden_size")
    plain, turned, value = latent.unrotated, latent.rotated, latent.value_dim
    neighbours = settings.flag("rope_interleave", True)

    def in_halves(x: np.ndarray) -> np.ndarray:
        """Rotated rows (…, R, in), of which 0, 2, 4, … go before 1, 3, 5, … where neighbours are turned."""
        return np.concatenate([x[..., ::2, :], x[..., 1::2, :]], axis=-2) if neighbours else x

    def of_heads(x: np.ndarray, first: int, stop: int, *, rotated: bool = False) -> np.ndarray:
        """These rows of every head: (H·n, in) -> (H·(stop - first), in)."""
        rows = x.reshape(heads, -1, x.shape[1])[:, first:stop]
        return (in_halves(rows) if rotated else rows).reshape(-1, x.shape[1])

    def shared(x: np.ndarray) -> np.ndarray:
        """The rotated rows below the latent's, of a matrix or of a bias."""
        return in_halves(x[latent.rank :].reshape(turned, -1)).reshape(turned, *x.shape[1:])

    def filled(x: np.ndarray) -> np.ndarray:
        """Heads of values (H, v, …) with zeros up to D: (H·D, …)."""
        rest = ((0, 0), (0, latent.head_dim - value), *[(0, 0)] * (x.ndim - 2))
        return np.pad(x, rest).reshape(heads * latent.head_dim, *x.shape[2:])

    def values(x: np.ndarray) -> np.ndarray:
        return filled(x.reshape(heads, plain + value, -1)[:, plain:])

    def output(x: np.ndarray) -> np.ndarray:
        return np.ascontiguousarray(filled(x.T.reshape(heads, value, -1)).T)

    query = width if latent.query_rank is None else latent.query_rank
    w_q = "self_attn.q_proj.weight" if latent.query_rank is None else "self_attn.q_b_proj.weight"
    down, up = "self_attn.kv_a_proj_with_mqa", ("self_attn.kv_b_proj.weight", (heads * (plain + value), latent.rank))
    of_query = w_q, (heads * (plain + turned), query)
    found = {
        "w_q": Made(*of_query, lambda x: of_heads(x, 0, plain)),
        "w_q_rotated": Made(*of_query, lambda x: of_heads(x, plain, plain + turned, rotated=True)),
        "w_k": Made(*up, lambda x: of_heads(x, 0, plain)),
        "w_v": Made(*up, values),
        "w_o": Made("self_attn.o_proj.weight", (width, heads * value), output),
    }
    tail: tuple[int, ...]
    for kind, letter, tail in (("weight", "w", (width,)), ("bias", "b", ())):
        if letter == "w" or settings.flag("attention_bias"):
            stored = f"{down}.{kind}", (latent.rank + turned, *tail)
            found[f"{letter}_kv_down"] = Made(*stored, lambda x: x[: latent.rank])
            found[f"{letter}_k_rotated"] = Made(*stored, shared)
    return found


def _latent(settings: Settings) -> Latent:
    return Latent(
        rank=settings.whole("kv_lora_rank"),
        unrotated=settings.whole("qk_nope_head_dim"),
        rotated=settings.whole("qk_rope_head_dim"),
        value_dim=settings.whole("v_head_dim"),
        query_rank=None if settings.get("q_lora_rank") is None else settings.whole("q_lora_rank"),
    )


DEFAULTS = {
    "max_position_embeddings": 4096,
    "first_k_dense_replace": 3,
    "moe_intermediate_size": 2048,
    "n_shared_experts": 1,
    "n_routed_experts": 256,
    "num_experts_per_tok": 8,
    "routed_scaling_factor": 2.5,
    "n_group": 8,
    "topk_group": 4,
    "norm_topk_prob": True,
    "kv_lora_rank": 512,
    "q_lora_rank": 1536,
    "qk_rope_head_dim": 64,
    "qk_nope_head_dim": 128,
    "v_head_dim": 128,
}
FAMILIES = (
    Family(
        "deepseek_v3",
        DEFAULTS,
        differences,
        NAMES,
        BIASES,
        other_parts=("model.layers.61.",),  # of the released model: it predicts a token further ahead
        mixture_names=MIXTURE_NAMES,
        made=made,
        parts=("num_experts", "num_local_experts"),
    ),
)
