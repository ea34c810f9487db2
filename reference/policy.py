"""Which method does what: one part chooses the keys that a chunk reads, one evicts, one thins the FFN.

A part is a frozen dataclass defined beside its mathematics; any part may be left out and any combination is valid.
Layers with a sliding window are never selected from or evicted by a policy.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from reference.checks import require
from reference.config import ModelConfig


@dataclass(frozen=True)
class Policy:
    """The methods of a run. `overrides` maps a layer to the Policy that replaces this one there."""

    select: Any = None
    evict: Any = None
    ffn: Any = None
    overrides: Mapping[int, Policy] = field(default_factory=dict)

    def at(self, layer: int) -> Policy:
        """The policy of one layer."""
        return self.overrides.get(layer, self)

    def resolve(self, length: int) -> Policy:
        """Every fraction turned into tokens, once, for a prompt of `length` tokens."""
        return Policy(
            select=self.select and self.select.resolve(length),
            evict=self.evict and self.evict.resolve(length),
            ffn=self.ffn and self.ffn.resolve(length),
            overrides={layer: policy.resolve(length) for layer, policy in self.overrides.items()},
        )

    def check(self, config: ModelConfig) -> None:
        """Raise ValueError where this policy cannot mean anything for that model."""
        for layer, policy in self.overrides.items():
            require(
                0 <= layer < config.layers,
                f"overrides: got layer {layer}, wanted 0 to {config.layers - 1} for this model",
            )
            require(not policy.overrides, f"overrides: layer {layer}'s policy has overrides of its own, wanted none")
        parts = [self, *self.overrides.values()]
        touches_keys = any(policy.select or policy.evict for policy in parts)
        require(
            not touches_keys or None in config.windows,
            "policy: got select or evict for a model whose layers all have a sliding window, "
            "wanted at least one full-attention layer",
        )
        for policy in parts:
            if policy.ffn is not None:
                policy.ffn.check(config)
