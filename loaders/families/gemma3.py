"""gemma3: Gemma 2 with norms of queries and keys, no cap on scores, five layers with a window to one without, and a
rotation of its own for either kind.

`gemma3_text` is the language model by itself, `gemma3` the one inside a model that also sees: its images are left out.
"""

from typing import Any

from loaders.families import gemma2
from loaders.family import BARE, MODEL, QK_NORMS, Family, windows_of
from loaders.rope import rope_of
from loaders.settings import Settings
from reference import Rope

NAMES = {**gemma2.NAMES, **QK_NORMS}


def differences(settings: Settings) -> dict[str, Any]:
    """Windows in all layers but every sixth, a rotation for each kind of layer, and Gemma's scales."""
    layers, pattern = settings.whole("num_hidden_layers"), settings.whole("sliding_window_pattern")
    windows = windows_of(settings, [(n + 1) % pattern != 0 for n in range(layers)])
    everywhere, local = _ropes(settings)
    return {
        "windows": windows,
        "ropes": tuple(everywhere if window is None else local for window in windows),
        **gemma2.scales(settings),
    }


def _ropes(settings: Settings) -> tuple[Rope, Rope]:
    """The rotations of full-attention layers and of those with a window. The older layout scales only the former."""
    thetas = settings.number("rope_theta"), settings.number("rope_local_base_freq")
    both = settings.part("rope_parameters")
    parts = both.part("full_attention"), both.part("sliding_attention")
    if settings.get("rope_scaling") is not None:
        scaling = settings.part("rope_scaling")
        parts = Settings({**parts[0].values, **scaling.values}, scaling.where), parts[1]
    everywhere, local = (rope_of(part, settings, theta) for part, theta in zip(parts, thetas, strict=True))
    return everywhere, local


def language_model(config: Settings) -> dict[str, Any]:
    """The `text_config` of a model that also sees; whether the output is tied may be said beside it."""
    beside = {key: config.values[key] for key in ("tie_word_embeddings",) if key in config.values}
    return {**config.part("text_config").values, **beside}


DEFAULTS = {
    "vocab_size": 262_208,
    "hidden_size": 2304,
    "intermediate_size": 9216,
    "num_hidden_layers": 26,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "head_dim": 256,
    "max_position_embeddings": 131_072,
    "hidden_activation": "gelu_pytorch_tanh",
    "query_pre_attn_scalar": 256,
    "sliding_window": 4096,
    "sliding_window_pattern": 6,
    "rope_theta": 1_000_000.0,
    "rope_local_base_freq": 10_000.0,
    "tie_word_embeddings": True,
}
BODIES = (  # as transformers writes it since 4.52, as it did before, and without the images' part
    ("model.language_model.", "lm_head.weight"),
    ("language_model.model.", "language_model.lm_head.weight"),
    MODEL,
    BARE,
)
IMAGES = tuple(prefix + part for prefix in ("model.", "") for part in ("vision_tower.", "multi_modal_projector."))
FAMILIES = (
    Family("gemma3_text", DEFAULTS, differences, NAMES, norm_offset=1.0, parts=("final_logit_softcapping",)),
    Family(
        "gemma3",
        DEFAULTS,
        differences,
        NAMES,
        norm_offset=1.0,
        bodies=BODIES,
        other_parts=IMAGES,
        text_config=language_model,
    ),
)
