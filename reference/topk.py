"""The one rule by which every method chooses: the highest scores, ties to the lower index, indices ascending."""

from __future__ import annotations

import math

import numpy as np

from reference.checks import match, require, whole


def keep_top(scores: np.ndarray, budget: int, *, protect: np.ndarray | None = None) -> np.ndarray:
    """Columns of the `budget` highest scores of every row: scores (KV, S) -> (KV, min(budget, S)) int64, ascending.

    Equal scores: the lower index wins. Columns marked in `protect` (KV, S) bool are always kept and count towards the
    budget. Raises ValueError for a budget below 1, for NaN, and where a row protects more than the budget.
    """
    sizes = match(scores=(scores, "KV S"))
    budget = min(whole("budget", budget), sizes["S"])
    require(not np.isnan(scores).any(), "scores: got NaN, wanted numbers that can be ranked")
    order = np.argsort(-scores, axis=1, kind="stable")  # best first; stable: among equals the lower index comes first
    if protect is not None:
        require(
            protect.shape == scores.shape and protect.dtype == np.bool_,
            f"protect: got shape {protect.shape} of {protect.dtype}, wanted {scores.shape} of bool",
        )
        most = int(protect.sum(axis=1).max(initial=0))
        require(most <= budget, f"protect: got {most} protected columns, wanted at most the budget, {budget}")
        # A second stable sort lifts the protected to the front and leaves the rest in order of score.
        lifted = np.argsort(~np.take_along_axis(protect, order, axis=1), axis=1, kind="stable")
        order = np.take_along_axis(order, lifted, axis=1)
    return np.sort(order[:, :budget], axis=1)


def check_budget(budget: int | float) -> None:
    """Raise ValueError unless `budget` is a whole number of tokens (at least 1) or a fraction in (0, 1]."""
    if isinstance(budget, float):
        require(0 < budget <= 1, f"budget: got {budget}, wanted a whole number of tokens or a fraction in (0, 1]")
    else:
        whole("budget", budget)


def resolve_budget(budget: int | float, length: int) -> int:
    """Tokens that a budget means for `length` tokens: itself, or ceil(fraction · length)."""
    check_budget(budget)
    return math.ceil(budget * length) if isinstance(budget, float) else int(budget)
