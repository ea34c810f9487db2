"""H2O, TOVA and SnapKV: keep the keys that were attended to.

With a_tj the attention of query t to key j (softmax over visible keys, per query head, of scores as attention has
them: capped where the model caps them):

    H2O      h_j = Σ over all queries t so far of a_tj                 a running sum per survivor
    TOVA     h_j = a_tj of the last query t of the chunk
    SnapKV   h_j = moving average, over `kernel` neighbouring keys, of Σ over the last `window` queries of a_tj

A method's own ranking is the mean of h over the G query heads of each KV group; CAOTE takes h as it is, per head.
SnapKV's window is the last min(window, T) queries of a prefill chunk, and the last `window` queries seen in decoding;
the newest keys, as many as the window has queries, are always kept as far as the budget goes.

Sources: H2O (arXiv 2306.14048), TOVA (arXiv 2401.06104), SnapKV (arXiv 2404.14469). Ties: the lower index wins.
Dtype: the attention's, at least float32. Differs from the papers by: scoring once per chunk, so that several tokens go
together; the mean over each group; H2O without its recent half and TOVA without its first token unless `recent` and
`sinks` say so; SnapKV at every chunk and decoding step, not once after the prompt, and pooling with the window's own
keys included. Window 32 and kernel 5 are chosen.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from reference import contract
from reference.attention import as_positions, attention_mass
from reference.checks import whole, widen
from reference.eviction import Evictor, Seen


def tova_scores(
    q: np.ndarray,
    k: np.ndarray,
    q_positions: np.ndarray,
    k_positions: np.ndarray,
    *,
    scale: float | None = None,
    cap: float | None = None,
) -> np.ndarray:
    """Attention row of the last query: q (H, T, D), k (KV, S, D), positions (T,) and (KV, S) -> (H, S)."""
    contract.tova_scores(q, k, q_positions, k_positions, scale, cap)
    return newest_mass(q, k, q_positions, k_positions, 1, scale, cap)


def snapkv_scores(
    q: np.ndarray,
    k: np.ndarray,
    q_positions: np.ndarray,
    k_positions: np.ndarray,
    *,
    window: int = 32,
    kernel: int = 5,
    scale: float | None = None,
    cap: float | None = None,
) -> np.ndarray:
    """Attention of the last min(window, T) queries, summed, then averaged along the keys: shapes as above -> (H, S).

    ValueError unless `kernel` is odd, so that the average is centred.
    """
    contract.snapkv_scores(q, k, q_positions, k_positions, window, kernel, scale, cap)
    return pool(newest_mass(q, k, q_positions, k_positions, window, scale, cap), kernel)


def newest_mass(
    q: np.ndarray,
    k: np.ndarray,
    q_positions: np.ndarray | int,
    k_positions: np.ndarray,
    count: int,
    scale: float | None,
    cap: float | None,
) -> np.ndarray:
    """`attention_mass` of the last min(count, T) queries alone."""
    places = as_positions(q_positions, q.shape[1])
    return attention_mass(q[:, -count:], k, places[-count:], k_positions, scale=scale, cap=cap)


def pool(h: np.ndarray, kernel: int) -> np.ndarray:
    """Moving average of odd width `kernel`, zeros beyond both ends counted: (H, S) -> (H, S)."""
    contract.odd("kernel", kernel)
    padded = np.pad(widen(h), ((0, 0), (kernel // 2, kernel // 2)))  # (H, S + kernel - 1)
    return np.lib.stride_tricks.sliding_window_view(padded, kernel, axis=1).mean(axis=-1)


def last_queries(held: np.ndarray | None, q: np.ndarray, window: int) -> np.ndarray:
    """The newest `window` of the queries held (H, W, D) and a chunk's (H, T, D) -> (H, min(W + T, window), D)."""
    joined = q if held is None else np.concatenate([held, q], axis=1)
    return joined[:, -window:].copy()


