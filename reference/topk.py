"""The one rule by which every method chooses: the highest scores, ties to the lower index, indices ascending."""

from __future__ import annotations

import math

import numpy as np

from reference import contract
from reference.checks import require, whole


def keep_top(
    scores: np.ndarray, budget: int, *, sinks: int = 0, recent: int = 0, positions: np.ndarray | None = None
) -> np.ndarray:
    """Columns of the `budget` highest scores of every row: scores (KV, S) -> (KV, min(budget, S)) int64, ascending.

    Equal scores: the lower index wins. Always kept, within the budget: tokens whose positions (KV, S) lie below
    `sinks`, and the last `recent` columns. Positions ascend, so the sinks are the first columns of a row; how many
    differs from row to row. Raises ValueError for a budget below 1, for NaN, and where more is protected than fits.
    """
    sizes = contract.keep_top(scores, budget, sinks, recent, positions)
    require(not np.isnan(scores).any(), "scores: got NaN, wanted numbers that can be ranked")
    order = np.argsort(-scores, axis=1, kind="stable")  # best first; stable: among equals the lower index comes first
    if sinks or recent:
        protected = np.broadcast_to(np.arange(sizes["S"]) >= sizes["S"] - recent, scores.shape)
        if positions is not None:
            protected = protected | (positions < sinks)
        # A second stable sort lifts the protected to the front and leaves the rest in order of score.
        lifted = np.argsort(~np.take_along_axis(protected, order, axis=1), axis=1, kind="stable")
        order = np.take_along_axis(order, lifted, axis=1)
    return np.sort(order[:, : sizes["B"]], axis=1)


def check_budget(budget: int | float) -> None:
    """Raise ValueError unless `budget` is a whole number of tokens (at least 1) or a fraction in (0, 1]."""
    if isinstance(budget, float):
        require(0 < budget <= 1, f"budget: got {budget}, wanted a whole number of tokens or a fraction in (0, 1]")
    else:
        whole("budget", budget)


def resolve_budget(budget: int | float, length: int) -> int:
    """Tokens that a budget means for `length` tokens: itself, or ceil(fraction · length)."""
    check_budget(budget)
    return tokens_of(budget, length)


def tokens_of(budget: int | float, length: int) -> int:
    """The same of a budget that was checked."""
    return math.ceil(budget * length) if isinstance(budget, float) else int(budget)
