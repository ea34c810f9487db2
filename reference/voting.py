"""Votes of sources whose reliability nobody knows, and runs of several ways of asking.

Sources: N of them answered M queries; answers (N, M) hold the number of the answer that source i gave to query j, and
-1 where it did not know. Answers that mean the same have the same number.

    start   v_i = 1
    vote    ŷ_j = argmax_u  Σ_i v_i · [answer_ij = u]        over the answers that were given to query j
    weigh   w_i = share of source i's answers that equal ŷ_j,   v_i = N · w_i − 1
    stop    when ‖Δv‖ < tolerance, or after `rounds`

The first round counts only queries where more than half of the answers given are the same; the later ones count all.
At question time the sources are asked by falling v until κ of them know an answer; those κ vote.

Runs: a problem was tried n times, and c of these were right. The chance that k runs, drawn without replacement, hold a
right one is pass@k = 1 − C(n − c, k) / C(n, k), which estimates without bias the chance that k new runs hold one. A mix
takes its runs from several methods in turn; its chance is 1 − Π_m (1 − pass@k_m), with k_m of the k runs taken from
method m.

Sources: RA-RAG (arXiv 2410.22954), after the iterative weighted majority vote of Li and Yu (arXiv 1411.4086), and
diverse prompting (arXiv 2410.09780). Ties of a vote: noise below 1e-8, one number u ~ U(0, 1) · 1e-8 per query and
answer, drawn once for all rounds: row j of `default_rng(seed).random((M, U))`, whose column is the rank of the answer
among the distinct ones of its query, and U is the most distinct answers that any query has. Ties of an order: the
lower index. Dtype: float64. Differs from RA-RAG: answers that mean the same are to be numbered alike before the
iteration too. Chosen where the papers are silent: the noise is drawn once, so that the iteration can come to rest; a
source that answered none of the counted queries keeps v_i = 1, its start; where no query has a majority, the first
round counts all.
"""

from __future__ import annotations

import numpy as np

from reference.checks import require, whole

NOISE = 1e-8


def weighted_vote(answers: np.ndarray, weights: np.ndarray, *, seed: int = 0) -> np.ndarray:
    """ŷ_j = argmax_u Σ_i weights_i · [answer_ij = u]: answers (N, M), weights (N,) -> (M,) int64, -1 if nobody knows.

    Weights may be negative. seed: of the noise that breaks ties. ValueError for other shapes, dtypes or values.
    """
    answers, weights = _answers(answers), _weights(weights, len(answers))
    ranks, distinct = _ranks(answers)
    chosen = _vote(ranks, weights, _noise(ranks, seed))
    return np.where(chosen < 0, -1, np.take_along_axis(distinct, np.maximum(chosen, 0)[None], axis=0)[0])


def estimate_reliability(
    answers: np.ndarray, *, rounds: int = 100, tolerance: float = 1e-20, seed: int = 0
) -> np.ndarray:
    """v_i = N · w_i − 1 once the rounds of voting and weighing come to rest: answers (N, M) -> (N,) float64.

    From −1 for a source that is never with the vote to N − 1 for one that always is. ValueError for other shapes,
    dtypes or values.
    """
    answers = _answers(answers)
    whole("rounds", rounds)
    require(tolerance >= 0, f"tolerance: got {tolerance}, wanted at least 0")
    ranks, _ = _ranks(answers)
    noise, knows = _noise(ranks, seed), ranks >= 0
    counted = knows & _majorities(ranks)  # (N, M)
    v = np.ones(len(answers))
    for _ in range(rounds):
        given = counted.sum(axis=1)  # (N,)
        right = (counted & (ranks == _vote(ranks, v, noise))).sum(axis=1)
        new = np.where(given > 0, len(v) * right / np.maximum(given, 1) - 1, 1.0)
        moved = np.linalg.norm(new - v)
        v, counted = new, knows
        if moved < tolerance:
            break
    return v


def sources_asked(answers: np.ndarray, weights: np.ndarray, kappa: int) -> np.ndarray:
    """Which sources are asked when they are walked by falling weight until `kappa` answers are found: (N, M) bool."""
    answers, weights = _answers(answers), _weights(weights, len(answers))
    whole("kappa", kappa)
    order = np.argsort(-weights, kind="stable")
    knows = answers[order] >= 0
    before: np.ndarray = np.cumsum(knows, axis=0) - knows  # answers found before each source
    asked = np.empty(answers.shape, bool)
    asked[order] = before < kappa
    return asked


def reliable_sources(answers: np.ndarray, weights: np.ndarray, kappa: int) -> np.ndarray:
    """Which answers count: the first `kappa` by falling weight that are not -1. answers (N, M) -> (N, M) bool."""
    return sources_asked(answers, weights, kappa) & (np.asarray(answers) >= 0)


