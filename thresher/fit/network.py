"""A whole model as a function with a gradient: its layers with FastForward's parts in them, one prompt at a time.

Only the first block is dense, and every layer runs the neurons that its predictor chooses on what the sparse layers
below it leave. The model itself stays as it is: the slope is taken back to the parts alone. A choice has no slope, so
its gradient passes straight through:

    d_s = d_m σ'(s − cut),   m the mask as if it were a number, cut the least score that is kept

so that a neuron near the cut whose term would lower the loss rises.
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


class Network:
    """A dense model on the arrays that `to_array` makes, and FastForward's parts in it: one prompt at a time."""

    def __init__(
        self, config: ModelConfig, weights: Weights, length: int, block: int, device: str | None = None
    ) -> None:
        self.config, self.block, self.to_array = config, block, _maker(device)
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

    def to_numpy(self, array: Any) -> np.ndarray:
        """A copy of an array of the network, as NumPy's."""
        return np.array(array if isinstance(array, np.ndarray) else array.cpu())

    def divergence(self, ids: np.ndarray, parts: Sequence[Any], keep: Sequence[int]) -> tuple[float, Any]:
        """L for one prompt, and a function that gives the parts' gradients."""
        log_p = gradients.log_softmax(self.logits(ids)[0])
        logits, back = self.logits(ids, parts, keep)
        loss, d_logits = gradients.divergence(logits, log_p)
        return float(loss), lambda: back(d_logits)

    def slope(self, ids: np.ndarray, parts: Sequence[Any], keep: Sequence[int]) -> tuple[float, list[dict[str, Any]]]:
        """L for one prompt and its gradient, by layer and array."""
        loss, back = self.divergence(ids, parts, keep)
        return loss, back()

    def logits(self, ids: Any, parts: Sequence[Any] | None = None, keep: Sequence[int] = ()) -> tuple[Any, Any]:
        """What the model says after each token behind the first block, (T − block, V); with parts, FastForward's of
        all layers, each keeping its share of the neurons. `back` gives their gradients from d_logits."""
        config = self.config
        x = self.embedding[self.to_array(ids)] * config.embedding_scale
        backs = []
        for n, w in enumerate(self.layers):
            mixed, mix_back = self._attend(n, w, x)
            x = x + mixed
            y, ffn_back = self._feed_forward(w, x, parts and parts[n], parts and keep[n])
            x = x + y
            backs.append((mix_back, ffn_back))
        last, norm_back = gradients.rms_norm(x[self.block :], self.final_norm, config.rms_eps)

        def back(d_logits: Any) -> list[Any]:
            d_x = gradients.module_of(x).zeros_like(x)
            d_x[self.block :] = norm_back(d_logits @ self.output)
            found = []
            for mix_back, ffn_back in reversed(backs):
                d_y, gradient = ffn_back(d_x)
                d_x = d_x + d_y
                d_x = d_x + mix_back(d_x)
                found.append(gradient)
            return found[::-1]

        return last @ self.output.T, back

    def _attend(self, n: int, w: dict[str, Any], x: Any) -> tuple[Any, Any]:
        """The attention's part of a layer, norms and projections included: (T, E) -> (T, E)."""
        config, eps = self.config, self.config.rms_eps
        normed, norm_back = gradients.rms_norm(x, w["attention_norm"], eps)
        heads: dict[str, Any] = {}
        backs: dict[str, list[Any]] = {}
        rope = config.ropes[n]
        for name in "qkv":
            flat = normed @ w[f"w_{name}"].T
            if w[f"b_{name}"] is not None:
                flat = flat + w[f"b_{name}"]
            heads[name] = flat.reshape(len(x), -1, config.head_dim).swapaxes(0, 1)
            backs[name] = []
            if name != "v":
                if w[f"{name}_norm"] is not None:
                    heads[name], turn = gradients.rms_norm(heads[name], w[f"{name}_norm"], eps)
                    backs[name].append(turn)
                if rope is not None:
                    heads[name], turn = gradients.rotate(heads[name], *self.tables[rope])
                    backs[name].append(turn)
        hidden = self.hidden[config.windows[n]]
        out, attention_back = gradients.attention(heads["q"], heads["k"], heads["v"], hidden, config.attention_scale)
        out = out.swapaxes(0, 1).reshape(len(x), -1) @ w["w_o"].T
        if w["b_o"] is not None:
            out = out + w["b_o"]
        out, post_back = self._post(out, w["post_attention_norm"])

        def back(d_out: Any) -> Any:
            d_heads = post_back(d_out) @ w["w_o"]
            d_heads = d_heads.reshape(len(x), -1, config.head_dim).swapaxes(0, 1)
            d_normed = 0.0
            for name, d in zip("qkv", attention_back(d_heads), strict=True):
                for turn in reversed(backs[name]):
                    d = turn(d)
                d_normed = d_normed + d.swapaxes(0, 1).reshape(len(x), -1) @ w[f"w_{name}"]
            return norm_back(d_normed)

        return out, back

    def _feed_forward(self, w: dict[str, Any], x: Any, part: Any, keep: Any) -> tuple[Any, Any]:
        """The FFN's part of a layer: (T, E) -> (T, E). With a part, all blocks but the first are sparse."""
        normed, norm_back = gradients.rms_norm(x, w["ffn_norm"], self.config.rms_eps)
        blocks, act = normed.reshape(-1, self.block, normed.shape[-1]), self.config.activation
        xp = gradients.module_of(x)
        mask = xp.ones_like(normed[: len(blocks), :1] @ w["w_gate"][:, :1].T)  # (N, F)
        if part is not None:
            scores, score_back = gradients.score(blocks[1:], part.predictor)
            mask[1:], cut = gradients.choose(scores, keep)
        y, ffn_back = gradients.masked_ffn(blocks, w["w_gate"], w["w_up"], w["w_down"], mask, act)
        if part is not None:
            extra, extra_back = gradients.compensate(blocks[1:], part.compensator, act)
            y[1:] += extra
        out, post_back = self._post(y.reshape(x.shape), w["post_ffn_norm"])

        def back(d_out: Any) -> tuple[Any, Any]:
            d_y = post_back(d_out).reshape(blocks.shape)
            d_blocks, d_mask = ffn_back(d_y)
            gradient = None
            if part is not None:
                d_more, d_compensator = extra_back(d_y[1:])
                d_blocks[1:] += d_more
                near = gradients.sigmoid(scores - cut)
                gradient = {**vars(score_back(d_mask[1:] * near * (1 - near))), **vars(d_compensator)}
            return norm_back(d_blocks.reshape(x.shape)), gradient

        return out, back

    def _post(self, y: Any, weight: Any) -> tuple[Any, Any]:
        return (y, lambda d: d) if weight is None else gradients.rms_norm(y, weight, self.config.rms_eps)
