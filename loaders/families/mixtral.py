"""mixtral: Mistral in which every layer is a mixture of experts, whose shares add up to 1."""

from typing import Any

from loaders.families import mistral
from loaders.family import EXPERT_NAMES, Family
from loaders.settings import Settings
from reference import Mixture


def differences(settings: Settings) -> dict[str, Any]:
    """Mistral's window, and the experts of every layer."""
    mixture = Mixture(
        layers=(True,) * settings.whole("num_hidden_layers"),
        experts=settings.whole("num_local_experts"),
        chosen=settings.whole("num_experts_per_tok"),
        width=settings.whole("intermediate_size"),
    )
    return {**mistral.differences(settings), "mixture": mixture}


DEFAULTS = {
    "num_key_value_heads": 8,
    "max_position_embeddings": 131_072,
    "rope_theta": 1_000_000.0,
    "rms_norm_eps": 1e-5,
    "num_local_experts": 8,
    "num_experts_per_tok": 2,
}
FAMILIES = (
    Family("mixtral", DEFAULTS, differences, biases={}, mixture_names=EXPERT_NAMES, parts=("num_local_experts",)),
)
