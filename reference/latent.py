"""Multi-head latent attention: keys and values of all heads come from one small vector per token.

For a token x (E,), with a query latent where the model has one:

    queries   c_q = RMSNorm(W_dq x)                 q_h = [ W_q,h c_q ; rot(W_qr,h c_q) ]
    keys      c   = RMSNorm(W_dkv x)                k_h = [ W_k,h c   ; rot(W_kr x) ]     rotated once for all heads
    values    v_h = W_v,h c

rot turns a vector by its token's position; what stands before it is not turned. Afterwards attention is that of any
model with as many key-value heads as heads: keys and values stand in the cache as attention reads them, so that
budgets, evicting and selecting mean what they mean everywhere.

The cache could hold c and the rotated part alone, 576 numbers per token and layer in DeepSeek-V3 instead of 49,152,
with W_k and W_v moved into the query and the output. Then all heads would share their keys: one choice of tokens for
all, by other cosines. docs/mixtures.md has what either costs.

W_v has rows of zeros after each head's own where values are narrower than keys, and W_o columns of zeros, so that keys
and values are equally wide for every kernel: such columns add nothing to any sum.

Source: DeepSeek-V2 (arXiv 2405.04434), DeepSeek-V3 (arXiv 2412.19437). The norms of the latents have an eps of their
own, as in those models' code.
"""

from __future__ import annotations

from typing import Any

from reference.config import ModelConfig
from reference.weights import LayerWeights


def latent_heads(backend: Any, config: ModelConfig, w: LayerWeights, x: Any, rotation: Any) -> tuple[Any, Any, Any]:
    """q, k and v, (H, T, D) each, from the normed hidden states (T, E); rotation: cosines and sines, or None."""
    latent, heads = config.latent, config.heads
    assert latent is not None
    down = [(w.w_kv_down, w.b_kv_down), (w.w_k_rotated, w.b_k_rotated)]
    if w.w_q_down is not None:
        down.append((w.w_q_down, w.b_q_down))
    c, k_rotated, *query = backend.linear_each(x, down)
    c = backend.rms_norm(c, w.kv_down_norm, eps=latent.eps)
    of_query = backend.rms_norm(query[0], w.q_down_norm, eps=latent.eps) if query else x

    q, q_rotated = backend.linear_each(of_query, [(w.w_q, None), (w.w_q_rotated, None)])
    k, v = backend.linear_each(c, [(w.w_k, None), (w.w_v, None)])
    q, q_rotated, k, v = (backend.split_heads(part, heads) for part in (q, q_rotated, k, v))
    k_rotated = backend.split_heads(k_rotated, 1)
    if rotation is not None:
        q_rotated, k_rotated = (backend.rotate(part, *rotation) for part in (q_rotated, k_rotated))
    return backend.join_dims(q, q_rotated, config.head_dim), backend.join_dims(k, k_rotated, config.head_dim), v
