"""What FastForward's tests share: SiLU as the papers write it, and trained weights made by hand."""

from __future__ import annotations

import numpy as np

from reference import Compensator, FastForwardLayer, FastForwardWeights, Predictor

RNG = np.random.default_rng


def silu(x: np.ndarray) -> np.ndarray:
    return x / (1 + np.exp(-x))


def trained(layers: int = 2, width: int = 32, neurons: int = 64, seed: int = 0) -> FastForwardWeights:
    rng = RNG(seed)
    return FastForwardWeights(
        [
            FastForwardLayer(
                Predictor(
                    rng.standard_normal(width), rng.standard_normal((width, 2)), rng.standard_normal((2, neurons))
                ),
                Compensator(rng.standard_normal((4, width)) / 6, rng.standard_normal((width, 4)) / 2),
                density=0.25 + 0.5 * layer / max(1, layers - 1),
            )
            for layer in range(layers)
        ]
    )
