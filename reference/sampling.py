"""From logits to the next token.

    l_i = logits_i / r where logits_i > 0, else logits_i · r    for every token i that is in the sequence already
    p = softmax(l / temperature), cut in this order to the top_k most likely, to the fewest that together reach
    top_p, and to those of at least min_p times the most likely; what remains is renormalised and drawn from.

Here r is the repetition penalty; the other tokens keep l_i = logits_i. Temperature 0 is greedy: the highest l, ties to
the lower id. Sources: Keskar et al., the penalty (CTRL, arXiv 1909.05858; dividing would lift a negative logit, so that
one is multiplied, as transformers does); Holtzman et al., nucleus sampling (arXiv 1904.09751); Nguyen et al., min-p
(arXiv 2407.01082).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from reference.checks import require, whole


@dataclass(frozen=True)
class Sampling:
    """How to draw a token. Raises ValueError for a value out of range."""

    temperature: float = 0.0
    top_k: int | None = None
    top_p: float | None = None
    min_p: float | None = None
    repetition_penalty: float | None = None

    def __post_init__(self) -> None:
        require(
            0 <= self.temperature < np.inf, f"temperature: got {self.temperature}, wanted a finite number of at least 0"
        )
        if self.top_k is not None:
            whole("top_k", self.top_k)
        for name in ("top_p", "min_p"):
            value = getattr(self, name)
            require(value is None or 0 < value <= 1, f"{name}: got {value}, wanted a number in (0, 1]")
        penalty = self.repetition_penalty
        require(
            penalty is None or 0 < penalty < np.inf,
            f"repetition_penalty: got {penalty}, wanted a finite number above 0",
        )

    @property
    def idle(self) -> list[str]:
        """The settings that are given and do nothing, because temperature 0 takes the likeliest token anyway."""
        cuts = ("top_k", "top_p", "min_p") if self.temperature == 0 else ()
        return [name for name in cuts if getattr(self, name) is not None]

    def penalised(self, logits: np.ndarray, seen: np.ndarray) -> np.ndarray:
        """l of the module's formula: logits (V,), seen (V,) bool, the tokens in the sequence -> (V,) float64."""
        require(seen.shape == logits.shape, f"seen: got shape {seen.shape}, wanted {logits.shape}")
        logits, penalty = logits.astype(np.float64), self.repetition_penalty or 1.0
        return np.where(seen, np.where(logits > 0, logits / penalty, logits * penalty), logits)

    def probabilities(self, logits: np.ndarray) -> np.ndarray:
        """The distribution drawn from: logits (V,) -> (V,) float64, zero where cut. Not defined at temperature 0."""
        logits = logits.astype(np.float64)
        with np.errstate(over="ignore"):  # a tiny temperature leaves nothing but the likeliest
            p = np.exp((logits - logits.max()) / self.temperature)
        p /= p.sum()
        order = np.argsort(-p, kind="stable")  # most likely first, ties to the lower id
        keep = np.ones(p.size, bool)  # in that order
        if self.top_k is not None:
            keep[self.top_k :] = False
        if self.top_p is not None:
            ranked = np.where(keep, p[order], 0)
            before = np.cumsum(ranked) - ranked  # mass of everything more likely
            keep &= before < self.top_p * ranked.sum()
        if self.min_p is not None:
            keep &= p[order] >= self.min_p * p[order[0]]
        p[order[~keep]] = 0
        return p / p.sum()

    def draw(self, logits: np.ndarray, rng: np.random.Generator, seen: np.ndarray | None = None) -> int:
        """The next token id from logits (V,) and, for the penalty, seen (V,) bool; a seed draws the same tokens.
        ValueError where NaN or infinity is among the logits: the model cannot be computed in its dtype.
        """
        require(logits.ndim == 1 and logits.size > 0, f"logits: got shape {logits.shape}, wanted (V,)")
        if seen is not None and self.repetition_penalty is not None:
            logits = self.penalised(logits, seen)
        peak = float(logits.max())
        require(np.isfinite(peak), f"logits: got {peak} as the highest, wanted a finite number: the sums overflowed")
        if self.temperature == 0:
            return int(logits.argmax())
        return int(rng.choice(logits.size, p=self.probabilities(logits)))
