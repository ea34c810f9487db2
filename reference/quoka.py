"""QUOKA: a few unusual queries of a chunk choose which past keys the whole chunk reads.

    1  if T > N:  m = mean of the chunk's T queries, per query head;
                  keep the N queries with the lowest cos(q, m), least similar first
    2  q̂ = q/‖q‖,  k̂ = k/‖k‖                                       only to score; attention uses the originals
    3  q̄ = mean of q̂ over the G heads of each KV group, slot by slot
    4  s = max over the N slots of q̄ · k̂
    5  keep the top min(B, S) past keys per KV head

Then all T queries attend to the kept past and to the whole chunk. Nothing is evicted: every layer and chunk chooses
afresh from the full cache. A slot holds another token in every head, so the order of step 1 decides which tokens are
averaged in step 3.

Source: QUOKA (arXiv 2602.08722), the selection for chunked prefill. Queries and keys are post-RoPE. Ties: in steps 1
and 5 the lower index wins. Dtype: scores in the input's, at least float32. A soft cap
of attention raises no key above another, so it is no matter of steps 1 to 5. Differs from the paper by nothing but
values that it leaves open: a zero vector has cosine 0, and `sinks` and `recent` (0 by default, as in the paper) may
be kept besides.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from types import ModuleType
from typing import Any

import numpy as np

from reference import contract
from reference.attention import attention
from reference.cache import LayerCache
from reference.checks import one_of, require, whole
from reference.similarity import unit
from reference.topk import check_budget, keep_top, resolve_budget, tokens_of

SIMILARITIES = ("cosine", "dot")
OVERS = ("max", "mean")
QUERIES = ("least_similar", "most_similar", "random")
OFS = ("prompt", "past")


def select_queries(q: np.ndarray, n_queries: int, *, queries: str = "least_similar", seed: int = 0) -> np.ndarray:
    """Step 1, the indices of the N chosen queries of each head: q (H, T, D) -> (H, min(N, T)) int64.

    Least similar to the mean first; all T in order where T ≤ N. `queries` names the teaching variants: "most_similar"
    (first) or "random" (drawn with `seed`, another draw per head). Raises ValueError for T = 0 and unknown names.
    """
    sizes = contract.select_queries(q, n_queries)
    one_of("queries", queries, QUERIES)
    in_order = np.broadcast_to(np.arange(sizes["T"]), q.shape[:2])  # (H, T)
    if sizes["T"] <= n_queries:
        return in_order.copy()
    if queries == "random":
        return np.random.default_rng(seed).permuted(in_order, axis=1)[:, :n_queries]
    directions = unit(q)
    mean = unit(q.mean(axis=1, keepdims=True, dtype=directions.dtype))  # (H, 1, D), of the raw queries
    cosine = (directions * mean).sum(axis=-1)  # (H, T)
    order = np.argsort(cosine if queries == "least_similar" else -cosine, axis=1, kind="stable")
    return order[:, :n_queries]  # (H, N)


def key_scores(
    q: np.ndarray,
    k: np.ndarray,
    n_queries: int,
    *,
    similarity: str = "cosine",
    over: str = "max",
    queries: str = "least_similar",
    seed: int = 0,
) -> np.ndarray:
    """Steps 1 to 4, s = max over slots of (mean over the group of q̂) · k̂: q (H, T, D), k (KV, S, D) -> (KV, S).

    Higher = keep. Teaching variants: similarity "dot" leaves q and k at their lengths in steps 2 to 4, over "mean"
    averages the slots, `queries` and `seed` as in `select_queries`. ValueError for shapes and names that do not fit.
    """
    sizes = contract.key_scores(q, k, n_queries)
    one_of("similarity", similarity, SIMILARITIES)
    one_of("over", over, OVERS)
    chosen = select_queries(q, n_queries, queries=queries, seed=seed)  # (H, N)
    slots = np.take_along_axis(q, chosen[:, :, None], axis=1)  # (H, N, D)
    if similarity == "cosine":
        slots, k = unit(slots), unit(k)
    dtype = np.result_type(slots, k, np.float32)
    grouped = slots.reshape(sizes["KV"], -1, *slots.shape[1:]).mean(axis=1, dtype=dtype)  # (KV, N, D)
    scores = grouped @ k.astype(dtype, copy=False).swapaxes(1, 2)  # (KV, N, S)
    return scores.max(axis=1) if over == "max" else scores.mean(axis=1)


def select_keys(
    q: np.ndarray,
    k: np.ndarray,
    budget: int,
    n_queries: int,
    *,
    sinks: int = 0,
    recent: int = 0,
    positions: np.ndarray | None = None,
) -> np.ndarray:
    """Steps 1 to 5: q (H, T, D), past keys k (KV, S, D) -> (KV, min(B, S)) int64 columns of k, ascending.

    `sinks`, `recent` and the keys' `positions` (KV, S) as in `keep_top`.
    """
    return keep_top(key_scores(q, k, n_queries), budget, sinks=sinks, recent=recent, positions=positions)


def select_keys_each(
    q: Sequence[np.ndarray],
    k: np.ndarray,
    pasts: Sequence[int],
    budgets: Sequence[int],
    n_queries: int,
    *,
    sinks: int = 0,
    recent: int = 0,
    positions: np.ndarray | None = None,
) -> list[np.ndarray]:
    """The columns that each of several chunks reads, as a backend may list them in one reading of the keys.

    Chunk c, with its queries q[c] (H, T, D), ranks the first pasts[c] columns of k (KV, S, D) and keeps budgets[c] of
    them, as in `select_keys`; its own columns follow its past: (KV, min(budgets[c], pasts[c]) + T) int64 each.
    """
    contract.select_keys_each(q, k, pasts, budgets, n_queries, sinks, recent, positions)
    places = [None if positions is None else positions[:, :past] for past in pasts]
    return [
        with_chunk(
            select_keys(queries, k[:, :past], budget, n_queries, sinks=sinks, recent=recent, positions=place),
            past,
            past + queries.shape[1],
        )
        for queries, past, budget, place in zip(q, pasts, budgets, places, strict=True)
    ]


def with_chunk(kept: np.ndarray, start: int, stop: int) -> np.ndarray:
    """The kept past columns and then every column of the chunk, start … stop-1: (KV, B) -> (KV, B + stop - start)."""
    own = np.broadcast_to(np.arange(start, stop), (len(kept), stop - start))
    return np.concatenate([kept, own], axis=1)


def quoka_attention(
    q: np.ndarray,
    k: np.ndarray,
    v: np.ndarray,
    q_positions: np.ndarray | int,
    k_positions: np.ndarray,
    past: int,
    *,
    budget: int,
    n_queries: int,
    scale: float | None = None,
    cap: float | None = None,
    sinks: int = 0,
    recent: int = 0,
) -> np.ndarray:
    """Attention over the `budget` best of the first `past` columns and all later ones, shapes as in `attention`.

    `sinks` (tokens at positions below it) and `recent` (newest of the past) are always read, within the budget.
    ValueError for what does not fit, as in `attention`.
    """
    sizes = contract.quoka_attention(q, k, v, q_positions, k_positions, past, budget, scale, cap)
    if past > budget:
        places = k_positions[:, :past]
        kept = select_keys(q, k[:, :past], budget, n_queries, sinks=sinks, recent=recent, positions=places)
        columns = with_chunk(kept, past, sizes["S"])
        k, v = (np.take_along_axis(x, columns[:, :, None], axis=1) for x in (k, v))  # (KV, B + T, D)
        k_positions = np.take_along_axis(k_positions, columns, axis=1)
    return attention(q, k, v, q_positions, k_positions, scale=scale, cap=cap)


@dataclass(frozen=True)
class Quoka:
    """QUOKA (arXiv 2602.08722): every chunk reads the past keys that its most unusual queries point at.

    budget: past tokens read per layer and KV head, the chunk's own not counted; or a fraction, see `of`.
    n_queries: queries of each chunk and head that choose.
    sinks: first tokens of the sequence that are always read; recent: newest of the past. Both count in the budget.
    of: what a fraction is of: the "prompt" (fixed once) or the "past" (grows with it; at least sinks + recent).
    similarity: "cosine" or, to teach, "dot".
    over: a key's score is its "max" over the chosen queries or, to teach, the "mean".
    queries: "least_similar" to the mean or, to teach, "most_similar" or "random" (drawn with `seed`).
    share: to teach, all KV heads read the same tokens, those with the best mean score.

    The paper's settings are computed by the backend, the teaching variants always by the reference.
    """

    budget: int | float
    n_queries: int = 16
    sinks: int = 0
    recent: int = 0
    of: str = "prompt"
    similarity: str = "cosine"
    over: str = "max"
    queries: str = "least_similar"
    share: bool = False
    seed: int = 0

    def __post_init__(self) -> None:
        check_budget(self.budget)
        whole("n_queries", self.n_queries)
        forced = whole("sinks", self.sinks, least=0) + whole("recent", self.recent, least=0)
        require(
            isinstance(self.budget, float) or forced <= self.budget,
            f"sinks + recent: got {self.sinks} + {self.recent}, wanted at most the budget, {self.budget}",
        )
        one_of("of", self.of, OFS)
        one_of("similarity", self.similarity, SIMILARITIES)
        one_of("over", self.over, OVERS)
        one_of("queries", self.queries, QUERIES)

    @property
    def standard(self) -> bool:
        """Whether it is the paper's method, and no variant to teach with."""
        paper = "cosine", "max", "least_similar", False
        return (self.similarity, self.over, self.queries, self.share) == paper

    def resolve(self, length: int) -> Quoka:
        """The same method with a fraction of the prompt in tokens, for a prompt of `length` tokens."""
        return self if self.of == "past" else replace(self, budget=resolve_budget(self.budget, length))

    def budget_of(self, past: int) -> int:
        """Tokens read of a past of `past` tokens."""
        return min(past, max(tokens_of(self.budget, past), self.sinks + self.recent))

    def columns(self, backend: ModuleType, q: Sequence[Any], cache: LayerCache, pasts: Sequence[int]) -> list[Any]:
        """Columns of the cache that each chunk reads, its own last: q[c] (H, T, D) -> (KV, B + T) int64, ascending.

        All chunks are in the cache already; the c-th begins at column pasts[c].
        """
        budgets = [self.budget_of(past) for past in pasts]
        if not self.standard:
            return self._variant(backend, q, cache, pasts, budgets)
        kept_besides = {"sinks": self.sinks, "recent": self.recent, "positions": cache.positions}
        return backend.select_keys_each(q, cache.keys(), pasts, budgets, self.n_queries, **kept_besides)

    def _variant(
        self, backend: ModuleType, q: Sequence[Any], cache: LayerCache, pasts: Sequence[int], budgets: Sequence[int]
    ) -> list[Any]:
        """What `columns` gives, by a teaching variant, on the host."""
        keys, positions = backend.to_numpy(cache.k), backend.to_numpy(cache.positions)
        listed: list[Any] = []
        for queries, past, budget in zip(q, pasts, budgets, strict=True):
            scores, places = self._variant_scores(backend.to_numpy(queries), keys[:, :past]), positions[:, :past]
            kept = keep_top(scores, budget, sinks=self.sinks, recent=self.recent, positions=places)
            listed.append(backend.to_backend(with_chunk(kept, past, past + queries.shape[1])))
        return listed

    def _variant_scores(self, q: np.ndarray, k: np.ndarray) -> np.ndarray:
        """(KV, S) of a teaching variant."""
        scores = key_scores(
            q, k, self.n_queries, similarity=self.similarity, over=self.over, queries=self.queries, seed=self.seed
        )
        return np.broadcast_to(scores.mean(axis=0), scores.shape).copy() if self.share else scores