@dataclass(frozen=True)
class AttentionEvictor(Evictor):
    """Base of the methods that rank by attention: `head_scores` is h over the whole cache, (H, S)."""

    def head_scores(self, seen: Seen) -> np.ndarray:
        """h per query head, (H, S); zero for keys that a selection kept the chunk from reading."""
        raise NotImplementedError

    def scores(self, seen: Seen) -> np.ndarray:
        """(KV, S): the mean of h over each group."""
        return seen.backend.group_mean(self.head_scores(seen), len(seen.cache.k))


@dataclass(frozen=True)
class H2O(AttentionEvictor):
    """H2O (arXiv 2306.14048): evict the tokens that have received the least attention from all queries so far.

    budget: tokens kept per layer and KV head, at all times; a fraction means that share of the prompt.
    sinks: first tokens of the sequence, always kept; recent: newest tokens, always kept. Both count in the budget.
    """

    @property
    def notes_mass(self) -> bool:
        """It adds up what every chunk's attention gives."""
        return True

    def observe(self, seen: Seen) -> None:
        """Add the chunk's attention to what every token has received."""
        if seen.mass is None:
            raise RuntimeError("H2O adds up attention: got no seen.mass, wanted what each key received")
        seen.cache.receive(seen.mass, seen.columns)

    def head_scores(self, seen: Seen) -> np.ndarray:
        """The running sum, (H, S)."""
        if seen.cache.received is None:
            raise RuntimeError("H2O scores what it has observed: call observe(seen) first")
        return seen.cache.received


@dataclass(frozen=True)
class Tova(AttentionEvictor):
    """TOVA (arXiv 2401.06104): evict the tokens to which the newest query attends least.

    budget: tokens kept per layer and KV head, at all times; a fraction means that share of the prompt.
    sinks: first tokens of the sequence, always kept; recent: newest tokens, always kept. Both count in the budget.
    """

    def head_scores(self, seen: Seen) -> np.ndarray:
        """The last query's attention row, (H, S)."""
        where = seen.q, seen.k, seen.first, seen.k_positions
        return seen.spread(seen.backend.tova_scores(*where, scale=seen.scale, cap=seen.cap))


@dataclass(frozen=True)
class SnapKV(AttentionEvictor):
    """SnapKV (arXiv 2404.14469): evict the tokens to which the last few queries attend least, neighbours pooled.

    budget: tokens kept per layer and KV head, at all times; a fraction means that share of the prompt.
    sinks: first tokens of the sequence, always kept; recent: newest tokens, always kept. Both count in the budget.
    window: how many of the last queries vote; their own tokens are kept too.
    kernel: width of the moving average along the keys, odd; 1 for none.
    """

    window: int = 32
    kernel: int = 5

    def __post_init__(self) -> None:
        super().__post_init__()
        whole("window", self.window)
        contract.odd("kernel", self.kernel)

    def observe(self, seen: Seen) -> None:
        """Remember the last `window` queries: when decoding, a chunk brings only one. They are the newest tokens of
        the sequence, so their positions need not be kept."""
        seen.cache.queries = seen.backend.last_queries(seen.cache.queries, seen.q, self.window)

    def head_scores(self, seen: Seen) -> np.ndarray:
        """The pooled attention of the window, (H, S)."""
        q = self._voters(seen)
        first = seen.first + seen.q.shape[1] - q.shape[1]
        pooled = seen.backend.snapkv_scores(
            *(q, seen.k, first, seen.k_positions),
            window=self.window,
            kernel=self.kernel,
            scale=seen.scale,
            cap=seen.cap,
        )
        return seen.spread(pooled)

    def newest_kept(self, seen: Seen) -> int:
        """As many of the newest as `recent` says, or as vote where those are more and the budget allows."""
        voters = min(self.window, self._voters(seen).shape[1])
        return max(self.recent, min(voters, int(self.budget) - self.sinks))

    def _voters(self, seen: Seen) -> np.ndarray:
        """The queries whose last `window` vote, (H, T, D)."""
        return seen.cache.queries if seen.decoding and seen.cache.queries is not None else seen.q
