"""FastForward: run only the feed-forward neurons that matter to a block of tokens."""

from __future__ import annotations

from dataclasses import dataclass
from types import ModuleType
from typing import Any

import numpy as np

from reference.cache import LayerCache
from reference.config import ModelConfig
from reference.weights import LayerWeights


@dataclass(frozen=True)
class Block:
    """What the FFN of one layer is given of one sequence: at most `FastForward.block` tokens.

    x is the FFN's own (post-norm) input, (T, E); `first` the position of its first token; `length` the prompt's.
    """

    x: np.ndarray
    first: int
    length: int
    decoding: bool
    layer: int
    weights: LayerWeights
    config: ModelConfig
    cache: LayerCache
    backend: ModuleType

    def dense(self) -> Any:
        """The FFN in full, (T, E)."""
        w = self.weights
        return self.backend.gated_ffn(self.x, w.w_gate, w.w_up, w.w_down, act=self.config.activation)
