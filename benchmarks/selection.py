"""QUOKA in full against dense attention: what it saves, what choosing costs, and from which length on it wins.

Shapes as in `attention`. The parts are timed one by one: scoring the keys, taking the best, gathering them and the
chunk's own, attending to them; `quoka_attention` does all four, the last two in one.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from benchmarks.attention import CHUNK, DIM, HEADS, KV_HEADS, PAST, PASTS, ROUNDS, Problem, cpu
from benchmarks.common import Race, Report, main
from reference.quoka import with_chunk

QUERIES = 16
BUDGET = {"full": 1024, "short": 1024, "smallest": 64}
BUDGETS = {"full": [256 << n for n in range(8)], "short": [512, 2048, 8192], "smallest": [32, 128]}
NEAR = {
    "full": [1088, 1152, 1280, 1408, 1536, 1792, 2048, 2560, 3072, 4096],
    "short": [1152, 1280, 1536, 2048],
    "smallest": [96, 128],
}


def quoka(problem: Problem, budget: int) -> Callable[[], np.ndarray]:
    """QUOKA in full on this problem."""
    return lambda: cpu.quoka_attention(*problem.arguments, problem.past, budget=budget, n_queries=QUERIES)


def run(report: Report) -> None:
    size = report.size
    report.settings = {"heads": HEADS, "kv_heads": KV_HEADS, "head_dim": DIM, "chunk": CHUNK, "n_queries": QUERIES}
    problem, eighth, fixed = Problem(PAST[size]), PAST[size] // 8, BUDGET[size]
    ways = {**problem.torch_ways(), "thresher, dense": problem.dense}
    race = Race({**ways, "eighth": quoka(problem, eighth), "fixed": quoka(problem, fixed)}, ROUNDS[size])
    goals = {"eighth": (8, 10.5), "fixed": (16, 24)}
    for name, budget in (("eighth", eighth), ("fixed", fixed)):
        for way in ways:
            reach, stretch = goals[name] if way != "thresher, dense" else (None, None)
            measure = f"QUOKA in full, budget {budget:,}, past {problem.past:,}"
            report.row(measure, race.ratio(way, name), against=way, reach=reach, stretch=stretch)
    for name, budget in (("eighth", eighth), ("fixed", fixed)):
        _parts(report, problem, budget, goal=name == "eighth")
    _crossover(report, fixed)
    for past in PASTS[size]:
        problem = Problem(past)
        ways = {
            "torch SDPA": problem.torch_ways()["torch SDPA"],
            "thresher, dense": problem.dense,
            "QUOKA 12.5 %": quoka(problem, past // 8),
            f"QUOKA {fixed:,}": quoka(problem, fixed),
        }
        report.point("QUOKA over past length", {"past": past}, Race(ways, ROUNDS[size]).seconds)
    problem = Problem(PAST[size])
    for budget in BUDGETS[size]:
        race = Race({"dense": problem.dense, "QUOKA": quoka(problem, budget)}, ROUNDS[size])
        report.point("QUOKA over budget", {"past": problem.past, "budget": budget}, race.seconds)


def _parts(report: Report, problem: Problem, budget: int, *, goal: bool) -> None:
    """Where QUOKA's time goes."""
    past, k = problem.past, problem.k[:, : problem.past]
    cache = cpu.LayerCache(problem.k, problem.v, problem.k_positions)
    scores = cpu.key_scores(problem.q, k, QUERIES)
    columns = with_chunk(cpu.keep_top(scores, budget), past, past + CHUNK)
    gathered = cache.gather(columns)
    race = Race(
        {
            "score": lambda: cpu.key_scores(problem.q, k, QUERIES),
            "top-k": lambda: cpu.keep_top(scores, budget),
            "gather": lambda: cache.gather(columns),
            "attend": lambda: cpu.attention(problem.q, *gathered[:2], problem.q_positions, gathered[2]),
            "in full": quoka(problem, budget),
        },
        ROUNDS[report.size],
    )
    report.point("parts of QUOKA", {"past": past, "budget": budget}, race.seconds)
    share = [100 * (s + t) for s, t in zip(race.ratio("score", "in full"), race.ratio("top-k", "in full"), strict=True)]
    report.row(
        f"selection's share of QUOKA, budget {budget:,}, past {past:,}",
        share,
        against="QUOKA in full",
        unit="%",
        reach=20 if goal else None,
        stretch=10 if goal else None,
        at_most=True,
    )


def _crossover(report: Report, budget: int) -> None:
    """The shortest past measured from which on QUOKA's median is below that of dense attention."""
    pasts, slow = NEAR[report.size], -1
    for n, past in enumerate(pasts):
        problem = Problem(past)
        race = Race({"dense": problem.dense, "QUOKA": quoka(problem, budget)}, 2 * ROUNDS[report.size] + 1)
        report.point("around the crossover", {"past": past, "budget": budget}, race.seconds)
        if race.median("QUOKA") >= race.median("dense"):
            slow = n
    measure, wanted = f"QUOKA {budget:,} wins from a past of", {"reach": 2048, "stretch": 1536, "at_most": True}
    if slow + 1 < len(pasts):
        report.row(measure, [pasts[slow + 1]], against="thresher, dense", unit="tokens", **wanted)
    else:
        report.settings["crossover"] = f"none up to a past of {pasts[-1]:,}"


if __name__ == "__main__":
    main("selection", run)
