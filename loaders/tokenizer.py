"""The tokenizer of a checkpoint, with what the files beside tokenizer.json say about it.

A checkpoint of any format hands out the same files (`Source.text`). tokenizer.json is read by the tokenizers package.
Two things in it are not the model's: the truncation and the padding that a training script left switched on. Both are
switched off. tokenizer_config.json, or special_tokens_map.json and added_tokens.json in older checkpoints, name the
special tokens and may list tokens that tokenizer.json does not have; those are added.

Source: transformers' tokenization_utils_base.py and tokenization_utils_tokenizers.py, for which file counts when.
"""

from __future__ import annotations

import re
from typing import Any

from tokenizers import AddedToken, Tokenizer

from loaders.settings import Settings, json_object, shown
from loaders.source import Source

DECODER = "added_tokens_decoder"  # {"7": {"content": "<x>", "special": true, …}, …}
NAMED = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")
TRAITS = ("single_word", "lstrip", "rstrip", "normalized", "special")


def load_tokenizer(source: Source) -> Tokenizer:
    """The tokenizer. Raises FileNotFoundError where the checkpoint has none, ValueError where it cannot be read."""
    text = source.text("tokenizer.json")
    if text is None:
        raise FileNotFoundError(f"{source.path}: got no tokenizer.json, wanted one (no other tokenizer file is read)")
    listed, named = _listed_tokens(source), _named_tokens(source)
    try:
        tokenizer = Tokenizer.from_str(text)
        tokenizer.no_truncation()
        tokenizer.no_padding()
        tokenizer.add_tokens(listed)
        known = {token.content for token in tokenizer.get_added_tokens_decoder().values()}
        tokenizer.add_tokens([token for token in named if token.content not in known])
    except Exception as error:  # the package raises nothing narrower
        raise ValueError(
            f"{source.path}: tokenizer.json: got one that does not load ({_line(error)}), wanted one that does"
        ) from None
    return tokenizer


def names_of_tokens(source: Source) -> Settings:
    """tokenizer_config.json, with special_tokens_map.json over it. As in transformers, the second counts only where the
    first lists no added tokens, and then it wins."""
    names = read_settings(source, "tokenizer_config.json")
    if DECODER in names.values:
        return names
    return Settings({**names.values, **read_settings(source, "special_tokens_map.json").values}, names.where)


def special_tokens(source: Source) -> dict[str, str]:
    """Special tokens by the names that chat templates know them by: {"bos_token": "<s>", …}."""
    names = names_of_tokens(source).values
    extra = names.get("extra_special_tokens")
    every = {**names, **(extra if isinstance(extra, dict) else {})}
    found = {key: token_text(value) for key, value in every.items() if key.endswith("_token")}
    return {key: token for key, token in found.items() if token is not None}


def read_settings(source: Source, name: str) -> Settings:
    """One of the checkpoint's JSON files, empty where there is none. ValueError where it is not a JSON object."""
    where, text = f"{source.path}: {name}", source.text(name)
    return Settings({} if text is None else json_object(text, where), where)


def token_text(value: Any) -> str | None:
    """A token that is written as a string or as {"content": string, …}, None for anything else. Half a surrogate pair,
    which JSON can write, is no text."""
    content = value.get("content") if isinstance(value, dict) else value
    return content if isinstance(content, str) and not re.search("[\ud800-\udfff]", content) else None


def _listed_tokens(source: Source) -> list[AddedToken]:
    """The tokens that a file beside tokenizer.json lists with an id, in the order of their ids. The tokenizer gives one
    that it does not know the next free id, whatever the file says; so does transformers."""
    names = names_of_tokens(source)
    if DECODER in names.values:
        listed = names.part(DECODER)
        for key, value in listed.values.items():
            listed.require(
                key, key.isdecimal() and token_text(value) is not None, "an id with a token that has content"
            )
        return [_added(listed.values[key], special=False) for key in sorted(listed.values, key=int)]
    older, special = read_settings(source, "added_tokens.json"), set(special_tokens(source).values())
    for key, value in older.values.items():
        older.require(key, type(value) is int and value >= 0, "a token id")
    return [_added(token, special=token in special) for token in sorted(older.values, key=lambda t: older.values[t])]


def _named_tokens(source: Source) -> list[AddedToken]:
    """The tokens that have a name only: transformers adds those that are missing, in this order."""
    names = names_of_tokens(source).values
    others = [key for key in special_tokens(source) if key not in NAMED and key in names]
    lists = [names.get(key) for key in ("additional_special_tokens", "extra_special_tokens")]
    values = [names.get(key) for key in (*NAMED, *others)]
    for group in lists:
        values += group if isinstance(group, list) else group.values() if isinstance(group, dict) else []
    return [_added(value, special=True) for value in values if token_text(value)]


def _line(error: Exception) -> str:
    """What the error says, in one line that can be printed."""
    return shown(str(error)).strip("'\"")


def _added(value: Any, *, special: bool) -> AddedToken:
    """A token from its string, or from an object that may say how it is found in a text."""
    traits = {key: value[key] for key in TRAITS if isinstance(value.get(key), bool)} if isinstance(value, dict) else {}
    traits = {"special": special} | traits
    return AddedToken(token_text(value), **{"normalized": not traits["special"]} | traits)
