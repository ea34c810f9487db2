"""The KV cache: what each layer remembers of the tokens that it has seen.

Every KV head may hold different tokens after an eviction, so the position of each key is stored beside it, and columns
are always in ascending order of position. Heads are stored once, never repeated for their group.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import Self

import numpy as np

from reference.checks import match
from reference.config import ModelConfig


@dataclass
class LayerCache:
    """Keys, values and positions of one layer, and what the methods remember of it between chunks.

    The optional arrays are None until the method that needs them writes them: H2O the attention that every survivor has
    `received`, SnapKV the last `queries` seen with their positions, GRIFFIN the `neurons` of the first block.
    """

    k: np.ndarray  # (KV, S, D)
    v: np.ndarray  # (KV, S, D)
    positions: np.ndarray  # (KV, S) int64
    received: np.ndarray | None = None  # (H, S)
    queries: np.ndarray | None = None  # (H, W, D)
    query_positions: np.ndarray | None = None  # (W,)
    neurons: np.ndarray | None = None  # (K,)

    @property
    def size(self) -> int:
        """S, the tokens held per KV head."""
        return self.positions.shape[1]

    @property
    def nbytes(self) -> int:
        """Bytes of all arrays that this layer holds."""
        return sum(array.nbytes for array in self.arrays().values())

    def arrays(self) -> dict[str, np.ndarray]:
        """The arrays held, by name, on the host; `KVCache.restore` takes them back."""
        return {f.name: getattr(self, f.name) for f in fields(self) if getattr(self, f.name) is not None}

    def keys(self, count: int | None = None) -> np.ndarray:
        """The first `count` keys, or all, as the functions that score keys take them: (KV, S, D).

        A backend's own cache may hand out what it knows of them besides.
        """
        return self.k[:, :count]

    def reserve(self, tokens: int) -> None:
        """Be ready to hold so many tokens per KV head. This cache needs no room ahead; one that has buffers makes
        it."""

    def append(self, k: np.ndarray, v: np.ndarray, positions: np.ndarray) -> None:
        """Add a chunk: k and v (KV, T, D), positions (T,) that follow everything held."""
        sizes = self.check(k, v, positions)
        new = np.broadcast_to(positions, (sizes["KV"], sizes["T"]))
        self.k = np.concatenate([self.k, k.astype(self.k.dtype, copy=False)], axis=1)
        self.v = np.concatenate([self.v, v.astype(self.v.dtype, copy=False)], axis=1)
        self.positions = np.concatenate([self.positions, new], axis=1)
        if self.received is not None:
            self.received = np.pad(self.received, ((0, 0), (0, sizes["T"])))

    def check(self, k: np.ndarray, v: np.ndarray, positions: np.ndarray) -> dict[str, int]:
        """Sizes KV, T and D of a chunk that may be appended, or a ValueError that says why it may not."""
        sizes = match(k=(k, "KV T D"), v=(v, "KV T D"), positions=(positions, "T"))
        if self.size and sizes["T"] and (self.positions[:, -1] >= positions[0]).any():
            newest = self.positions[:, -1].max()
            raise ValueError(f"positions: got {positions[:1]} first, wanted one after the newest held, {newest}")
        return sizes

    def gather(self, columns: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Keys, values and positions of some columns per KV head: columns (KV, R) -> (KV, R, D) twice and (KV, R)."""
        return (
            np.take_along_axis(self.k, columns[:, :, None], axis=1),
            np.take_along_axis(self.v, columns[:, :, None], axis=1),
            np.take_along_axis(self.positions, columns, axis=1),
        )

    def keep(self, columns: np.ndarray) -> None:
        """Forget every column but these: columns (KV, B) ascending. The memory of the others is freed."""
        self.k, self.v, self.positions = self.gather(columns)
        if self.received is not None:
            per_head = np.repeat(columns, len(self.received) // len(columns), axis=0)  # (H, B)
            self.received = np.take_along_axis(self.received, per_head, axis=1)

    def keep_newest(self, count: int) -> None:
        """Forget all but the newest `count` columns."""
        if self.size > count:
            self.keep(np.broadcast_to(np.arange(self.size - count, self.size), (len(self.positions), count)))

    def copy(self) -> Self:
        """An independent cache with the same content."""
        return replace(self, **{name: array.copy() for name, array in self.arrays().items()})


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
