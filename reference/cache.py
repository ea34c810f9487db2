"""The KV cache: what each layer remembers of the tokens that it has seen.

Every KV head may hold different tokens after an eviction, so the position of each key is stored beside it, and columns
are always in ascending order of position. Heads are stored once, never repeated for their group.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any, Self

import numpy as np

from reference import contract
from reference.checks import listed
from reference.config import ModelConfig


@dataclass
class LayerCache:
    """Keys, values and positions of one layer, and what the methods remember of it between chunks.

    The optional arrays are None until the method that needs them writes them: H2O the attention that every survivor has
    `received`, SnapKV the last `queries` seen, GRIFFIN the `neurons` of the first block. `received` is kept in float64:
    a sum over a million queries would stop growing in float32.
    """

    k: np.ndarray  # (KV, S, D)
    v: np.ndarray  # (KV, S, D)
    positions: np.ndarray  # (KV, S) int64
    received: np.ndarray | None = None  # (H, S) float64
    queries: np.ndarray | None = None  # (H, W, D)
    neurons: np.ndarray | None = None  # (K,)
    newest: int = field(init=False, default=-1)  # the last position appended, whether or not it was evicted since

    def __post_init__(self) -> None:
        if self.size:
            self.newest = int(self.positions[:, -1].max())

    @property
    def size(self) -> int:
        """S, the tokens held per KV head."""
        return self.positions.shape[1]

    @property
    def nbytes(self) -> int:
        """Bytes of all arrays that this layer holds."""
        return sum(array.nbytes for array in self.arrays().values())

    def arrays(self) -> dict[str, np.ndarray]:
        """The arrays held, by name, on the host; `restore_cache` takes them back."""
        named = {f.name: getattr(self, f.name) for f in fields(self) if f.name != "newest"}
        return {name: array for name, array in named.items() if array is not None}

    def keys(self, count: int | None = None) -> np.ndarray:
        """The first `count` keys, or all, as the functions that score keys take them: (KV, S, D).

        A backend's own cache may hand out what it knows of them besides.
        """
        return self.k[:, :count]

    def reserve(self, tokens: int) -> None:
        """Be ready to hold so many tokens per KV head. This cache needs no room ahead; one that has buffers makes
        it."""

    def append(self, k: np.ndarray, v: np.ndarray, first: int) -> None:
        """Add tokens: k and v (KV, T, D), at positions first, first + 1, …, which follow everything held."""
        sizes = contract.append(k, v, first, self.newest)
        new = np.broadcast_to(np.arange(first, first + sizes["T"]), (sizes["KV"], sizes["T"]))
        self.k = np.concatenate([self.k, k.astype(self.k.dtype, copy=False)], axis=1)
        self.v = np.concatenate([self.v, v.astype(self.v.dtype, copy=False)], axis=1)
        self.positions = np.concatenate([self.positions, new], axis=1)
        self.newest = first + sizes["T"] - 1 if sizes["T"] else self.newest
        if self.received is not None:
            self.received = np.pad(self.received, ((0, 0), (0, sizes["T"])))

    def gather(self, columns: np.ndarray | None) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Keys, values and positions of some columns per KV head, as attention takes them: columns (KV, R) ascending,
        or None for all -> (KV, R, D) twice and (KV, R). ValueError for columns that are not there or out of order."""
        if columns is None:
            return self.k, self.v, self.positions
        self.check(columns)
        return (
            np.take_along_axis(self.k, columns[:, :, None], axis=1),
            np.take_along_axis(self.v, columns[:, :, None], axis=1),
            np.take_along_axis(self.positions, columns, axis=1),
        )

    def gather_each(self, columns: Sequence[np.ndarray]) -> list[tuple[np.ndarray, np.ndarray, np.ndarray]]:
        """`gather` of several lists of columns, as a backend may check them in one go."""
        return [self.gather(own) for own in columns]

    def check(self, columns: np.ndarray) -> None:
        """ValueError unless columns (KV, R) ascend and are all there."""
        contract.columns(columns, len(self.k))
        for row in columns:
            listed("columns", row, self.size)

    def keep(self, columns: np.ndarray) -> None:
        """Forget every column but these: columns (KV, B) ascending. The memory of the others is freed."""
        self.k, self.v, self.positions = self.gather(columns)
        if self.received is not None:
            self.received = np.take_along_axis(self.received, per_query_head(columns, len(self.received)), axis=1)

    def keep_newest(self, count: int) -> None:
        """Forget all but the newest `count` columns."""
        if self.size > count:
            self.keep(np.broadcast_to(np.arange(self.size - count, self.size), (len(self.positions), count)))

    def take_back(self, count: int) -> None:
        """Forget the newest `count` columns, as if they had not been appended."""
        self.keep(np.broadcast_to(np.arange(self.size - count), (len(self.positions), self.size - count)))
        self.newest -= count

    def receive(self, mass: np.ndarray, columns: np.ndarray | None) -> None:
        """Add attention mass (H, R) to what the tokens at `columns` (KV, R), or all, have received."""
        spread = self.spread(mass, columns).astype(np.float64)
        self.received = spread if self.received is None else self.received + spread

    def spread(self, scores: np.ndarray, columns: np.ndarray | None) -> np.ndarray:
        """Scores of the keys read as scores of all keys held: (H, R), columns (KV, R) -> (H, S), zero for a key not
        read. None for the columns means that all were read."""
        if columns is None:
            return scores
        spread = np.zeros((len(scores), self.size), scores.dtype)
        np.put_along_axis(spread, per_query_head(columns, len(scores)), scores, axis=1)
        return spread

    def copy(self) -> Self:
        """An independent cache with the same content."""
        arrays: dict[str, Any] = {name: array.copy() for name, array in self.arrays().items()}
        twin = replace(self, **arrays)
        twin.newest = self.newest
        return twin


def per_query_head(columns: np.ndarray, heads: int) -> np.ndarray:
    """Columns of each KV head for all query heads of its group: (KV, R) -> (H, R)."""
    return np.repeat(columns, heads // len(columns), axis=0)


@dataclass
class KVCache:
    """The caches of all layers."""

    layers: list[LayerCache]

    @property
    def nbytes(self) -> int:
        """Bytes held by all layers."""
        return sum(layer.nbytes for layer in self.layers)

    @property
    def sizes(self) -> list[int]:
        """Tokens held per KV head, layer by layer."""
        return [layer.size for layer in self.layers]

    def copy(self) -> KVCache:
        """An independent cache with the same content."""
        return KVCache([layer.copy() for layer in self.layers])


def new_cache(config: ModelConfig, dtype: np.dtype) -> KVCache:
    """An empty cache whose keys and values are stored as `dtype`."""
    empty = np.zeros((config.kv_heads, 0, config.head_dim), dtype)
    positions = np.zeros((config.kv_heads, 0), np.int64)
    return KVCache([LayerCache(empty, empty, positions) for _ in range(config.layers)])


def restore_cache(layers: list[dict[str, np.ndarray]]) -> KVCache:
    """The cache whose layers' `arrays()` were these."""
    return KVCache([LayerCache(**arrays) for arrays in layers])
