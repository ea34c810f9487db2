"""How a model's authors sample from it: what generation_config.json says, where it is asked for.

Nothing here is read unless someone wants the authors' settings, so that a value that makes no sense stops nobody else.
"""

from __future__ import annotations

from typing import Any

from loaders.source import Source
from loaders.tokenizer import read_settings
from reference import Sampling


def author_sampling(source: Source) -> dict[str, Any]:
    """The fields of `reference.Sampling` that generation_config.json sets; those that it does not are left out.

    As in transformers: without do_sample the answer is greedy, whatever temperature and cuts are there; the repetition
    penalty counts either way. A top_k of 0 or -1 and a min_p of 0 cut nothing. ValueError names the file and the value
    that cannot be right.
    """
    given = read_settings(source, "generation_config.json")
    found = {"repetition_penalty": given.get("repetition_penalty")}
    if given.flag("do_sample"):
        found |= {key: given.get(key) for key in ("top_k", "top_p", "min_p")}
        found["temperature"] = given.get("temperature", 1.0)
    nothing = {"top_k": (0, -1), "min_p": (0,)}
    found = {key: value for key, value in found.items() if value is not None and value not in nothing.get(key, ())}
    try:
        Sampling(**found)
    except (ValueError, TypeError) as error:
        raise ValueError(f"{given.where}: {error}") from None
    return found
