"""qwen2 (Qwen2, Qwen2.5): Llama with biases on q, k and v; where switched on, windows in the layers from
`max_window_layers` up."""

from typing import Any

from loaders.family import LLAMA_NAMES, QKV_BIASES, Family, windows_of
from loaders.settings import Settings


def differences(settings: Settings) -> dict[str, Any]:
    """The windows of the upper layers."""
    slides = settings.flag("use_sliding_window") and settings.get("sliding_window") is not None
    first = settings.number("max_window_layers") if slides else float("inf")
    return {"windows": windows_of(settings, [n >= first for n in range(settings.whole("num_hidden_layers"))])}


DEFAULTS = {
    "num_key_value_heads": 32,
    "max_position_embeddings": 32_768,
    "sliding_window": 4096,
    "max_window_layers": 28,
}
FAMILIES = (Family("qwen2", DEFAULTS, differences, {**LLAMA_NAMES, **QKV_BIASES}, biases={}),)
