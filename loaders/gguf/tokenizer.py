"""The tokenizer in a GGUF's metadata as the content of a tokenizer.json.

Two kinds of vocabulary are read. "gpt2" is byte-level BPE: merges in order of rank, applied inside the pieces that a
pre-tokenizer cuts, which the file only names. "llama" is SentencePiece BPE: no merges but a score for every token; any
two neighbours whose union is a token may merge, highest score first, so the merges are all such pairs in that order.
(Among equal scores SentencePiece takes the leftmost pair, this the pair of lower ids; scores of real vocabularies
differ.) Tokens that a text may contain but that no merge makes, control and user-defined ones, become added tokens.

Source: src/llama-vocab.cpp of github.com/ggml-org/llama.cpp for the names, patterns and defaults.
"""

from __future__ import annotations

from collections import Counter
from typing import Any

from gguf import Keys

from loaders.gguf.special import (
    BYTE,
    CONTROL,
    NORMAL,
    UNKNOWN,
    USER_DEFINED,
    adds_bos,
    listed,
    token_id,
    vocabulary,
)
from loaders.settings import Settings, shown
from reference.checks import require

SPACE = "\u2581"  # SentencePiece writes a space as this block

Json = dict[str, Any]


def tokenizer_json(metadata: Settings) -> Json | None:
    """The content of tokenizer.json, or None where the file has no vocabulary. ValueError for a kind not read here."""
    kind = metadata.get(Keys.Tokenizer.MODEL)
    tokens, types = vocabulary(metadata)
    if not tokens:
        return None
    if len(set(tokens)) < len(tokens):  # only one of a token's ids could be written out again
        twice = next(token for token, count in Counter(tokens).items() if count > 1)
        raise ValueError(
            f"{metadata.where}: {Keys.Tokenizer.LIST}: got {shown(twice)} more than once, wanted every token once"
        )
    metadata.require(Keys.Tokenizer.MODEL, kind in ("gpt2", "llama"), "gpt2 or llama")
    parts = _byte_level(metadata, tokens) if kind == "gpt2" else _sentencepiece(metadata, tokens, types)
    added = [
        {
            "id": i,
            "content": token,
            "single_word": False,
            "lstrip": False,
            "rstrip": False,
            # SentencePiece may name user-defined tokens with its own sign for a space.
            "normalized": kind == "llama" and token_kind == USER_DEFINED and not _adds_prefix(metadata),
            "special": token_kind != USER_DEFINED,
        }
        for i, (token, token_kind) in enumerate(zip(tokens, types, strict=True))
        if token_kind in (CONTROL, USER_DEFINED) or (token_kind == UNKNOWN and kind == "llama")
    ]
    return {"version": "1.0", "added_tokens": added, "post_processor": _post_processor(metadata, tokens), **parts}


def _adds_prefix(metadata: Settings) -> bool:
    """Whether SentencePiece puts a space before the text."""
    return metadata.flag(Keys.Tokenizer.ADD_PREFIX, True)


