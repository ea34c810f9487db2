"""The shape of a model, and how a position becomes a rotation.

`ModelConfig` holds what the forward pass must know beside the weights. Families differ only in these
fields and in which optional weights they bring; nothing here knows a file format or a family's name.

Source: Su et al., RoFormer (arXiv 2104.09864) for the rotation; Peng et al., YaRN (arXiv 2309.00071) for "yarn" and
"dynamic"; the Llama 3.1 release for "llama3"; Ding et al., LongRoPE (arXiv 2402.13753) and the Phi-3 release for
"longrope".
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from reference.checks import require
from reference.contract import ACTIVATIONS, finite, positive
from reference.parts import Latent, Mixture

SCALINGS = ("none", "linear", "dynamic", "llama3", "yarn", "longrope")


@dataclass(frozen=True)
class Rope:
    """Rotary position embedding of one layer.

    `theta` is the base of the frequencies theta^(-2i/D); `scaling` names how they are stretched beyond
    the `original_positions` that the model was first trained on; the rest are that scaling's parameters. Only the first
    R = `share` · D numbers of a head turn; where that is not all of them, R stands in place of D in every formula.

    "longrope" divides frequency i by short_factors[i], or by long_factors[i] in a sequence that is longer than
    `original_positions`, (R/2,) each.
    """

    theta: float
    scaling: str = "none"
    factor: float = 1.0
    original_positions: int = 0
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    attention_factor: float | None = None
    truncate: bool = True
    share: float = 1.0
    short_factors: tuple[float, ...] = ()
    long_factors: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        require(self.theta > 0, f"rope theta: got {self.theta}, wanted a positive number")
        require(self.scaling in SCALINGS, f"rope scaling: got {self.scaling!r}, wanted one of {', '.join(SCALINGS)}")
        require(self.factor > 0, f"rope factor: got {self.factor}, wanted a positive number")
        require(0 < self.share <= 1, f"rope share: got {self.share}, wanted above 0 and at most 1")
        if self.scaling in ("dynamic", "llama3", "yarn", "longrope"):
            require(
                self.original_positions > 0,
                f"rope original_positions: got {self.original_positions}, wanted at least 1 for {self.scaling!r}",
            )

    def rotated(self, head_dim: int) -> int:
        """R: how many numbers of a head turn, the first ones."""
        return int(self.share * head_dim)

    def frequencies(self, head_dim: int, length: int) -> np.ndarray:
        """Radians per position, (R/2,) float64, for a sequence of `length` tokens ("dynamic" and "longrope" look at
        it)."""
        head_dim = self.rotated(head_dim)
        exponents = np.arange(0, head_dim, 2) / head_dim
        if self.scaling == "dynamic":
            # The base grows with the sequence, so that the slowest pair never turns further than it did in training.
            stretch = self.factor * max(length, self.original_positions) / self.original_positions - (self.factor - 1)
            return (self.theta * stretch ** (head_dim / (head_dim - 2))) ** -exponents
        frequencies = self.theta**-exponents
        if self.scaling == "linear":
            return frequencies / self.factor
        if self.scaling == "llama3":
            turns = self.original_positions * frequencies / (2 * np.pi)  # full turns within the trained length
            keep = np.clip((turns - self.low_freq_factor) / (self.high_freq_factor - self.low_freq_factor), 0, 1)
            return frequencies * keep + frequencies / self.factor * (1 - keep)
        if self.scaling == "yarn":
            return frequencies * self._yarn_keep(head_dim) + frequencies / self.factor * (1 - self._yarn_keep(head_dim))
        if self.scaling == "longrope":
            return frequencies / (self.long_factors if length > self.original_positions else self.short_factors)
        return frequencies

    def _yarn_keep(self, head_dim: int) -> np.ndarray:
        """Share of each pair's own frequency that YaRN keeps: 1 for fast pairs, 0 for slow ones, a ramp between."""

        def pair_with(turns: float) -> float:  # the pair that makes so many turns within the trained length
            return head_dim * math.log(self.original_positions / (turns * 2 * math.pi)) / (2 * math.log(self.theta))

        low, high = pair_with(self.beta_fast), pair_with(self.beta_slow)
        if self.truncate:
            low, high = math.floor(low), math.ceil(high)
        low, high = max(low, 0), min(high, head_dim - 1)
        return 1 - np.clip((np.arange(head_dim // 2) - low) / max(high - low, 0.001), 0, 1)

    @property
    def magnitude(self) -> float:
        """Factor on the numbers that turn: YaRN and LongRoPE sharpen the softmax by it, all others leave lengths
        alone."""
        if self.attention_factor is not None:
            return self.attention_factor
        if self.scaling == "longrope" and self.factor > 1:
            return math.sqrt(1 + math.log(self.factor) / math.log(self.original_positions))
        return 0.1 * math.log(self.factor) + 1 if self.scaling == "yarn" and self.factor > 1 else 1.0

    def table(self, head_dim: int, positions: np.ndarray, length: int) -> tuple[np.ndarray, np.ndarray]:
        """Cosine and sine of every angle position · frequency, each (T, R/2) float64, for `reference.rotate`."""
        angles = positions[:, None] * self.frequencies(head_dim, length)  # (T, R/2)
        return self.magnitude * np.cos(angles), self.magnitude * np.sin(angles)


@dataclass(frozen=True)
class ModelConfig:
    """What the forward pass knows of a model. Axis letters: H heads, KV kv_heads, D head_dim, E width, F ffn_width,
    L layers, V vocab_size.

    `ropes` and `windows` hold one entry per layer: `None` means no rotation (a NoPE layer) and no window
    (full attention). Raises ValueError where two fields cannot both be true. The factors stand here:

        x = embedding_scale · embedding row                     x ← x + residual_scale · (what a half of a block gives)
        score = attention_scale · q · k                         logits = logit_scale · W_output x
        score_cap, logit_cap: with a cap c, c · tanh(s / c) takes the place of the score or logit s
        joint_qk_norm: q_norm and k_norm are of all heads of a token together, (H·D,) and (KV·D,), and not of each
    """

    family: str
    layers: int
    width: int
    heads: int
    kv_heads: int
    head_dim: int
    ffn_width: int
    vocab_size: int
    max_positions: int
    ropes: tuple[Rope | None, ...]
    windows: tuple[int | None, ...]
    attention_scale: float
    rms_eps: float = 1e-5
    activation: str = "silu"
    embedding_scale: float = 1.0
    residual_scale: float = 1.0
    logit_scale: float = 1.0
    score_cap: float | None = None
    logit_cap: float | None = None
    joint_qk_norm: bool = False
    tied: bool = False
    mixture: Mixture | None = None  # of experts, in some layers or all
    latent: Latent | None = None  # attention whose keys and values come from one vector per token

    def __post_init__(self) -> None:
        for name in ("layers", "width", "heads", "kv_heads", "head_dim", "ffn_width", "vocab_size", "max_positions"):
            value = getattr(self, name)
            require(
                isinstance(value, int) and value >= 1, f"{name}: got {value!r}, wanted a whole number of at least 1"
            )
        require(
            self.heads % self.kv_heads == 0,
            f"heads: got {self.heads}, wanted a multiple of kv_heads = {self.kv_heads}",
        )
        for name in ("ropes", "windows"):
            value = getattr(self, name)
            require(
                len(value) == self.layers,
                f"{name}: got {len(value)} entries, wanted one for each of {self.layers} layers",
            )
        for rope in filter(None, dict.fromkeys(self.ropes)):
            rotated = rope.rotated(self.rotated_dim)
            require(
                rotated % 2 == 0 and rotated > 0,
                f"head_dim: got {self.rotated_dim}, wanted an even number that rotate, not {rotated}, since pairs turn",
            )
            if rope.scaling == "longrope":
                for name in ("short_factors", "long_factors"):
                    got = len(getattr(rope, name))
                    require(
                        got == rotated // 2, f"rope {name}: got {got} of them, wanted {rotated // 2}, one for each pair"
                    )
        for window in self.windows:
            require(window is None or window >= 1, f"windows: got {window}, wanted at least 1 or None")
        for name in ("attention_scale", "embedding_scale", "residual_scale", "logit_scale"):
            finite(name, getattr(self, name))
        for name in ("score_cap", "logit_cap"):
            positive(name, getattr(self, name))
        require(
            self.activation in ACTIVATIONS,
            f"activation: got {self.activation!r}, wanted one of {', '.join(ACTIVATIONS)}",
        )
        require(
            self.mixture is None or len(self.mixture.layers) == self.layers,
            f"mixture: got {self.mixture and len(self.mixture.layers)} layers, wanted {self.layers}",
        )
        if self.latent is not None:
            fits = (self.kv_heads, self.head_dim) == (self.heads, self.latent.head_dim)
            require(
                fits,
                f"latent: got {self.kv_heads} KV heads of {self.head_dim}, "
                f"wanted {self.heads} of {self.latent.head_dim}, as many as heads and as wide as the latent's",
            )

    @property
    def group(self) -> int:
        """G = H / KV, the query heads that share one KV head; head h reads KV head h // G."""
        return self.heads // self.kv_heads

    @property
    def rotated_dim(self) -> int:
        """The dimensions of a head that are rotated."""
        return self.head_dim if self.latent is None else self.latent.rotated

    def is_mixture(self, layer: int) -> bool:
        """Whether a layer is a mixture of experts."""
        return self.mixture is not None and self.mixture.layers[layer]

    def neurons(self, layer: int) -> int:
        """The feed-forward neurons that a token runs in a layer, where all run: F, or those of its experts."""
        return self.mixture.neurons if self.mixture is not None and self.mixture.layers[layer] else self.ffn_width

    def cache_bytes_per_token(self, itemsize: int) -> int:
        """Bytes that one token takes in all full-attention layers: keys, values and int64 positions per KV head."""
        return self.layers * self.kv_heads * (2 * self.head_dim * itemsize + 8)
