"""Problems with known answers: GSM8K and MATH-500 as the evaluation has them, or a file of the user's."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from loaders.settings import json_object, shown
from reference.checks import require, whole
from thresher.evaluation import data
from thresher.evaluation.scorers.maths import boxed


@dataclass(frozen=True)
class Problem:
    """What is asked, and the answers that are right."""

    text: str
    wanted: tuple[str, ...]


def read_problems(name: str, limit: int, seed: int = 0) -> list[Problem]:
    """At most `limit` problems of gsm8k or math500, drawn by the seed, or the first ones of a file of JSON lines.

    A line has "problem" and "answer". ValueError names the file and the line where it is anything else.
    """
    whole("limit", limit)
    if name in PACKAGED:
        found = list(PACKAGED[name]())
        return [found[n] for n in np.random.default_rng(seed).permutation(len(found))[:limit]]
    path, found = Path(name), []
    require(path.exists(), f"problems: got {name}, wanted {', '.join(PACKAGED)} or a file of JSON lines")
    for n, line in enumerate(path.read_text(encoding="utf-8", errors="replace").splitlines(), start=1):
        if line.strip() and len(found) < limit:
            told = json_object(line, f"{path}: line {n}")
            for key in ("problem", "answer"):
                good = isinstance(told.get(key), str) and told[key].strip() != ""
                require(good, f"{path}: line {n}: got {key} {shown(told.get(key))}, wanted a text that is not empty")
            found.append(Problem(told["problem"], (told["answer"],)))
    require(bool(found), f"{path}: got no line, wanted a problem on each")
    return found


def _gsm8k() -> Iterator[Problem]:
    for doc in data.questions("gsm8k"):
        yield Problem(doc["question"], (doc["short_answer"],))


def _math500() -> Iterator[Problem]:
    for doc in data.questions("math500"):
        yield Problem(doc["problem"], (boxed(doc["solution"]),))


PACKAGED: dict[str, Callable[[], Iterator[Problem]]] = {"gsm8k": _gsm8k, "math500": _math500}
