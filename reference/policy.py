"""Which method does what: one part chooses the keys that a chunk reads, one evicts, one thins the FFN.

A part is a frozen dataclass defined beside its mathematics; any part may be left out and any combination is valid.
Layers with a sliding window are never selected from or evicted by a policy.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from reference.checks import require, whole
from reference.config import ModelConfig
from reference.specs import METHODS, method, spec


@dataclass(frozen=True)
class Policy:
    """The methods of a run. `overrides` maps a layer to the Policy that replaces this one there.

    A method is an object, `Quoka(budget=1024)`, or its spec, "quoka:budget=1024"; None leaves that part dense. Raises
    ValueError, when it is made, for a part that cannot serve there.
    """

    select: Any = None
    evict: Any = None
    ffn: Any = None
    overrides: Mapping[int, Policy] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for part in METHODS:
            object.__setattr__(self, part, method(part, getattr(self, part)))
        require(isinstance(self.overrides, Mapping), f"overrides: got {self.overrides!r}, wanted {{layer: Policy}}")
        object.__setattr__(self, "overrides", dict(_override(*item) for item in self.overrides.items()))

    @property
    def specs(self) -> dict[str, Any]:
        """The policy in words that JSON can hold: `Policy(**specs)` makes it again."""
        specs: dict[str, Any] = {part: spec(chosen) for part in METHODS if (chosen := getattr(self, part)) is not None}
        if self.overrides:
            specs["overrides"] = {str(layer): inner.specs for layer, inner in self.overrides.items()}
        return specs

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


def _override(layer: Any, policy: Any) -> tuple[int, Policy]:
    """A layer's number and its policy, from themselves or from words."""
    number = int(layer) if isinstance(layer, str) and layer.isdecimal() else layer
    policy = Policy(**policy) if isinstance(policy, Mapping) else policy
    require(isinstance(policy, Policy), f"overrides: got {policy!r} for layer {layer}, wanted a Policy")
    return whole("overrides", number, least=0), policy
