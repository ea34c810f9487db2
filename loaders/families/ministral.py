"""ministral: Mistral in which `layer_types` says which layers have the window."""

from typing import Any

from loaders.families.mistral import DEFAULTS
from loaders.family import Family, windows_of
from loaders.settings import Settings


def differences(settings: Settings) -> dict[str, Any]:
    """The windows."""
    slides = settings.get("sliding_window") is not None
    return {"windows": windows_of(settings, [slides] * settings.whole("num_hidden_layers"))}


FAMILIES = (Family("ministral", DEFAULTS, differences),)
