"""mistral: Llama with one sliding window in all layers, where the config sets one."""

from typing import Any

from loaders.family import Family
from loaders.settings import Settings


def differences(settings: Settings) -> dict[str, Any]:
    """A window in every layer, or in none where the config says null."""
    window = None if settings.get("sliding_window") is None else settings.whole("sliding_window")
    return {"windows": (window,) * settings.whole("num_hidden_layers")}


DEFAULTS = {"num_key_value_heads": 8, "sliding_window": 4096, "max_position_embeddings": 131_072}
FAMILIES = (Family("mistral", DEFAULTS, differences),)
