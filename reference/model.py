"""A model: its shape, its weights, and the backend that computes with them."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from types import ModuleType
from typing import Any

from reference.config import ModelConfig
from reference.predictor import FastForwardWeights
from reference.weights import Weights, check_weights


@dataclass(frozen=True)
class Model:
    """A config, the weights in the backend's own layout, and the backend that computes with them."""

    config: ModelConfig
    weights: Weights
    backend: ModuleType

    def __post_init__(self) -> None:
        check_weights(self.weights, self.config)

    def magnitudes(self, layer: int) -> Any:
        """`neuron_magnitudes` of a layer, (F,), worked out once."""
        if layer not in self._magnitudes:
            w = self.weights.layers[layer]
            self._magnitudes[layer] = self.backend.neuron_magnitudes(w.w_gate, w.w_up, w.w_down)
        return self._magnitudes[layer]

    def prepared(self, weights: FastForwardWeights) -> FastForwardWeights:
        """Trained FastForward weights in the backend's own layout, prepared once."""
        if weights not in self._prepared:
            self._prepared[weights] = self.backend.prepare_fastforward(weights)
        return self._prepared[weights]

    @cached_property
    def _magnitudes(self) -> dict[int, Any]:
        return {}

    @cached_property
    def _prepared(self) -> dict[FastForwardWeights, FastForwardWeights]:
        return {}
