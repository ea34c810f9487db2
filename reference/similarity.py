"""Cosines: what QUOKA and KeyDiff both measure, and the inequality that both rest on.

    cos(x, y) = x·y / (‖x‖ ‖y‖), and 0 where x = 0 or y = 0

If a key k lies at cos(k, q) = β to a query and at cos(m, k) = α to the mean m, the query and the mean obey

    cos(m, q) ≤ αβ + √((1 - α²)(1 - β²)) ≤ 1 + αβ - α²/2 - β²/2

the first step because angles on a sphere obey the triangle inequality, the second because a geometric mean is at most
the arithmetic one. With β > 0 and α < 0, a query that reads a key which the mean does not is far from the mean.

Sources: QUOKA (arXiv 2602.08722), KeyDiff (arXiv 2504.15364); the inequality is in both, with other letters.
"""

from __future__ import annotations

import numpy as np

from reference.checks import widen


def unit(x: np.ndarray) -> np.ndarray:
    """x / ‖x‖ along the last axis, and 0 for a zero vector: (..., D) -> (..., D), in float32 or float64.

    Each vector is first divided by its largest entry, so that no square overflows or vanishes.
    """
    x = widen(x)
    peak = np.abs(x).max(axis=-1, keepdims=True, initial=0)  # (..., 1)
    scaled = x / np.where(peak > 0, peak, 1)
    norm = np.linalg.norm(scaled, axis=-1, keepdims=True)
    return scaled / np.where(norm > 0, norm, 1)


def cosine_bound(alpha: np.ndarray | float, beta: np.ndarray | float) -> np.ndarray | float:
    """1 + αβ - α²/2 - β²/2, the most that cos(m, q) can be where cos(m, k) = α and cos(k, q) = β."""
    return 1 + alpha * beta - alpha**2 / 2 - beta**2 / 2
