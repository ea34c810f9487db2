"""KeyDiff: keep the keys that are least like the others.

    k̂ = k/‖k‖,   anchor a = (1/S) Σ_j k̂_j,   score_i = -cos(k_i, a)

over all S keys now in the cache of one layer and KV head, survivors and newest chunk alike, post-RoPE. Since
Σ_j cos(k_i, k_j) = S · k̂_i·a, this ranks exactly as the pairwise definition -Σ_j cos(k_i, k_j) wherever a ≠ 0, and
needs S products instead of S². No attention weight is read.

Source: KeyDiff (arXiv 2504.15364), the anchor form, with the block prompt processing of its experiments. Ties: the
lower index wins. Dtype: the input's, at least float32. Differs from the paper by nothing in the score; chosen where
it is silent: a = 0 or k = 0 gives cosine 0, and decoding evicts at every step, so that the budget is strict at all
times.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from reference import contract
from reference.checks import one_of, widen
from reference.contract import ANCHORS
from reference.eviction import Evictor, Seen
from reference.similarity import unit


def keydiff_scores(k: np.ndarray, *, anchor: str = "normalised") -> np.ndarray:
    """-cos(k_i, a) with a the mean of the unit keys: k (KV, S, D) -> (KV, S), higher = keep.

    anchor "raw" takes the mean of the keys as they are, which ranks differently. ValueError for any other name.
    """
    contract.keydiff_scores(k, anchor)
    directions = unit(k)
    summed = directions if anchor == "normalised" else widen(k)
    towards = unit(summed.sum(axis=1, keepdims=True))  # (KV, 1, D): the sum points where the mean does
    return -(directions * towards).sum(axis=-1)


@dataclass(frozen=True)
class KeyDiff(Evictor):
    """KeyDiff (arXiv 2504.15364): evict the keys most similar to the mean key, without any attention weight.

    budget: tokens kept per layer and KV head, at all times; a fraction means that share of the prompt.
    sinks: first tokens of the sequence, always kept; recent: newest tokens, always kept. Both count in the budget.
    anchor: mean of "normalised" keys, or of "raw" ones.
    """

    anchor: str = "normalised"

    def __post_init__(self) -> None:
        super().__post_init__()
        one_of("anchor", self.anchor, ANCHORS)

    def scores(self, seen: Seen) -> np.ndarray:
        """(KV, S) over the whole cache."""
        return seen.backend.keydiff_scores(seen.cache.keys(), anchor=self.anchor)
