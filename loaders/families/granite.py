"""granite: Llama with a factor on embeddings, on scores (in place of 1/√D), on what each half of a block adds, and one
that logits are divided by."""

from typing import Any

from loaders.family import Family
from loaders.settings import Settings


def differences(settings: Settings) -> dict[str, Any]:
    """The four factors."""
    divisor = settings.number("logits_scaling")
    settings.require("logits_scaling", divisor != 0, "a number other than 0")
    return {
        "embedding_scale": settings.number("embedding_multiplier"),
        "attention_scale": settings.number("attention_multiplier"),
        "residual_scale": settings.number("residual_multiplier"),
        "logit_scale": 1 / divisor,
    }


DEFAULTS = {
    "max_position_embeddings": 2048,
    "embedding_multiplier": 1.0,
    "attention_multiplier": 1.0,
    "residual_multiplier": 1.0,
    "logits_scaling": 1.0,
}
FAMILIES = (Family("granite", DEFAULTS, differences),)
