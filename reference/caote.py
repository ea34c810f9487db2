"""CAOTE: evict the token whose loss changes the attention output least.

With attention weights α (sum 1), values v and output o = Σ α_i v_i, removing token j and renormalising moves o by

    c_j = α_j / (1 - α_j) · ‖o - v_j‖                    the L2 norm, not its square, which ranks differently

Keep high c. α is any score h ≥ 0 of a query head divided by its sum: TOVA's attention row, H2O's running sum, SnapKV's
pooled votes; o is then the output under that α. FastCAOTE puts the plain mean of the cached values in the place of o.
With grouped heads c is computed per query head, then joined over the G heads of a group: α/(1 - α) is not linear, so
averaging α first would be another method.

Source: CAOTE (arXiv 2504.14051), the closed-form eviction error. Ties: the lower index wins. Dtype: the input's, at
least float32. Differs from the paper by chosen values: the mean over a group; several tokens of a chunk go on one
scoring; H2O's sum is normalised only here. Near α_j = 1 the formula is 0/0 in floating point. Only one token of a
head can be there, the one with the largest α, and for it the same value is written without the cancellation,

    c_j = α_j ‖o₋ⱼ - v_j‖,   o₋ⱼ = Σ_{i≠j} α_i v_i / Σ_{i≠j} α_i      (the others' plain mean where they weigh nothing)

which is exact and finite for every α. FastCAOTE truly diverges there: its 1 - α_j is held at 1e-6 or above (chosen).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from reference import contract
from reference.checks import match, one_of, require, widen
from reference.contract import JOINS
from reference.eviction import Evictor, Seen
from reference.scores import H2O, AttentionEvictor, SnapKV, Tova

GUARD = 1e-6  # least 1 - α of FastCAOTE
BASES = ("h2o", "tova", "snapkv")


def caote_scores(h: np.ndarray, v: np.ndarray, *, fast: bool = False, group: str = "mean") -> np.ndarray:
    """c_j from base scores h ≥ 0 (H, S) and values v (KV, S, D) -> (KV, S), higher = keep.

    `fast` puts the mean value in the place of o; `group` joins the heads of a group by "mean", "max" or "rss" (root of
    the sum of squares). A head whose scores are all zero says nothing: its c is 0. ValueError for a negative score or
    an unknown name.
    """
    sizes = contract.caote_scores(h, v, group)
    require(bool((h >= 0).all()), "h: got a negative score or NaN, wanted scores of at least 0")
    dtype = np.result_type(widen(h), widen(v))
    v = v.astype(dtype, copy=False)
    alpha = _normalise(h.astype(dtype, copy=False)).reshape(sizes["KV"], -1, sizes["S"])  # (KV, G, S)
    if sizes["S"] == 0:
        return _joined(alpha, group)
    is_top = np.arange(sizes["S"]) == alpha.argmax(axis=-1)[..., None]  # (KV, G, S), one per head
    others = np.where(is_top, 0, alpha)
    # 1 - α_j; for the top token as the sum of the others, since 1 - α would cancel
    remaining = np.where(is_top, others.sum(axis=-1, keepdims=True), 1 - alpha)
    if fast:
        c = alpha / np.maximum(remaining, dtype.type(GUARD)) * _distance(v.mean(axis=1)[:, None], v)
    else:
        c = alpha / np.where(is_top, 1, remaining) * _distance(alpha @ v, v)
        c = np.where(is_top, alpha * _distance(_without_top(others, is_top, v), v), c)
    return _joined(c, group)


def joint_eviction_error(alpha: np.ndarray, v: np.ndarray, evicted: np.ndarray) -> float:
    """Output error of removing a set X of tokens at once: ‖Σ_X α_i (o - v_i)‖ / (1 - Σ_X α_i), for one head.

    alpha (S,) sums to 1, v (S, D), evicted (X,) indices -> float. What one scoring per chunk approximates, to teach and
    to test with. ValueError where X holds all of the attention.
    """
    match(alpha=(alpha, "S"), v=(v, "S D"))
    left = 1 - alpha[evicted].sum()
    require(bool(left > 0), f"evicted: got tokens that hold all attention, {1 - left}, wanted some to remain")
    o = alpha @ v  # (D,)
    return float(np.linalg.norm(alpha[evicted] @ (o - v[evicted])) / left)


def _joined(c: np.ndarray, group: str) -> np.ndarray:
    """One score per group: (KV, G, S) -> (KV, S)."""
    if group == "max":
        return c.max(axis=1)
    return c.mean(axis=1) if group == "mean" else _length(c, axis=1)


def _normalise(h: np.ndarray) -> np.ndarray:
    """h / Σh per head, zeros where all are zero: (H, S) -> (H, S)."""
    total = h.sum(axis=1, keepdims=True)
    return h / np.where(total > 0, total, 1)


def _distance(o: np.ndarray, v: np.ndarray) -> np.ndarray:
    """‖o - v_j‖ of each head's output to every value: o (KV, G, D), v (KV, S, D) -> (KV, G, S)."""
    return _length(o[:, :, None] - v[:, None], axis=-1)


