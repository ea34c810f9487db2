"""A source: a folder of texts, cut into passages, of which some few are read for a question.

A folder of sources has one folder per source, named after it; every .txt and .md file in it belongs to it. Passages are
found by BM25 (the package bm25s) or by any function of (source, question, how many).
"""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from reference.checks import require, whole

WORDS = 100  # of a passage, at most
SUFFIXES = (".txt", ".md")


@dataclass(frozen=True)
class Source:
    """A name, and all passages in their order."""

    name: str
    passages: tuple[str, ...]


Search = Callable[[Source, str, int], list[int]]  # numbers of at most that many passages, ascending


def read_sources(folder: str | os.PathLike[str], words: int = WORDS) -> list[Source]:
    """The sources of a folder by name, their texts cut into passages of at most `words` words.

    FileNotFoundError for a folder that is not there; ValueError for one without sources, for a source without text, and
    for a file that is not UTF-8.
    """
    path = Path(folder)
    if not path.is_dir():
        raise FileNotFoundError(f"{path}: there is no such folder, wanted one with a folder of texts for each source")
    found = []
    for inner in sorted(each for each in path.iterdir() if each.is_dir() and not each.name.startswith(".")):
        files = sorted(file for file in inner.rglob("*") if file.is_file() and file.suffix.lower() in SUFFIXES)
        passages = tuple(passage for file in files for passage in cut(_text(file), words))
        require(bool(passages), f"{inner}: got no text, wanted {' or '.join(SUFFIXES)} files that are not empty")
        found.append(Source(inner.name, passages))
    require(bool(found), f"{path}: got no folder in it, wanted one for each source")
    return found


def cut(text: str, words: int = WORDS) -> Iterator[str]:
    """Passages of at most `words` words: whole paragraphs as far as they fit, a longer one in parts."""
    whole("words", words)
    held: list[str] = []
    for paragraph in text.split("\n\n"):
        new = paragraph.split()
        if held and len(held) + len(new) > words:
            yield " ".join(held)
            held = []
        held += new
        while len(held) > words:
            yield " ".join(held[:words])
            held = held[words:]
    if held:
        yield " ".join(held)


def bm25(source: Source, question: str, top: int) -> list[int]:
    """The passages of the highest BM25 scores, at most `top`, ascending; none that shares no word with the question.

    English stop words do not count. Ties: the earlier passage.
    """
    bm25s, index = _package(), _index(source)
    words = bm25s.tokenize([question], stopwords="en", return_ids=False, show_progress=False)[0]
    known = [word for word in words if word in index.vocab_dict] if index else []
    if not known:
        return []
    scores = index.get_scores(known)
    best = np.argsort(-scores, kind="stable")[:top]
    return sorted(int(n) for n in best if scores[n] > 0)


@lru_cache(maxsize=1024)
def _index(source: Source) -> Any:
    """The BM25 index of a source; None where it has no word."""
    bm25s = _package()
    words = bm25s.tokenize(list(source.passages), stopwords="en", return_ids=False, show_progress=False)
    if not any(words):
        return None
    index = bm25s.BM25()
    index.index(words, show_progress=False)
    return index


@lru_cache(maxsize=1)
def _package() -> Any:
    """bm25s without JAX. On import it calls JAX where that is installed, and JAX takes three quarters of a GPU's memory
    then; nothing that needs it is used here."""
    shown = sys.modules.get("jax")
    sys.modules["jax"] = None  # type: ignore[assignment]  # so that importing it fails
    try:
        return importlib.import_module("bm25s")
    finally:
        del sys.modules["jax"]
        if shown is not None:
            sys.modules["jax"] = shown


def _text(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{file}: not UTF-8 text ({error.reason} at byte {error.start})") from None
