"""Which tokens of a GGUF's vocabulary mean something of their own, and the chat template: what a Hugging Face directory
has in tokenizer_config.json and generation_config.json.

Source: src/llama-vocab.cpp of github.com/ggml-org/llama.cpp for the names and defaults.
"""

from __future__ import annotations

from typing import Any

from gguf import Keys

from loaders.settings import Settings
from reference.checks import require

IDS = {
    "bos": Keys.Tokenizer.BOS_ID,
    "eos": Keys.Tokenizer.EOS_ID,
    "eot": Keys.Tokenizer.EOT_ID,
    "eom": Keys.Tokenizer.EOM_ID,
    "unknown": Keys.Tokenizer.UNK_ID,
    "padding": Keys.Tokenizer.PAD_ID,
}
NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = range(1, 7)
END_NAMES = frozenset(
    (
        *("<|im_end|>", "<|endoftext|>", "<|eot_id|>", "<|eom_id|>", "<|end_of_text|>", "<end_of_turn>"),
        *("<|end|>", "<EOT>", "_<EOT>", "<end_of_utterance>"),
    )
)
NONE = (-1, 2**32 - 1)

Json = dict[str, Any]


def tokenizer_config(metadata: Settings) -> Json | None:
    """The content of tokenizer_config.json: special tokens by name and the chat template."""
    tokens, _ = vocabulary(metadata)
    if not tokens:
        return None
    config: Json = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "add_bos_token": adds_bos(metadata),
        "clean_up_tokenization_spaces": False,
    }
    for name, key in (("bos", "bos"), ("eos", "eos"), ("unk", "unknown"), ("pad", "padding")):
        special = token_id(metadata, key)
        if special is not None:
            config[f"{name}_token"] = tokens[special]
    template = metadata.get(Keys.Tokenizer.CHAT_TEMPLATE)
    named = {
        name: metadata.get(Keys.Tokenizer.CHAT_TEMPLATE_N.format(name=name))
        for name in listed(metadata, Keys.Tokenizer.CHAT_TEMPLATES, str)
    }
    if named:
        every = {"default": template} | named
        config["chat_template"] = [{"name": n, "template": t} for n, t in every.items() if t is not None]
    elif template is not None:
        config["chat_template"] = template
    return config


def special_ids(metadata: Settings) -> Json:
    """The content of generation_config.json: bos_token_id, pad_token_id, and as eos_token_id every token that ends an
    answer, which are the file's end of text, end of turn and end of message and the tokens called like one."""
    ends = [token_id(metadata, key) for key in ("eos", "eot", "eom")]
    ends += [i for i, token in enumerate(vocabulary(metadata)[0]) if token in END_NAMES]
    found: Json = {
        "bos_token_id": token_id(metadata, "bos"),
        "eos_token_id": list(dict.fromkeys(i for i in ends if i is not None)) or None,
        "pad_token_id": token_id(metadata, "padding"),
    }
    return {key: value for key, value in found.items() if value is not None}


def vocabulary(metadata: Settings) -> tuple[list[str], list[int]]:
    """Tokens and their types, without the unused ones at the end, which only pad the embedding. A token that is empty
    has the name that llama.cpp gives it; one that is called like an end is a control token, whatever the file says."""
    tokens = [token or f"[EMPTY_{i}]" for i, token in enumerate(listed(metadata, Keys.Tokenizer.LIST, str))]
    types = listed(metadata, Keys.Tokenizer.TOKEN_TYPE, int) or [NORMAL] * len(tokens)
    require(
        len(types) == len(tokens),
        f"{metadata.where}: {Keys.Tokenizer.TOKEN_TYPE}: got {len(types)} entries, "
        f"wanted one for each of {len(tokens)} tokens",
    )
    used = len(types)
    while used and types[used - 1] == UNUSED:
        used -= 1
    kept = tokens[:used]
    return kept, [CONTROL if token in END_NAMES else kind for token, kind in zip(kept, types, strict=False)]


def listed(metadata: Settings, key: str, kind: type) -> list[Any]:
    """An array of one kind of value, empty where it is left out."""
    value = metadata.get(key, [])
    good = isinstance(value, list) and all(isinstance(item, kind) for item in value)
    require(good, f"{metadata.where}: {key}: got something else, wanted an array of {kind.__name__}")
    return value


def token_id(metadata: Settings, name: str) -> int | None:
    """The id of a special token, checked against the vocabulary. -1 is a way to write none, in either of its types, and
    an id that no text is padded with may lie anywhere."""
    key = IDS[name]
    value, count = metadata.get(key), len(vocabulary(metadata)[0])
    if value in NONE or (name == "padding" and type(value) is int and not 0 <= value < count):
        return None
    metadata.require(key, value is None or (type(value) is int and 0 <= value < count), f"an id below {count}")
    return value


def adds_bos(metadata: Settings) -> bool:
    """Whether text starts with the bos token; where the file does not say, what llama.cpp takes for granted."""
    default = metadata.get(Keys.Tokenizer.MODEL) == "llama" or metadata.get(Keys.Tokenizer.PRE) == "llama-bpe"
    return metadata.flag(Keys.Tokenizer.ADD_BOS, default) and token_id(metadata, "bos") is not None
