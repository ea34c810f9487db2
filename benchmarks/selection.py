"""QUOKA in full against dense attention: what it saves, what choosing costs, and from which length on it wins.

Shapes as in `attention`. Chunks of a prompt share a pass, four of them here: they choose in one reading of the keys,
and then each reads what it chose, as the forward pass has it (reference/attend.py). The parts of one chunk alone are
timed one by one: scoring the keys, taking the best, gathering them and the chunk's own, attending to them.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from benchmarks.attention import (
    CHUNK,
    DIM,
    FOLDED,
    HEADS,
    KV_HEADS,
    PAST,
    PASTS,
    POINTS,
    ROUNDS,
    Problem,
    cpu,
)
from benchmarks.common import Race, Report, main
from reference import Quoka
from reference.quoka import with_chunk

QUERIES = 16
CHUNKS = 4  # of a pass
BUDGET = {"full": 1024, "short": 1024, "smallest": 64}
BUDGETS = {"full": [256 << n for n in range(8)], "short": [512, 2048, 8192], "smallest": [32, 128]}
NEAR = {
    "full": [1088, 1152, 1280, 1408, 1536, 2048, 3072, 4096],
    "short": [1152, 1280, 1536, 2048],
    "smallest": [96, 128],
}


def quoka(problem: Problem, budget: int) -> Callable[[], np.ndarray]:
    """QUOKA in full on one chunk."""
    return lambda: cpu.quoka_attention(*problem.arguments, problem.past, budget=budget, n_queries=QUERIES)


class Pass:
    """Chunks that share a pass, after `past` tokens; their keys are in the cache already."""

    def __init__(self, past: int, *, dtype: str = "float32") -> None:
        self.problem = Problem(past, tokens=CHUNKS * CHUNK, dtype=dtype)
        self.pasts = [past + CHUNK * n for n in range(CHUNKS)]
        self._queries = [self.problem.q[:, CHUNK * n : CHUNK * (n + 1)] for n in range(CHUNKS)]
        self._cache = cpu.LayerCache(self.problem.k, self.problem.v, self.problem.k_positions)

    def choose(self, budget: int) -> list[np.ndarray]:
        """The columns that each chunk reads, its own last."""
        return Quoka(budget, QUERIES).columns(cpu, self._queries, self._cache, self.pasts)

    def attend(self, chosen: list[np.ndarray]) -> list[np.ndarray]:
        """Each chunk's attention to its columns, (T, H·D)."""
        reads = []
        for q, first, columns in zip(self._queries, self.pasts, chosen, strict=True):
            k, v, positions = self._cache.gather(columns)
            reads.append((q, k, v, first, positions))
        return cpu.attention_each(reads)

    def quoka(self, budget: int) -> list[np.ndarray]:
        """QUOKA in full."""
        return self.attend(self.choose(budget))


def run(report: Report) -> None:
    size = report.size
    report.settings = {"heads": HEADS, "kv_heads": KV_HEADS, "head_dim": DIM, "chunk": CHUNK, "n_queries": QUERIES}
    report.settings["chunks"] = CHUNKS
    _targets(report, PAST[size], {PAST[size] // 8: (25, 32, 15, 8), BUDGET[size]: (60, 80, None, None)})
    _crossover(report, BUDGET[size])
    for past in PASTS[size]:
        problem = Problem(past)
        ways = {
            FOLDED: problem.torch_ways()[FOLDED],
            "thresher, dense": problem.dense,
            "QUOKA 12.5 %": quoka(problem, past // 8),
            f"QUOKA {BUDGET[size]:,}": quoka(problem, BUDGET[size]),
        }
        report.point("QUOKA over past length", {"past": past}, Race(ways, POINTS[size]).seconds)
    problem = Problem(PAST[size])
    for budget in BUDGETS[size]:
        race = Race({"dense": problem.dense, "QUOKA": quoka(problem, budget)}, POINTS[size])
        report.point("QUOKA over budget", {"past": problem.past, "budget": budget}, race.seconds)


def _targets(report: Report, past: int, goals: dict[int, tuple[float | None, ...]]) -> None:
    """Budgets in a pass, and one by one. Goals are those of the whole, then of the selection's share."""
    problem, shared, rounds = Problem(past), Pass(past), ROUNDS[report.size]
    for budget, (reach, stretch, share, least) in goals.items():
        chosen = shared.choose(budget)
        race = Race(
            {
                FOLDED: problem.torch_ways()[FOLDED],
                "thresher, dense": problem.dense,
                "one": quoka(problem, budget),
                "choose": lambda budget=budget: shared.choose(budget),
                "attend": lambda chosen=chosen: shared.attend(chosen),
                "in full": lambda budget=budget: shared.quoka(budget),
            },
            rounds,
        )
        at, together = f"budget {budget:,}, past {past:,}", f"{CHUNKS} chunks to a pass, per chunk"
        measure = f"QUOKA in full, {together}, {at}"
        for way, goal in ((FOLDED, (reach, stretch)), ("thresher, dense", (None, None))):
            per_chunk = [CHUNKS * x for x in race.ratio(way, "in full")]
            report.row(measure, per_chunk, against=way, reach=goal[0], stretch=goal[1])
        for way in (FOLDED, "thresher, dense"):
            report.row(f"QUOKA in full, one chunk alone, {at}", race.ratio(way, "one"), against=way)
        measure, of_all = (
            f"selection's share of QUOKA, {CHUNKS} chunks to a pass, {at}",
            race.ratio("choose", "in full"),
        )
        goal = {"unit": "%", "reach": share, "stretch": least, "at_most": True}
        report.row(measure, [100 * x for x in of_all], against="QUOKA in full", **goal)
        parts = {name: race.seconds[name] for name in ("choose", "attend", "in full")}
        report.point(f"parts of QUOKA, {CHUNKS} chunks to a pass", {"past": past, "budget": budget}, parts)
        _parts(report, problem, budget)


def _parts(report: Report, problem: Problem, budget: int) -> None:
    """Where the time of one chunk alone goes."""
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
        POINTS[report.size],
    )
    report.point("parts of QUOKA", {"past": past, "budget": budget}, race.seconds)


def _crossover(report: Report, budget: int) -> None:
    """The shortest past measured from which on QUOKA's median is below that of dense attention."""
    pasts, slow = NEAR[report.size], -1
    for n, past in enumerate(pasts):
        problem = Problem(past)
        race = Race({"dense": problem.dense, "QUOKA": quoka(problem, budget)}, 2 * POINTS[report.size] + 1)
        report.point("around the crossover", {"past": past, "budget": budget}, race.seconds)
        if race.median("QUOKA") >= race.median("dense"):
            slow = n
    measure, wanted = f"QUOKA {budget:,} wins from a past of", {"reach": 1280, "at_most": True}
    if slow + 1 < len(pasts):
        report.row(measure, [pasts[slow + 1]], against="thresher, dense", unit="tokens", **wanted)
    else:
        report.settings["crossover"] = f"none up to a past of {pasts[-1]:,}"


if __name__ == "__main__":
    main("selection", run)
