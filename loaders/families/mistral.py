"""mistral: Llama with one sliding window in all layers, where the config sets one. A config with `layer_types` is read
as ministral, as in transformers. `attention_bias` means nothing in either."""

from typing import Any

from loaders.family import Family, windows_of
from loaders.settings import Settings


def differences(settings: Settings) -> dict[str, Any]:
    """A window in every layer, or in none where the config says null, or in those that `layer_types` names."""
    slides = settings.get("sliding_window") is not None
    return {"windows": windows_of(settings, [slides] * settings.whole("num_hidden_layers"))}


DEFAULTS = {"num_key_value_heads": 8, "sliding_window": 4096, "max_position_embeddings": 131_072}
FAMILIES = (Family("mistral", DEFAULTS, differences, biases={}),)
