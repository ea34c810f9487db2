"""What each eviction method costs per chunk, against reading the keys once and against that chunk's attention.

Shapes as in `attention`. A sum over the array is the least that reading the keys can cost: NumPy's runs on one core,
torch's on all of them.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from benchmarks.attention import CHUNK, DIM, HEADS, KV_HEADS, PAST, PASTS, ROUNDS, Problem, cpu
from benchmarks.common import Race, Report, main

CACHED = {"full": 8192, "short": 8192, "smallest": 256}
BUDGETS = {"full": [512 << n for n in range(7)], "short": [1024, 8192], "smallest": [64, 128]}


def run(report: Report) -> None:
    size = report.size
    report.settings = {"heads": HEADS, "kv_heads": KV_HEADS, "head_dim": DIM, "chunk": CHUNK, "dtype": "float32"}
    _keydiff(report, CACHED[size])
    _caote(report, PAST[size])
    for past in PASTS[size]:
        problem = Problem(past)
        race = Race({"attention": problem.dense, **_scorers(problem)}, ROUNDS[size])
        report.point("scoring one chunk over past length", {"past": past}, race.seconds)
    for budget in BUDGETS[size]:
        problem = Problem(budget)
        race = Race({"attention": problem.dense, "KeyDiff step": _step(problem, budget)}, ROUNDS[size])
        report.point("score, choose and compact, back to the budget", {"budget": budget}, race.seconds)


def _keydiff(report: Report, cached: int) -> None:
    problem = Problem(cached - CHUNK)
    keys, cache = problem.k, cpu.LayerCache(problem.k, problem.v, problem.k_positions)
    tensor = torch.from_numpy(keys)
    ways: dict[str, Callable[[], Any]] = {
        "NumPy sum over them": keys.sum,
        "torch sum over them": tensor.sum,
        "without what the cache knows": lambda: cpu.keydiff_scores(keys),
        "keydiff_scores": lambda: cpu.keydiff_scores(cache.keys()),
    }
    race = Race(ways, 3 * ROUNDS[report.size])
    for way in list(ways)[:2]:
        measure = f"keydiff_scores over {cached:,} cached keys"
        report.row(measure, race.ratio("keydiff_scores", way), against=way, reach=2, stretch=1.2, at_most=True)
    report.point("KeyDiff's scores", {"keys": cached}, race.seconds)


def _caote(report: Report, past: int) -> None:
    problem = Problem(past)
    row = cpu.tova_scores(problem.q, problem.k, problem.q_positions, problem.k_positions)
    ways = {
        "attention": problem.dense,
        "CAOTE": lambda: cpu.caote_scores(row, problem.v),
        "FastCAOTE": lambda: cpu.caote_scores(row, problem.v, fast=True),
    }
    race = Race(ways, ROUNDS[report.size])
    for name in ("CAOTE", "FastCAOTE"):
        share = [100 * x for x in race.ratio(name, "attention")]
        measure, against = f"{name} on top of TOVA, past {past:,}", "that chunk's attention"
        report.row(measure, share, against=against, unit="%", reach=3, stretch=1, at_most=True)


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
