"""Which tokens of a GGUF's vocabulary mean something of their own, and the chat template: what a Hugging Face directory
has in tokenizer_config.json and generation_config.json.

Source: src/llama-vocab.cpp of github.com/ggml-org/llama.cpp for the names and defaults.
"""

from __future__ import annotations

from typing import Any

from loaders.settings import Settings

KEY = "tokenizer.ggml"
NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = range(1, 7)
ENDS = ("<|im_end|>", "<|endoftext|>", "<|eot_id|>", "<|eom_id|>", "<|end_of_text|>", "<end_of_turn>")

Json = dict[str, Any]


def tokenizer_config(metadata: Settings) -> Json | None:
    """The content of tokenizer_config.json: special tokens by name and the chat template."""
    if metadata.get(f"{KEY}.tokens") is None:
        return None
    tokens = metadata.get(f"{KEY}.tokens")
    config: Json = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "add_bos_token": adds_bos(metadata),
        "clean_up_tokenization_spaces": False,
    }
    for name, key in (("bos", "bos"), ("eos", "eos"), ("unk", "unknown"), ("pad", "padding")):
        special = token_id(metadata, key)
        if special is not None:
            config[f"{name}_token"] = tokens[special]
    template = metadata.get("tokenizer.chat_template")
    named = {
        name: metadata.get(f"tokenizer.chat_template.{name}") for name in metadata.get("tokenizer.chat_templates", [])
    }
    if named:
        every = {"default": template} | named
        config["chat_template"] = [{"name": n, "template": t} for n, t in every.items() if t is not None]
    elif template is not None:
        config["chat_template"] = template
    return config


def special_ids(metadata: Settings) -> Json:
    """The content of generation_config.json: bos_token_id, pad_token_id, and as eos_token_id every token that ends an
    answer, which are the file's end of text, end of turn and end of message and the control tokens in ENDS."""
    ends = [token_id(metadata, key) for key in ("eos", "eot", "eom")]
    tokens, types = metadata.get(f"{KEY}.tokens", []), metadata.get(f"{KEY}.token_type", [])
    ends += [i for i, kind in enumerate(types) if kind == CONTROL and tokens[i] in ENDS]
    found: Json = {
        "bos_token_id": token_id(metadata, "bos"),
        "eos_token_id": list(dict.fromkeys(i for i in ends if i is not None)) or None,
        "pad_token_id": token_id(metadata, "padding"),
    }
    return {key: value for key, value in found.items() if value is not None}


def token_id(metadata: Settings, name: str) -> int | None:
    """The id of a special token, checked against the vocabulary."""
    key = f"{KEY}.{name}_token_id"
    value, count = metadata.get(key), len(metadata.get(f"{KEY}.tokens", []))
    metadata.require(key, value is None or (type(value) is int and 0 <= value < count), f"an id below {count}")
    return value


def adds_bos(metadata: Settings) -> bool:
    """Whether text starts with the bos token; where the file does not say, what llama.cpp takes for granted."""
    default = metadata.get(f"{KEY}.model") == "llama" or metadata.get(f"{KEY}.pre") == "llama-bpe"
    return metadata.flag(f"{KEY}.add_bos_token", default) and token_id(metadata, "bos") is not None
