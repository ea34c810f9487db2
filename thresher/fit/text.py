"""The text that a model is trained on, as prompts of equal length: training and held-out ones, which never overlap."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from tokenizers import Tokenizer

from reference.checks import require
from thresher.text import check_text

TEXTS = (".txt", ".md", ".rst")
LINES = (".jsonl", ".ndjson")
BETWEEN = "\n\n"  # documents


def read_documents(paths: Sequence[str | os.PathLike[str]]) -> list[str]:
    """The documents in files and folders, sorted by name: a text file is one, and so is every line of a JSON Lines file
    ("text" of an object, or a string). ValueError or OSError names what cannot be read."""
    documents: list[str] = []
    for given in paths:
        path = Path(given)
        inside = sorted(p for p in path.rglob("*") if p.suffix in TEXTS + LINES) if path.is_dir() else [path]
        require(bool(inside), f"{path}: got a folder without {', '.join(TEXTS + LINES)} files, wanted some")
        for file in inside:
            documents += _read(file)
    return [document for document in documents if document.strip()]


def _read(file: Path) -> Iterator[str]:
    try:
        text = file.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{file}: not UTF-8 text ({error.reason} at byte {error.start})") from None
    if file.suffix not in LINES:
        yield text
        return
    for number, line in enumerate(text.splitlines(), 1):
        if line.strip():
            yield _text_of(line, f"{file}: line {number}")


def _text_of(line: str, where: str) -> str:
    try:
        value = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{where}: got no JSON ({error}), wanted an object with a text") from None
    text = value.get("text") if isinstance(value, dict) else value
    if not isinstance(text, str):
        raise ValueError(f'{where}: got no text, wanted a string or an object with "text"')
    return text


def make_prompts(documents: Sequence[str], tokenizer: Tokenizer, *, tokens: int, context: int, seed: int) -> np.ndarray:
    """Prompts of `context` tokens, (P, context) int64: the documents, shuffled, one after the other, cut where a prompt
    is full, until there are `tokens`. ValueError where they do not make two prompts, one to train on and one held out.
    """
    wanted = max(2, tokens // context) * context
    order = np.random.default_rng(seed).permutation(len(documents))
    ids: list[int] = []
    for n in order:
        ids += tokenizer.encode(check_text("data", documents[n] + BETWEEN), add_special_tokens=False).ids
        if len(ids) >= wanted:
            break
    count = min(len(ids), wanted) // context
    require(
        count >= 2,
        f"data: got {len(ids):,} tokens of text, wanted at least {2 * context:,}, two prompts of {context:,} tokens",
    )
    return np.array(ids[: count * context], np.int64).reshape(count, context)


def held_out(prompts: int) -> int:
    """How many of the prompts, the last ones, are kept from training: a tenth, at least one (chosen)."""
    return max(1, prompts // 10)
