"""The tokenizer of a checkpoint, and what its files say about starting and ending a text.

A checkpoint of any format hands out the same files (`Source.text`): tokenizer.json is read by the tokenizers package
as it is; tokenizer_config.json names the special tokens; generation_config.json, or else config.json, names the tokens
that end an answer.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from tokenizers import Tokenizer

from loaders.settings import Settings
from loaders.source import Source
from reference import Sampling
from reference.checks import require


@dataclass(frozen=True)
class Generation:
    """How a model's authors mean it to be run: the tokens that end an answer, the one that starts a text and whether
    plain text is to be given it (a chat template writes its own), and how to sample, greedy where nothing is said."""

    stop_ids: tuple[int, ...]
    bos_id: int | None
    add_bos: bool
    sampling: Sampling


def load_tokenizer(source: Source) -> Tokenizer:
    """The tokenizer. Raises FileNotFoundError where the checkpoint has none, ValueError where it cannot be read."""
    text = source.text("tokenizer.json")
    if text is None:
        raise FileNotFoundError(f"{source.path}: got no tokenizer.json, wanted one (no other tokenizer file is read)")
    try:
        return Tokenizer.from_str(text)
    except Exception as error:  # the package raises nothing narrower
        raise ValueError(
            f"{source.path}: tokenizer.json: got one that does not load ({error}), wanted one that does"
        ) from None


def load_generation(source: Source, tokenizer: Tokenizer) -> Generation:
    """Stop tokens, bos and sampling, from generation_config.json and, for what it leaves out, config.json and
    tokenizer_config.json. Raises ValueError naming the key that makes no sense."""
    names = read_settings(source, "tokenizer_config.json")
    given = read_settings(source, "generation_config.json")
    config = Settings(source.config, f"{source.path}: config.json")
    bos = _ids(given, "bos_token_id") or _ids(config, "bos_token_id") or _named(names, "bos_token", tokenizer)
    ends = _ids(given, "eos_token_id") or _ids(config, "eos_token_id") or _named(names, "eos_token", tokenizer)
    bos_id = bos[0] if bos else None
    written = tokenizer.encode("", add_special_tokens=True).ids  # what the tokenizer itself puts around a text
    return Generation(
        stop_ids=ends,
        bos_id=bos_id,
        add_bos=names.flag("add_bos_token", bos_id in written) and bos_id is not None,
        sampling=_sampling(given),
    )


def special_tokens(source: Source) -> dict[str, str]:
    """Special tokens by the names that chat templates know them by: {"bos_token": "<s>", …}."""
    names = read_settings(source, "tokenizer_config.json")
    found = {key: _token(value) for key, value in names.values.items() if key.endswith("_token")}
    return {key: token for key, token in found.items() if token is not None}


def read_settings(source: Source, name: str) -> Settings:
    """One of the checkpoint's JSON files, empty where there is none. ValueError where it is not a JSON object."""
    where, text = f"{source.path}: {name}", source.text(name)
    try:
        values = {} if text is None else json.loads(text)
    except ValueError as error:
        raise ValueError(f"{where}: got text that is not JSON ({error}), wanted a JSON object") from None
    require(isinstance(values, dict), f"{where}: got a JSON {type(values).__name__}, wanted an object")
    return Settings(values, where)


def _ids(settings: Settings, key: str) -> tuple[int, ...]:
    """Token ids given as one or a list, none where the key is left out."""
    value = settings.get(key, [])
    ids = value if isinstance(value, list) else [value]
    settings.require(key, all(type(i) is int and i >= 0 for i in ids), "a token id or a list of them")
    return tuple(ids)


def _token(value: Any) -> str | None:
    """A token that is written as a string or as {"content": string, …}."""
    content = value.get("content") if isinstance(value, dict) else value
    return content if isinstance(content, str) else None


def _named(settings: Settings, key: str, tokenizer: Tokenizer) -> tuple[int, ...]:
    """The id of the special token called so, none where there is none."""
    token = _token(settings.get(key))
    token_id = None if token is None else tokenizer.token_to_id(token)
    return () if token_id is None else (token_id,)


def _sampling(settings: Settings) -> Sampling:
    """The sampling asked for. A top_k of 0 and a top_p of 1 cut nothing."""
    if not settings.flag("do_sample"):
        return Sampling()
    cuts = {key: settings.get(key) or None for key in ("top_k", "top_p", "min_p")}
    try:
        return Sampling(settings.number("temperature", 1.0), **cuts)
    except ValueError as error:
        raise ValueError(f"{settings.where}: {error}") from None