def _post_processor(metadata: Settings, tokens: list[str]) -> Json | None:
    """Puts the bos token first, where the model wants that."""
    bos = token_id(metadata, "bos")
    if bos is None or not adds_bos(metadata):
        return None
    first = {"SpecialToken": {"id": tokens[bos], "type_id": 0}}
    return {
        "type": "TemplateProcessing",
        "single": [first, {"Sequence": {"id": "A", "type_id": 0}}],
        "pair": [first, {"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
        "special_tokens": {tokens[bos]: {"id": tokens[bos], "ids": [bos], "tokens": [tokens[bos]]}},
    }


def _model(tokens: list[str], merges: list[tuple[str, str]], **options: Any) -> Json:
    return {"type": "BPE", "vocab": {token: i for i, token in enumerate(tokens)}, "merges": merges, **options}


def _bytes(*, use_regex: bool) -> Json:
    """Writes every byte as a visible letter, after cutting words as GPT-2 did where `use_regex`."""
    return {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": use_regex}


def _words(digits: str) -> Json:
    """GPT-4's manner of cutting words, with numbers cut into `digits`."""
    pattern = (
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|" + digits + r"| ?[^\s\p{L}\p{N}]+[\r\n]*"
        r"|\s*[\r\n]+|\s+(?!\S)|\s+"
    )
    return _cut(pattern)


def _cut(pattern: str) -> Json:
    """What matches stands by itself."""
    return {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False}


DEEPSEEK_V3 = (  # one cut after the other: numbers, Chinese and Japanese, words
    r"\p{N}{1,3}",
    r"[\x{4e00}-\x{9fa5}\x{3040}-\x{309f}\x{30a0}-\x{30ff}]+",
    r"[!-/:-@\[-`{-~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+| ?[\p{P}\p{S}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
)


def _sequence(*parts: Json, of: str) -> Json:
    return {"type": "Sequence", of: list(parts)}


PRE_TOKENIZERS = {
    "gpt-2": _bytes(use_regex=True),
    "smollm": _sequence({"type": "Digits", "individual_digits": True}, _bytes(use_regex=True), of="pretokenizers"),
    "qwen2": _sequence(_words(r"\p{N}"), _bytes(use_regex=False), of="pretokenizers"),
    "llama-bpe": _sequence(_words(r"\p{N}{1,3}"), _bytes(use_regex=False), of="pretokenizers"),
    "deepseek-v3": _sequence(*map(_cut, DEEPSEEK_V3), _bytes(use_regex=False), of="pretokenizers"),
}


def _byte_level(metadata: Settings, tokens: list[str]) -> Json:
    """Normalizer, pre-tokenizer, model and decoder of a "gpt2" vocabulary."""
    pre, merges = metadata.get(Keys.Tokenizer.PRE), listed(metadata, Keys.Tokenizer.MERGES, str)
    metadata.require(Keys.Tokenizer.PRE, pre in PRE_TOKENIZERS, f"one of {', '.join(PRE_TOKENIZERS)}")
    metadata.require(Keys.Tokenizer.MERGES, bool(merges), "the merges of a byte-level vocabulary")
    pairs = []
    for merge in merges:
        cut = merge.find(" ", 1)  # a token may start with a space
        left, right = merge[:cut], merge[cut + 1 :]
        require(
            cut > 0 and bool(right),
            f"{metadata.where}: {Keys.Tokenizer.MERGES}: got {merge!r}, wanted two tokens with a space between",
        )
        pairs.append((left, right))
    return {
        "normalizer": {"type": "NFC"} if pre == "qwen2" else None,
        "pre_tokenizer": PRE_TOKENIZERS[pre],
        "model": _model(tokens, pairs, ignore_merges=pre == "llama-bpe"),
        "decoder": _bytes(use_regex=True),
    }


def _sentencepiece(metadata: Settings, tokens: list[str], types: list[int]) -> Json:
    """Normalizer, pre-tokenizer, model and decoder of a "llama" vocabulary."""
    scores = listed(metadata, Keys.Tokenizer.SCORES, float)
    require(
        len(scores) >= len(tokens),
        f"{metadata.where}: {Keys.Tokenizer.SCORES}: got {len(scores)} entries, "
        f"wanted one for each of {len(tokens)} tokens",
    )
    prefix, unknown = _adds_prefix(metadata), token_id(metadata, "unknown")
    to_block = {"type": "Replace", "pattern": {"String": " "}, "content": SPACE}
    to_space = {"type": "Replace", "pattern": {"String": SPACE}, "content": " "}
    strip = [{"type": "Strip", "content": " ", "start": 1, "stop": 0}] if prefix else []
    prepend = [{"type": "Prepend", "prepend": SPACE}] if prefix else []
    return {
        "normalizer": _sequence(*prepend, to_block, of="normalizers"),
        "pre_tokenizer": None,
        "model": _model(
            tokens,
            _merges(tokens, types, scores),
            unk_token=None if unknown is None else tokens[unknown],
            fuse_unk=True,
            byte_fallback=BYTE in types,
        ),
        "decoder": _sequence(to_space, {"type": "ByteFallback"}, {"type": "Fuse"}, *strip, of="decoders"),
    }


def _merges(tokens: list[str], types: list[int], scores: list[float]) -> list[tuple[str, str]]:
    """Every pair of tokens whose union is a token: highest score of the union first, then lower ids."""
    ids = {token: i for i, token in enumerate(tokens) if types[i] == NORMAL}
    pairs = [
        (-scores[i], ids[token[:cut]], ids[token[cut:]])
        for token, i in ids.items()
        for cut in range(1, len(token))
        if token[:cut] in ids and token[cut:] in ids
    ]
    return [(tokens[left], tokens[right]) for _, left, right in sorted(pairs)]
