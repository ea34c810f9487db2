"""A whole model as a function with a gradient: its layers with FastForward's parts in them, over prompts of one length.

Only the first block is dense, and every layer runs the neurons that its predictor chooses on what the sparse layers
below it leave. The model itself stays as it is: the slope is taken back to the parts alone. A choice has no slope, so
its gradient passes straight through:

    d_s = d_m σ'((s − cut) / u) / u,   m the mask as if it were a number, cut the least score that is kept

so that a neuron near the cut whose term would lower the loss rises (`gradients.mask_slope`). One more neuron in each
block is a lower cut, which moves every mask by its slope. So with their number K the loss changes by

    d_K = Σ_f d_m σ' / Σ_f σ',   summed over the blocks

the mean of d_m around the cut.
"""

from __future__ import annotations

from collections.abc import Sequence
from importlib.util import find_spec
from typing import Any

import numpy as np

from reference import ModelConfig, gradients
from reference.checks import widen
from reference.int8 import plain
from reference.weights import Weights


def device_for(backend: str) -> str | None:
    """Where torch computes for a run on this backend: a GPU where there is one and torch is installed. None: NumPy."""
    if backend not in ("auto", "cuda") or find_spec("torch") is None:
        return None
    import torch

    return "cuda" if torch.cuda.is_available() else None


def _maker(device: str | None) -> Any:
    """What makes an array of the network from NumPy's: a copy, or a tensor of torch on a device."""
    if device is None:
        return np.array
    import torch

    if device == "cuda":
        torch.set_float32_matmul_precision("high")  # TF32 products, several times as fast: a slope need not be exact
    return lambda array: torch.from_numpy(np.array(array)).to(device)


def _fused_attention(q: Any, k: Any, v: Any, scale: float) -> tuple[Any, Any]:
    """`gradients.attention` without a window, by torch's own kernel, which keeps no (T, T) array. On a GPU it reads
    16-bit numbers: dense and sparse pass are rounded alike, and a slope need not be exact."""
    import torch

    kept = torch.bfloat16 if q.is_cuda else q.dtype
    leaves = [array.detach().to(kept).requires_grad_() for array in (q, k, v)]
    out = torch.nn.functional.scaled_dot_product_attention(*leaves, is_causal=True, scale=scale, enable_gqa=True)

    def back(d_o: Any) -> tuple[Any, ...]:
        return tuple(d.to(q.dtype) for d in torch.autograd.grad(out, leaves, d_o.to(kept)))

    return out.detach().to(q.dtype), back


