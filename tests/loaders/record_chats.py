"""Records what transformers renders for the conversations of `chats`:

    python -m tests.loaders.record_chats

writes chats.json beside this file: the text of every case, or null where the template refuses it or fails.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer, models
from transformers import PreTrainedTokenizerFast

from tests.loaders.chats import CASES, TOKENS, case

RECORDED = Path(__file__).with_name("chats.json")


def render(template: str, messages: list[dict[str, Any]], variables: dict[str, Any]) -> str | None:
    """transformers' text, None where it raises."""
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.BPE()), chat_template=template, **TOKENS)
    try:
        return tokenizer.apply_chat_template(messages, tokenize=False, **variables)
    except Exception:  # a template may fail in any way
        return None


if __name__ == "__main__":
    texts = {name: render(*case(name)) for name in CASES}
    RECORDED.write_text(json.dumps(texts, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