def _length(x: np.ndarray, axis: int) -> np.ndarray:
    """√Σx² along an axis, in the dtype of x. Squares are float64: those of a small float32 would be zero."""
    return np.sqrt(np.square(x, dtype=np.float64).sum(axis=axis)).astype(x.dtype)


def _without_top(others: np.ndarray, is_top: np.ndarray, v: np.ndarray) -> np.ndarray:
    """Each head's output once its top token is gone: (KV, G, S) twice, v (KV, S, D) -> (KV, G, D)."""
    weight = others.sum(axis=-1, keepdims=True)  # (KV, G, 1)
    shares = np.where(weight > 0, others, ~is_top)
    total = shares.sum(axis=-1, keepdims=True)
    return shares / np.where(total > 0, total, 1) @ v


@dataclass(frozen=True)
class Caote(Evictor):
    """CAOTE (arXiv 2504.14051): evict the tokens whose loss changes the attention output least.

    budget: tokens kept per layer and KV head, at all times; a fraction means that share of the prompt.
    sinks: first tokens of the sequence, always kept; recent: newest tokens, always kept. Both count in the budget.
    base: the attention score it wraps, "h2o", "tova" or "snapkv".
    fast: FastCAOTE, the mean value in the place of the attention output.
    group: how the query heads of a group are joined, "mean", "max" or "rss".
    window, kernel: SnapKV's, where that is the base.
    """

    base: str = "h2o"
    fast: bool = False
    group: str = "mean"
    window: int = 32
    kernel: int = 5

    def __post_init__(self) -> None:
        super().__post_init__()
        one_of("base", self.base, BASES)
        one_of("group", self.group, JOINS)
        self.wrapped()

    def wrapped(self) -> AttentionEvictor:
        """The base method at the same budget."""
        if self.base == "snapkv":
            return SnapKV(self.budget, self.sinks, self.recent, self.window, self.kernel)
        method = H2O if self.base == "h2o" else Tova
        return method(self.budget, self.sinks, self.recent)

    @property
    def notes_mass(self) -> bool:
        """Whether the base does."""
        return self.wrapped().notes_mass

    def observe(self, seen: Seen) -> None:
        """What the base takes note of."""
        self.wrapped().observe(seen)

    def newest_kept(self, seen: Seen) -> int:
        """As many as the base keeps."""
        return self.wrapped().newest_kept(seen)

    def scores(self, seen: Seen) -> np.ndarray:
        """(KV, S) over the whole cache, from the base's scores."""
        h = self.wrapped().head_scores(seen)
        return seen.backend.caote_scores(h, seen.cache.v, fast=self.fast, group=self.group)
