"""The voting over sources of unknown reliability, simulated: `python -m benchmarks.voting`.

Sources answer without any model: source i holds a passage for a query with probability 0.6, and then gives the right
answer with its own probability p_i, or else one of nine wrong ones. p_i comes from one of the two priors of RA-RAG
(arXiv 2410.22954): Beta(3, 2), or adversaries and hammers, which are 0.1 and 0.9 with equal chances. Weights are
estimated on 200 queries without labels and tested on 1,400 others. All of it is repeated over the seeds; told is a mean
with a bootstrap interval over them. The nine wrong answers are our choice: the source tells no number.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from typing import Any

import numpy as np

from benchmarks.common import RESULTS
from reference import estimate_reliability, reliable_sources, sources_asked, weighted_vote
from thresher.evaluation.metrics import interval

PRIORS: dict[str, Callable[[np.random.Generator, int], np.ndarray]] = {
    "Beta(3, 2)": lambda rng, n: rng.beta(3, 2, n),
    "adversaries and hammers": lambda rng, n: rng.choice([0.1, 0.9], n),
}
SOURCES = (3, 4, 5, 6, 7, 8, 9, 1000)
ESTIMATE, TEST, COVERAGE, WRONG, KAPPA = 200, 1400, 0.6, 9, 4
RECORDS = RESULTS / "answers"
PAPER = {"correlation": "> 0.99 on real sources", "fewer reads": "99.1 % at 1,000 sources"}
COLUMNS = ("correlation", "majority", "estimated", "kappa", "true", "fewer reads")
HEADER = ("sources", "correlation", "majority vote", "estimated weights", "best four", "true weights", "fewer reads")


def answers(rng: np.random.Generator, reliability: np.ndarray, queries: int) -> np.ndarray:
    """(N, M): 0 is the right answer, 1 to WRONG the wrong ones, -1 where a source holds no passage."""
    shape = len(reliability), queries
    given = np.where(rng.random(shape) < reliability[:, None], 0, rng.integers(1, WRONG + 1, shape))
    return np.where(rng.random(shape) < COVERAGE, given, -1)


def simulate(prior: str, sources: int, seed: int) -> dict[str, float]:
    """One repeat. Accuracy is over the queries that a source knows anything about."""
    rng = np.random.default_rng([seed, sources, list(PRIORS).index(prior)])
    reliability = PRIORS[prior](rng, sources)
    v = estimate_reliability(answers(rng, reliability, ESTIMATE), seed=seed)
    asked = answers(rng, reliability, TEST)
    chosen = np.where(reliable_sources(asked, v, KAPPA), asked, -1)
    known = (asked >= 0).any(axis=0)

    def accuracy(table: np.ndarray, weights: np.ndarray) -> float:
        return float((weighted_vote(table, weights, seed=seed)[known] == 0).mean())

    alike = np.ptp(reliability) == 0 or np.ptp(v) == 0  # there is no correlation with a constant
    return {
        "correlation": float("nan") if alike else float(np.corrcoef(v, reliability)[0, 1]),
        "majority": accuracy(asked, np.ones(sources)),
        "estimated": accuracy(asked, v),
        "kappa": accuracy(chosen, v),
        "true": accuracy(asked, sources * reliability - 1),
        "fewer reads": 1 - float(sources_asked(asked, v, KAPPA).mean()),
    }


def told(repeats: list[dict[str, float]]) -> dict[str, Any]:
    """Mean, interval and count of every figure, over the repeats that have it."""
    found: dict[str, Any] = {}
    for name in repeats[0]:
        values = [each[name] for each in repeats if not np.isnan(each[name])]
        low, high = interval([(str(n), value) for n, value in enumerate(values)]) if values else (None, None)
        found[name] = {"mean": float(np.mean(values)) if values else None, "low": low, "high": high, "n": len(values)}
    return found


def table(record: dict[str, Any]) -> list[str]:
    """Markdown, a table for each prior: percent but for the correlation, each with its interval."""
    lines = []
    for prior in PRIORS:
        lines += [f"{prior}:", "", f"| {' | '.join(HEADER)} |", "|" + "---|" * len(HEADER)]
        for row in (row for row in record["rows"] if row["prior"] == prior):
            cells = [cell(row[name], 1 if name == "correlation" else 100) for name in COLUMNS]
            lines.append(f"| {row['sources']:,} | {' | '.join(cells)} |")
        lines.append("")
    return lines[:-1]


def block(name: str) -> list[str]:
    """Markdown of the record of that name."""
    return table(json.loads((RECORDS / f"voting-{name}.json").read_text(encoding="utf-8")))


def cell(figure: dict[str, Any], scale: int) -> str:
    """A mean with its interval; scale: 100 for percent."""
    if figure["mean"] is None:
        return ""
    digits = 3 if scale == 1 else 1
    mean, low, high = (f"{scale * figure[name]:.{digits}f}" for name in ("mean", "low", "high"))
    return f"{mean} ({low} to {high})"


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.voting", description=__doc__)
    parser.add_argument("--seeds", type=int, default=10, help="repeats (default: %(default)s)")
    parser.add_argument("--sources", default=",".join(map(str, SOURCES)), help="default: %(default)s")
    parser.add_argument("--record", action="store_true", help="keep the figures for docs/answers.md")
    arguments = parser.parse_args()
    counts = [int(text) for text in arguments.sources.split(",")]
    rows = [
        {"prior": prior, "sources": n, **told([simulate(prior, n, seed) for seed in range(arguments.seeds)])}
        for prior in PRIORS
        for n in counts
    ]
    settings = {"seeds": arguments.seeds, "estimate": ESTIMATE, "test": TEST, "coverage": COVERAGE, "kappa": KAPPA}
    record = {"settings": {**settings, "wrong answers": WRONG}, "paper": PAPER, "rows": rows}
    if arguments.record:
        RECORDS.mkdir(exist_ok=True)
        text = json.dumps(record, ensure_ascii=False, indent=1)
        (RECORDS / "voting-simulated.json").write_text(text + "\n", encoding="utf-8")
    print("\n".join(table(record)))
    print(json.dumps(record, ensure_ascii=False))


if __name__ == "__main__":
    main()
