"""smollm3: Llama in which every fourth layer does not rotate its queries and keys (NoPE)."""

from typing import Any

from loaders.family import Family, windows_of
from loaders.rope import read_rope
from loaders.settings import Settings


def differences(settings: Settings) -> dict[str, Any]:
    """No rotation where `no_rope_layers` has a 0, and, where switched on, a window in just those layers."""
    layers = settings.whole("num_hidden_layers")
    rotated = settings.get("no_rope_layers")
    if rotated is None:
        interval = settings.whole("no_rope_layer_interval")
        rotated = [(n + 1) % interval != 0 for n in range(layers)]
    good = isinstance(rotated, list) and len(rotated) >= layers and all(r in (0, 1) for r in rotated)
    settings.require("no_rope_layers", good, f"a list of 0 and 1 for each of {layers} layers")
    rope = read_rope(settings)
    slides = settings.flag("use_sliding_window") and settings.get("sliding_window") is not None
    return {
        "ropes": tuple(rope if turns else None for turns in rotated[:layers]),
        "windows": windows_of(settings, [slides and not turns for turns in rotated[:layers]]),
    }


DEFAULTS = {
    "num_key_value_heads": 4,
    "max_position_embeddings": 32_768,
    "rope_theta": 2_000_000.0,
    "no_rope_layer_interval": 4,
    "tie_word_embeddings": True,
}
FAMILIES = (Family("smollm3", DEFAULTS, differences),)
