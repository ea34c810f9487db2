"""What each eviction method costs per chunk, against reading the cache once and against that chunk's attention.

Shapes as in `attention`. A sum over the array is the least that reading it can cost: torch's runs on all cores.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from benchmarks.attention import CHUNK, DIM, HEADS, KV_HEADS, PAST, PASTS, POINTS, ROUNDS, Problem, cpu
from benchmarks.common import Race, Report, main, torch

CACHED = {"full": 8192, "short": 8192, "smallest": 256}
BUDGETS = {"full": [512 << n for n in range(7)], "short": [1024, 8192], "smallest": [64, 128]}


def run(report: Report) -> None:
    size = report.size
    report.settings = {"heads": HEADS, "kv_heads": KV_HEADS, "head_dim": DIM, "chunk": CHUNK, "dtype": "float32"}
    _keydiff(report, CACHED[size])
    _caote(report, PAST[size])
    for tokens in (CHUNK, 1):
        _mass(report, Problem(PAST[size], tokens=tokens))
    for past in PASTS[size]:
        problem = Problem(past)
        race = Race({"attention": problem.dense, **_scorers(problem)}, POINTS[size])
        report.point("scoring one chunk over past length", {"past": past}, race.seconds)
    for budget in BUDGETS[size]:
        problem = Problem(budget)
        race = Race({"attention": problem.dense, "KeyDiff step": _step(problem, budget)}, POINTS[size])
        report.point("score, choose and compact, back to the budget", {"budget": budget}, race.seconds)


def readings(x: np.ndarray) -> dict[str, Callable[[], Any]]:
    """torch's ways to add up all of (KV, S, D): at once, and along the tokens."""
    tensor = torch().from_numpy(x)
    return {"torch's sum": tensor.sum, "torch's sum along the tokens": lambda: tensor.sum(1)}


def _keydiff(report: Report, cached: int) -> None:
    problem = Problem(cached - CHUNK)
    keys, cache = problem.k, cpu.LayerCache(problem.k, problem.v, problem.k_positions)
    reads = readings(keys)
    ways: dict[str, Callable[[], Any]] = {
        **reads,
        "without what the cache knows": lambda: cpu.keydiff_scores(keys),
        "keydiff_scores": lambda: cpu.keydiff_scores(cache.keys()),
    }
    race = Race(ways, 2 * ROUNDS[report.size])
    fastest = min(reads, key=race.median)
    measure, against = f"keydiff_scores over {cached:,} cached keys", f"reading the keys once ({fastest})"
    report.row(measure, race.ratio("keydiff_scores", fastest), against=against)
    report.point("KeyDiff's scores", {"keys": cached}, race.seconds)


def _caote(report: Report, past: int) -> None:
    problem = Problem(past)
    row = cpu.tova_scores(problem.q, problem.k, problem.q_positions, problem.k_positions)
    reads = readings(problem.v)
    ways = {
        **reads,
        "attention": problem.dense,
        "CAOTE": lambda: cpu.caote_scores(row, problem.v),
        "FastCAOTE": lambda: cpu.caote_scores(row, problem.v, fast=True),
    }
    race = Race(ways, ROUNDS[report.size])
    fastest = min(reads, key=race.median)
    for name in ("CAOTE", "FastCAOTE"):
        measure, against = f"{name} on top of TOVA, past {past:,}", f"reading the values once ({fastest})"
        report.row(measure, race.ratio(name, fastest), against=against, reach=1.3, stretch=1.1, at_most=True)
        share = [100 * x for x in race.ratio(name, "attention")]
        report.row(measure, share, against="that chunk's attention", unit="%")


def with_mass(problem: Problem) -> tuple[np.ndarray, np.ndarray]:
    """A problem's attention (T, H·D), and what each key receives of it (H, S)."""
    return cpu.attention_and_mass_each([problem.arguments])[0]


def _mass(report: Report, problem: Problem) -> None:
    """H2O's: what its mass adds to the attention of a chunk, or of a token, whose peaks and sums it takes."""
    race = Race({"attention": problem.dense, "with its mass": lambda: with_mass(problem)}, ROUNDS[report.size])
    of = "a token" if problem.tokens == 1 else f"a chunk of {problem.tokens}"
    measure = f"attention_mass of {of}, past {problem.past:,}, on top of its attention"
    values = [both - 1 for both in race.ratio("with its mass", "attention")]
    report.row(measure, values, against="that attention", reach=0.5, at_most=True)


def _scorers(problem: Problem) -> dict[str, Callable[[], Any]]:
    """The scores of every method for one chunk over the whole cache."""
    seen = problem.q, problem.k, problem.q_positions, problem.k_positions
    row = cpu.tova_scores(*seen)
    cache = cpu.LayerCache(problem.k, problem.v, problem.k_positions)
    return {
        "KeyDiff": lambda: cpu.keydiff_scores(cache.keys()),
        "TOVA": lambda: cpu.tova_scores(*seen),
        "SnapKV": lambda: cpu.snapkv_scores(*seen),
        "H2O": lambda: cpu.attention_mass(*seen),
        "CAOTE": lambda: cpu.caote_scores(row, problem.v),
    }


def _step(problem: Problem, budget: int) -> Callable[[], None]:
    """Append a chunk to a full cache and bring it back to the budget with KeyDiff."""
    cache = cpu.LayerCache(problem.k[:, :budget], problem.v[:, :budget], problem.k_positions[:, :budget])
    new = problem.k[:, budget:], problem.v[:, budget:]

    def step() -> None:
        cache.append(*new, cache.newest + 1)
        cache.keep(cpu.keep_top(cpu.keydiff_scores(cache.keys()), budget))

    return step


if __name__ == "__main__":
    main("eviction", run)
