"""TOVA and SnapKV: the attention mass of a chunk's last queries. H2O's is that of all of them."""

from __future__ import annotations

import numpy as np

from accel.cpu.attention.received import attention_mass
from reference import contract
from reference.attention import as_positions
from reference.scores import pool


def tova_scores(
    q: np.ndarray,
    k: np.ndarray,
    q_positions: np.ndarray | int,
    k_positions: np.ndarray,
    *,
    scale: float | None = None,
    cap: float | None = None,
) -> np.ndarray:
    """Attention row of the last query: q (H, T, D), k (KV, S, D), positions (T,) and (KV, S) -> (H, S) float32."""
    contract.tova_scores(q, k, q_positions, k_positions, scale, cap)
    return _newest_mass(q, k, q_positions, k_positions, 1, scale, cap)


def snapkv_scores(
    q: np.ndarray,
    k: np.ndarray,
    q_positions: np.ndarray | int,
    k_positions: np.ndarray,
    *,
    window: int = 32,
    kernel: int = 5,
    scale: float | None = None,
    cap: float | None = None,
) -> np.ndarray:
    """Attention of the last min(window, T) queries, summed, then averaged along the keys: shapes as above -> (H, S)."""
    contract.snapkv_scores(q, k, q_positions, k_positions, window, kernel, scale, cap)
    return pool(_newest_mass(q, k, q_positions, k_positions, window, scale, cap), kernel)


def _newest_mass(
    q: np.ndarray,
    k: np.ndarray,
    q_positions: np.ndarray | int,
    k_positions: np.ndarray,
    count: int,
    scale: float | None,
    cap: float | None,
) -> np.ndarray:
    """Attention mass of the last `count` queries."""
    places = as_positions(q_positions, q.shape[1])[-count:]
    return attention_mass(q[:, -count:], k, places, k_positions, scale=scale, cap=cap)
