"""What a checkpoint's files say about starting, ending and sampling a text.

generation_config.json names the tokens that end an answer, or else config.json or the tokenizer's files. The token that
starts a text is the one that the tokenizer writes: tokenizer.json alone decides, as in transformers, where a flag
beside it (`add_bos_token`) does nothing.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from typing import Any

from tokenizers import Tokenizer

from loaders.settings import Settings
from loaders.source import Source
from loaders.tokenizer import names_of_tokens, read_settings, token_text


@dataclass(frozen=True)
class Suggested:
    """How a model's authors sample. None where they say nothing, and for a value that switches its part off: a top_k
    below 1, a top_p or min_p outside (0, 1], a penalty of 1 or not above 0, a temperature below 0. Without `do_sample`
    their temperature and cuts are not used, as in transformers, and are None."""

    temperature: float | None = None
    top_k: int | None = None
    top_p: float | None = None
    min_p: float | None = None
    repetition_penalty: float | None = None


@dataclass(frozen=True)
class Generation:
    """How a model's authors mean it to be run: the tokens that end an answer, the one that starts a text and whether
    plain text is to be given it (a chat template writes its own), and how they sample."""

    stop_ids: tuple[int, ...]
    bos_id: int | None
    add_bos: bool
    suggested: Suggested


def load_generation(source: Source, tokenizer: Tokenizer) -> Generation:
    """Stop tokens, bos and sampling. Raises ValueError naming the key that makes no sense."""
    names = names_of_tokens(source)
    given = read_settings(source, "generation_config.json")
    config = Settings(source.config, f"{source.path}: config.json")
    written = _written_before(tokenizer)
    bos = _ids(given, "bos_token_id") or _ids(config, "bos_token_id") or _named(names, "bos_token", tokenizer)
    return Generation(
        stop_ids=_ids(given, "eos_token_id") or _ids(config, "eos_token_id") or _named(names, "eos_token", tokenizer),
        bos_id=next(iter(written or bos), None),
        add_bos=bool(written),
        suggested=_suggested(given),
    )


def _written_before(tokenizer: Tokenizer) -> list[int]:
    """The ids that the tokenizer itself puts before a text."""
    text = "a"
    plain, whole = (tokenizer.encode(text, add_special_tokens=special).ids for special in (False, True))
    starts = [n for n in range(len(whole) - len(plain) + 1) if whole[n : n + len(plain)] == plain]
    return whole[: starts[0]] if plain and starts else []


def _ids(settings: Settings, key: str) -> tuple[int, ...]:
    """Token ids given as one or a list, none where the key is left out. A negative id is a way to write none."""
    value = settings.get(key, [])
    ids = value if isinstance(value, list) else [value]
    settings.require(key, all(type(i) is int for i in ids), "a token id or a list of them")
    return tuple(i for i in ids if i >= 0)


def _named(settings: Settings, key: str, tokenizer: Tokenizer) -> tuple[int, ...]:
    """The id of the special token called so, none where there is none."""
    token = token_text(settings.get(key))
    token_id = None if token is None else tokenizer.token_to_id(token)
    return () if token_id is None else (token_id,)


def _suggested(settings: Settings) -> Suggested:
    """The sampling that the file suggests. Nothing in it can be wrong: it is used only where a user asks for it."""
    penalty = _number(settings.get("repetition_penalty"))
    penalty = penalty if penalty is not None and penalty > 0 and penalty != 1 else None
    if settings.get("do_sample") is not True:
        return Suggested(repetition_penalty=penalty)
    temperature, top_k = _number(settings.get("temperature", 1.0)), _number(settings.get("top_k"))
    shares = {key: _number(settings.get(key)) for key in ("top_p", "min_p")}
    return Suggested(
        temperature=temperature if temperature is not None and temperature >= 0 else None,
        top_k=int(top_k) if top_k is not None and top_k >= 1 else None,
        repetition_penalty=penalty,
        **{key: share if share is not None and 0 < share <= 1 else None for key, share in shares.items()},
    )


def _number(value: Any) -> float | None:
    """A finite number as it is, None for anything else."""
    return value if type(value) in (int, float) and abs(value) <= sys.float_info.max else None