def pass_at_k(n: np.ndarray | int, c: np.ndarray | int, k: np.ndarray | int) -> np.ndarray:
    """1 − C(n − c, k) / C(n, k): n runs, c of them right, k drawn; arrays broadcast -> float64.

    ValueError unless 0 ≤ c ≤ n and 0 ≤ k ≤ n, all whole numbers.
    """
    given = {"n": np.asarray(n), "c": np.asarray(c), "k": np.asarray(k)}
    for name, array in given.items():
        require(array.dtype.kind in "iu", f"{name}: got dtype {array.dtype}, wanted an integer type")
    n, c, k = np.broadcast_arrays(*(array.astype(np.int64) for array in given.values()))
    for name, array in (("c", c), ("k", k)):
        wrong = (array < 0) | (array > n)
        require(not wrong.any(), f"{name}: got {array[wrong][:1]} of n = {n[wrong][:1]} runs, wanted 0 to n")
    none = np.ones(n.shape)  # the chance that all k are wrong, one draw after the other
    for i in range(int(k.max(initial=0))):
        none = np.where(i < k, none * (n - c - i) / np.maximum(n - i, 1), none)
    return 1 - none


def round_robin(accuracy: np.ndarray, runs: int) -> np.ndarray:
    """Which method each of `runs` runs is taken from: in turn, by falling accuracy (P,) -> (runs,) int64."""
    accuracy = np.asarray(accuracy, np.float64)
    require(
        accuracy.ndim == 1 and accuracy.size > 0, f"accuracy: got shape {accuracy.shape}, wanted (P,), P at least 1"
    )
    order = np.argsort(-accuracy, kind="stable")
    return order[np.arange(whole("runs", runs, least=0)) % len(order)]


def mixed_pass_at_k(n: np.ndarray, c: np.ndarray, turns: np.ndarray) -> np.ndarray:
    """1 − Π_m (1 − pass@k_m): n and c (P, …) per method, turns (k,) the method of each run -> (…) float64."""
    n, c, turns = np.asarray(n), np.asarray(c), np.asarray(turns)
    require(n.ndim >= 1 and n.shape == c.shape, f"c: got shape {c.shape}, wanted that of n, {n.shape}")
    inside = turns.size == 0 or (turns.dtype.kind in "iu" and turns.min() >= 0 and turns.max() < len(n))
    require(turns.ndim == 1 and inside, f"turns: got {turns}, wanted (k,) numbers of the {len(n)} methods")
    taken = np.bincount(turns.astype(np.int64), minlength=len(n)).reshape(-1, *[1] * (n.ndim - 1))
    return 1 - np.prod(1 - pass_at_k(n, c, taken), axis=0)


def _vote(ranks: np.ndarray, weights: np.ndarray, noise: np.ndarray) -> np.ndarray:
    """The rank of each query's winner, (M,), -1 where nobody knows."""
    voted = np.zeros(noise.shape, bool)  # (M, U)
    totals = noise.copy()
    source, query = np.nonzero(ranks >= 0)
    cells = query, ranks[source, query]
    np.add.at(totals, cells, weights[source])
    voted[cells] = True
    return np.where(voted.any(axis=1), np.where(voted, totals, -np.inf).argmax(axis=1), -1)


def _majorities(ranks: np.ndarray) -> np.ndarray:
    """(M,) bool: queries where more than half of the answers given are the same; all, where there are none."""
    given = (ranks >= 0).sum(axis=0)
    most = np.max([(ranks == u).sum(axis=0) for u in range(ranks.max(initial=0) + 1)], axis=0)
    strict = 2 * most > given
    return strict if strict.any() else np.ones_like(strict)


def _ranks(answers: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Answers numbered anew within each query, from 0 in ascending order, (N, M), and what the numbers stand for,
    (U, M)."""
    order = np.argsort(answers, axis=0, kind="stable")
    ordered = np.take_along_axis(answers, order, axis=0)
    new = np.diff(ordered, axis=0, prepend=-1) != 0  # "does not know" comes first and starts nothing
    numbers = np.cumsum(new, axis=0) - 1
    ranks = np.empty_like(answers)
    np.put_along_axis(ranks, order, np.where(ordered < 0, -1, numbers), axis=0)
    distinct = np.full((max(1, int(ranks.max(initial=0)) + 1), answers.shape[1]), -1)
    row, query = np.nonzero(new)
    distinct[numbers[row, query], query] = ordered[row, query]
    return ranks, distinct


def _noise(ranks: np.ndarray, seed: int) -> np.ndarray:
    """(M, U), below NOISE."""
    whole("seed", seed, least=0)
    return NOISE * np.random.default_rng(seed).random((ranks.shape[1], int(ranks.max(initial=0)) + 1))


def _answers(answers: np.ndarray) -> np.ndarray:
    answers = np.asarray(answers)
    shaped = answers.ndim == 2 and answers.shape[0] > 0 and answers.dtype.kind in "iu"
    require(shaped, f"answers: got {answers.shape} of {answers.dtype}, wanted (N, M) of an integer type, N at least 1")
    answers = answers.astype(np.int64)
    least = answers.min(initial=-1)
    require(least >= -1, f"answers: got {least}, wanted numbers of answers, or -1 where a source does not know")
    return answers


def _weights(weights: np.ndarray, sources: int) -> np.ndarray:
    weights = np.asarray(weights, np.float64)
    require(weights.shape == (sources,), f"weights: got shape {weights.shape}, wanted (N={sources},)")
    require(bool(np.isfinite(weights).all()), "weights: got NaN or infinity, wanted finite numbers")
    return weights
