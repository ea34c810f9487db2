"""What FastForward trains: a predictor and a compensator for every layer of one model.

The arrays alone; `fastforward` holds what is computed with them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from reference.checks import require
from reference.config import ModelConfig


@dataclass(frozen=True, eq=False)
class Predictor:
    """What guesses the neurons of a block: a pooling query and two matrices without biases."""

    q_pred: Any  # (E,)
    w1: Any  # (E, r)
    w2: Any  # (r, F)


@dataclass(frozen=True, eq=False)
class Compensator:
    """What corrects the sparse FFN: C2 act(C1 X), in the (out, in) order of the model's own matrices."""

    c1: Any  # (hidden, E)
    c2: Any  # (E, hidden)


@dataclass(frozen=True, eq=False)
class FastForwardLayer:
    """What was trained for one layer, and the density that it was trained for."""

    predictor: Predictor
    compensator: Compensator | None
    density: float


@dataclass(frozen=True, eq=False)
class FastForwardWeights:
    """What was trained for one model, layer by layer, and what its file says of how."""

    layers: Sequence[FastForwardLayer]
    metadata: Mapping[str, str] = field(default_factory=dict)

    def check(self, config: ModelConfig) -> None:
        """Raise ValueError naming the first array that does not belong to a model of this shape."""
        require(
            len(self.layers) == config.layers,
            f"weights: got FastForward weights for {len(self.layers)} layers, wanted {config.layers} as in this model",
        )
        width, neurons = config.width, config.ffn_width
        for n, layer in enumerate(self.layers):
            rank = layer.predictor.w1.shape[-1]
            parts = [
                ("q_pred", layer.predictor.q_pred, (width,)),
                ("w1", layer.predictor.w1, (width, rank)),
                ("w2", layer.predictor.w2, (rank, neurons)),
            ]
            if layer.compensator is not None:
                hidden = layer.compensator.c1.shape[0]
                parts += [("c1", layer.compensator.c1, (hidden, width)), ("c2", layer.compensator.c2, (width, hidden))]
            for name, array, wanted in parts:
                got = tuple(array.shape)
                require(got == wanted, f"layers.{n}.{name}: got shape {got}, wanted {wanted} for this model")
            require(0 < layer.density <= 1, f"layers.{n}.density: got {layer.density}, wanted a number in (0, 1]")
