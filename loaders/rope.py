"""Rotation settings of a Hugging Face config, in both of their layouts, as `reference.Rope`.

    older   "rope_theta": 500000.0, "rope_scaling": {"type" or "rope_type": "llama3", "factor": 8.0, …} or null
    newer   "rope_parameters": {"rope_type": "llama3", "rope_theta": 500000.0, "factor": 8.0, …}

What a key that is left out means is Hugging Face's choice and taken over here.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from loaders.settings import MOST, Settings
from reference import Rope
from reference.checks import require

SCALINGS = {
    "default": "none",
    "linear": "linear",
    "dynamic": "dynamic",
    "llama3": "llama3",
    "yarn": "yarn",
    "longrope": "longrope",
}


def read_rope(settings: Settings, scalings: Mapping[str, str] = SCALINGS, *, partial: bool = False) -> Rope:
    """The rotation of a model that turns all its layers alike. Where both layouts are there, the older one counts
    unless it is empty, as in transformers."""
    theta = settings.number("rope_theta")
    return rope_of(rope_parameters(settings), settings, theta, scalings, partial=partial)


def rope_parameters(settings: Settings) -> Settings:
    """The object that a rotation's type and factors stand in."""
    older, newer = settings.part("rope_scaling"), settings.part("rope_parameters")
    return older if older.values else newer


def rope_of(
    parameters: Settings,
    model: Settings,
    theta: float,
    scalings: Mapping[str, str] = SCALINGS,
    *,
    partial: bool = False,
) -> Rope:
    """One rotation: `parameters` holds its type and factors, `model` the lengths, `theta` stands where they do not;
    `scalings` are the family's names for its types, and where `partial` a head may turn in part."""
    kind = "type" if parameters.get("rope_type") is None and parameters.get("type") is not None else "rope_type"
    scaling = "none" if parameters.get(kind) is None else parameters.choice(kind, scalings)
    share = 1.0
    for holder in (model, parameters):
        share = holder.number("partial_rotary_factor", share)
        holder.require("partial_rotary_factor", partial or share == 1, "1: this family rotates all of a head")
        holder.require("partial_rotary_factor", 0 < share <= 1, "a number above 0 and at most 1")
    theta = parameters.number("rope_theta", theta)
    require(theta > 0, f"{model.where}: rope_theta: got {theta}, wanted a positive number")
    if scaling == "none":
        return Rope(theta, share=share)
    details = {"yarn": _yarn, "llama3": _llama3, "longrope": _longrope}.get(scaling)
    original = model.whole("max_position_embeddings") if scaling == "dynamic" else _trained_length(parameters, model)
    factor = _factor(parameters, model, original, optional=scaling in ("yarn", "longrope"))
    return Rope(theta, scaling, factor, original, share=share, **(details(parameters, factor) if details else {}))


def _trained_length(parameters: Settings, model: Settings) -> int:
    """Positions that the model was first trained on."""
    for holder in (model, parameters):
        if holder.get("original_max_position_embeddings") is not None:
            return holder.whole("original_max_position_embeddings")
    return model.whole("max_position_embeddings")


def _factor(parameters: Settings, model: Settings, original: int, *, optional: bool) -> float:
    """How far positions are stretched; YaRN and LongRoPE may leave it to the ratio of the two lengths."""
    if optional and parameters.get("factor") is None:
        return model.whole("max_position_embeddings") / original
    factor = parameters.number("factor")
    parameters.require("factor", 1 <= factor <= MOST, f"a number of at least 1 and at most {MOST}")
    return factor


def _llama3(parameters: Settings, factor: float) -> dict[str, Any]:
    """The band between the frequencies that are kept and those that are divided by the factor."""
    low, high = parameters.number("low_freq_factor"), parameters.number("high_freq_factor")
    parameters.require("high_freq_factor", high > low, f"more than low_freq_factor = {low}")
    return {"low_freq_factor": low, "high_freq_factor": high}


def _yarn(parameters: Settings, factor: float) -> dict[str, Any]:
    """The two ends of the ramp and the factor on the rotated vectors: given, or from `mscale` and `mscale_all_dim`."""
    fast, slow = parameters.number("beta_fast", 32.0), parameters.number("beta_slow", 1.0)
    parameters.require("beta_fast", fast > slow > 0, f"more than beta_slow = {slow}, both positive")
    sharpened = None  # reference.Rope's own: 0.1 ln(factor) + 1
    numerator, denominator = parameters.number("mscale", 0.0), parameters.number("mscale_all_dim", 0.0)
    if parameters.get("attention_factor") is not None:
        sharpened = parameters.number("attention_factor")
    elif numerator and denominator:
        log_factor = math.log(max(factor, 1.0))
        sharpened = (0.1 * numerator * log_factor + 1) / (0.1 * denominator * log_factor + 1)
    truncate = parameters.flag("truncate", True)
    return {"beta_fast": fast, "beta_slow": slow, "attention_factor": sharpened, "truncate": truncate}


def _longrope(parameters: Settings, factor: float) -> dict[str, Any]:
    """The two lists, and the factor on the rotated numbers where it is given."""
    lists = {}
    for key in ("short_factor", "long_factor"):
        value = parameters.get(key)
        good = isinstance(value, list) and all(type(x) in (int, float) and 0 < x <= MOST for x in value)
        parameters.require(key, good, "a list of positive numbers, one for each pair of numbers that rotate")
        lists[key + "s"] = tuple(map(float, value))
    sharpened = None if parameters.get("attention_factor") is None else parameters.number("attention_factor")
    return {"attention_factor": sharpened, **lists}


def positions_reach(settings: Settings, rope: Rope | None) -> int:
    """The longest sequence that the config means: Hugging Face asks that `max_position_embeddings` stay as trained
    with linear and dynamic scaling, writes the stretched length with llama3 and longrope, and either with YaRN."""
    written = settings.whole("max_position_embeddings")
    if rope is None or rope.scaling in ("none", "llama3", "longrope"):
        return written
    return max(written, int(rope.factor * (rope.original_positions if rope.scaling == "yarn" else written)))