class Network:
    """A dense model on the arrays that `to_array` makes, and FastForward's parts in it. `together`: how many prompts of
    the full length go through at once."""

    def __init__(
        self, config: ModelConfig, weights: Weights, length: int, block: int, device: str | None = None
    ) -> None:
        self.config, self.block, self.to_array, self.device = config, block, _maker(device), device
        self.dtype = widen(plain(weights.final_norm)).dtype  # float64 stays, to be exact; all else is float32

        def load(matrix: Any) -> Any:
            return None if matrix is None else self.to_array(plain(matrix).astype(self.dtype))

        self.embedding, self.final_norm = load(weights.embedding), load(weights.final_norm)
        self.output = self.embedding if weights.output is weights.embedding else load(weights.output)
        self.layers = [{name: load(array) for name, array in vars(layer).items()} for layer in weights.layers]
        positions = np.arange(length)
        ahead = positions[None] - positions[:, None]
        self.hidden = {n: self.to_array((ahead > 0) | (ahead <= -(n or length))) for n in set(config.windows)}
        self.tables = {
            rope: tuple(self.to_array(t.astype(self.dtype)) for t in rope.table(config.head_dim, positions, length))
            for rope in set(config.ropes)
            if rope
        }

        self.together = 1 if device != "cuda" else self._room(length)

    def _room(self, length: int) -> int:
        """How many prompts fit on the GPU: their pass forward is kept for the pass backward."""
        import torch

        config = self.config
        layer = 8 * config.ffn_width + 8 * config.heads * config.head_dim + 12 * config.width
        need = 4 * length * (config.layers * layer + 8 * config.vocab_size)  # bytes
        return max(1, torch.cuda.mem_get_info()[0] * 3 // 4 // need)

    def to_numpy(self, array: Any) -> np.ndarray:
        """A copy of an array of the network, as NumPy's."""
        return np.array(array if isinstance(array, np.ndarray) else array.cpu().numpy())

    def divergence(self, ids: np.ndarray, parts: Sequence[Any], keep: Sequence[int]) -> tuple[Any, Any]:
        """L for prompts (P, T), and a function that gives the parts' gradients."""
        log_p = gradients.log_softmax(self.logits(ids)[0])
        logits, back = self.logits(ids, parts, keep)
        loss, d_logits = gradients.divergence(logits, log_p)
        return loss, lambda: back(d_logits)

    def slope(self, ids: np.ndarray, parts: Sequence[Any], keep: Sequence[int]) -> tuple[Any, list[dict[str, Any]]]:
        """L for prompts (P, T) and its gradient, by layer and array; "keep" is d_K of the layer."""
        loss, back = self.divergence(ids, parts, keep)
        return loss, back()

    def logits(self, ids: Any, parts: Sequence[Any] | None = None, keep: Sequence[int] = ()) -> tuple[Any, Any]:
        """What the model says after each token behind the first block, (P, T − block, V), for prompts (P, T); with
        parts, FastForward's of all layers, each keeping its share of the neurons. `back` gives their gradients from
        d_logits."""
        config = self.config
        x = self.embedding[self.to_array(ids)] * config.embedding_scale
        backs = []
        for n, w in enumerate(self.layers):
            mixed, mix_back = self._attend(n, w, x)
            x = x + mixed
            y, ffn_back = self._feed_forward(w, x, parts and parts[n], parts and keep[n])
            x = x + y
            backs.append((mix_back, ffn_back))
        last, norm_back = gradients.rms_norm(x[:, self.block :], self.final_norm, config.rms_eps)

        def back(d_logits: Any) -> list[Any]:
            d_x = gradients.module_of(x).zeros_like(x)
            d_x[:, self.block :] = norm_back(d_logits @ self.output)
            found = []
            for mix_back, ffn_back in reversed(backs):
                d_y, gradient = ffn_back(d_x)
                d_x = d_x + d_y
                d_x = d_x + mix_back(d_x)
                found.append(gradient)
            return found[::-1]

        return last @ self.output.T, back

    def _attend(self, n: int, w: dict[str, Any], x: Any) -> tuple[Any, Any]:
        """The attention's part of a layer, norms and projections included: (P, T, E) -> (P, T, E)."""
        config, eps = self.config, self.config.rms_eps
        normed, norm_back = gradients.rms_norm(x, w["attention_norm"], eps)
        heads: dict[str, Any] = {}
        backs: dict[str, list[Any]] = {}
        rope = config.ropes[n]
        for name in "qkv":
            flat = normed @ w[f"w_{name}"].T
            if w[f"b_{name}"] is not None:
                flat = flat + w[f"b_{name}"]
            heads[name] = flat.reshape(*x.shape[:2], -1, config.head_dim).swapaxes(1, 2)
            backs[name] = []
            if name != "v":
                if w[f"{name}_norm"] is not None:
                    heads[name], turn = gradients.rms_norm(heads[name], w[f"{name}_norm"], eps)
                    backs[name].append(turn)
                if rope is not None:
                    heads[name], turn = gradients.rotate(heads[name], *self.tables[rope])
                    backs[name].append(turn)
        q, k, v = (heads[name] for name in "qkv")
        window, scale = config.windows[n], config.attention_scale
        if self.device is None or window is not None:
            out, attention_back = gradients.attention(q, k, v, self.hidden[window], scale)
        else:
            out, attention_back = _fused_attention(q, k, v, scale)
        out = out.swapaxes(1, 2).reshape(*x.shape[:2], -1) @ w["w_o"].T
        if w["b_o"] is not None:
            out = out + w["b_o"]
        out, post_back = self._post(out, w["post_attention_norm"])

        def back(d_out: Any) -> Any:
            d_heads = post_back(d_out) @ w["w_o"]
            d_heads = d_heads.reshape(*x.shape[:2], -1, config.head_dim).swapaxes(1, 2)
            d_normed = 0.0
            for name, d in zip("qkv", attention_back(d_heads), strict=True):
                for turn in reversed(backs[name]):
                    d = turn(d)
                d_normed = d_normed + d.swapaxes(1, 2).reshape(*x.shape[:2], -1) @ w[f"w_{name}"]
            return norm_back(d_normed)

        return out, back

    def _feed_forward(self, w: dict[str, Any], x: Any, part: Any, keep: Any) -> tuple[Any, Any]:
        """The FFN's part of a layer: (P, T, E) -> (P, T, E). With a part, all blocks but the first are sparse."""
        normed, norm_back = gradients.rms_norm(x, w["ffn_norm"], self.config.rms_eps)
        act, width, prompts, xp = self.config.activation, x.shape[-1], len(x), gradients.module_of(x)
        blocks = normed.reshape(-1, self.block, width)

        def behind(blocks: Any) -> Any:  # the sparse ones: all but the first of every prompt
            return blocks.reshape(prompts, -1, *blocks.shape[1:])[:, 1:].reshape(-1, *blocks.shape[1:])

        def with_first(sparse: Any, first: Any) -> Any:
            sparse = sparse.reshape(prompts, -1, *sparse.shape[1:])
            return xp.concatenate([first(sparse[:, :1]), sparse], 1).reshape(-1, *sparse.shape[2:])

        mask = xp.ones_like(blocks[:, 0, :1])  # (N, 1)
        if part is not None:
            inputs = behind(blocks)
            scores, score_back = gradients.score(inputs, part.predictor)
            chosen, cut = gradients.choose(scores, keep)
            mask = with_first(chosen, xp.ones_like)  # (N, F)
        y, ffn_back = gradients.masked_ffn(blocks, w["w_gate"], w["w_up"], w["w_down"], mask, act)
        if part is not None:
            extra, extra_back = gradients.compensate(inputs, part.compensator, act)
            y = y + with_first(extra, xp.zeros_like)
        out, post_back = self._post(y.reshape(x.shape), w["post_ffn_norm"])

        def back(d_out: Any) -> tuple[Any, Any]:
            d_y = post_back(d_out).reshape(blocks.shape)
            d_blocks, d_mask = ffn_back(d_y)
            gradient = None
            if part is not None:
                d_more, d_compensator = extra_back(behind(d_y))
                d_blocks = d_blocks + with_first(d_more, xp.zeros_like)
                slope = gradients.mask_slope(scores, cut)
                d_scores = behind(d_mask) * slope
                gradient = {**vars(score_back(d_scores)), **vars(d_compensator)}
                gradient["keep"] = (d_scores.sum(-1) / slope.sum(-1)).sum()
            return norm_back(d_blocks.reshape(x.shape)), gradient

        return out, back

    def _post(self, y: Any, weight: Any) -> tuple[Any, Any]:
        return (y, lambda d: d) if weight is None else gradients.rms_norm(y, weight, self.config.rms_eps)
