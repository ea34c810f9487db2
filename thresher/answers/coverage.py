"""What runs cover: pass@k of each method and of their mix, the runs that the mix saves, and the vote beside it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from reference.checks import require
from reference.voting import mixed_pass_at_k, pass_at_k, round_robin, weighted_vote
from thresher.answers.panel import clusters
from thresher.evaluation.metrics import interval
from thresher.evaluation.scorers.maths import same_answer

MIX = "mix"


def majority(answers: Sequence[str], seed: int = 0) -> str:
    """The answer that most runs come to, "" where none comes to any. Ties are drawn by the seed."""
    numbers = clusters("", [answer or None for answer in answers], lambda _, a, b: same_answer(a, b))
    voted = weighted_vote(np.array(numbers, np.int64)[:, None], np.ones(len(numbers)), seed=seed)[0]
    return "" if voted < 0 else answers[numbers.index(voted)]


def coverage(
    answers: Mapping[str, Sequence[Sequence[str]]], wanted: Sequence[Sequence[str]], seed: int = 0
) -> dict[str, Any]:
    """answers: for each method, the answers of its K runs to each problem; wanted: what is right, for each problem.

    Returns for each method and the mix: "pass", the mean over the problems of pass@k for k = 1 … K, with intervals;
    "majority", the share of problems whose vote over K runs is right. Also "order", in which the mix takes its runs,
    and for each method "reached", the first run at which the mix covers what the method covers with K, and "saved", the
    share of K that this leaves; both None where it does not, or where the method covers nothing. The runs of the mix
    are the methods' first ones.
    """
    names, runs = list(answers), len(next(iter(answers.values()))[0])
    shaped = all(len(table) == len(wanted) and all(len(row) == runs for row in table) for table in answers.values())
    require(shaped and runs > 0, f"answers: got rows of other lengths, wanted {runs} runs of {len(wanted)} problems")
    right = np.array(
        [
            [[_right(answer, texts) for answer in row] for row, texts in zip(answers[name], wanted, strict=True)]
            for name in names
        ]
    )  # (methods, problems, K)
    c = right.sum(axis=2)
    n = np.full_like(c, runs)
    first = c.mean(axis=1) / runs
    order = round_robin(first, len(names))
    curves = {name: [pass_at_k(runs, c[m], k) for k in range(1, runs + 1)] for m, name in enumerate(names)}
    curves[MIX] = [mixed_pass_at_k(n, c, round_robin(first, k)) for k in range(1, runs + 1)]
    turns = round_robin(first, runs)
    taken = [(int(m), int((turns[:k] == m).sum())) for k, m in enumerate(turns)]  # (method, which of its runs)
    mixed = [[answers[names[m]][p][i] for m, i in taken] for p in range(len(wanted))]
    voted = {name: _vote([*table], wanted, seed) for name, table in [*answers.items(), (MIX, mixed)]}
    found: dict[str, dict[str, Any]] = {
        name: {"pass": [_told(values) for values in curve], "majority": voted[name]} for name, curve in curves.items()
    }
    covered = [float(np.mean(values)) for values in curves[MIX]]
    for name in names:
        ceiling = found[name]["pass"][-1]["mean"]
        reached = next((k for k, mean in enumerate(covered, start=1) if mean >= ceiling - 1e-12 and ceiling), None)
        found[name] |= {"reached": reached, "saved": None if reached is None else 1 - reached / runs}
    return {"runs": runs, "problems": len(wanted), "order": [names[m] for m in order], "methods": found}


def _right(answer: str, wanted: Sequence[str]) -> bool:
    return any(same_answer(answer, text) for text in wanted)


def _vote(table: Sequence[Sequence[str]], wanted: Sequence[Sequence[str]], seed: int) -> dict[str, float]:
    return _told(
        np.array([_right(majority(row, seed), texts) for row, texts in zip(table, wanted, strict=True)], float)
    )


def _told(values: np.ndarray) -> dict[str, float]:
    low, high = interval([(str(n), float(value)) for n, value in enumerate(values)])
    return {"mean": float(np.mean(values)), "low": low, "high": high}
