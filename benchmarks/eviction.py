"""What each eviction method costs per chunk, against reading the cache once and against that chunk's attention.

Shapes as in `attention`. A sum over the array is the least that reading it can cost: torch's runs on all cores.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from accel.cpu.attention.layout import lay_out
from accel.cpu.attention.reads import WORDS
from accel.cpu.attention.received import add_mass, find_peaks, mass_floats
from accel.cpu.runtime.calls import at_once
from accel.cpu.runtime.memory import scratch
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


class Received:
    """What each key receives of a problem's attention, from the peaks and sums that this attention has found."""

    def __init__(self, problem: Problem) -> None:
        self._problem = problem
        one = self._laid()
        self._stats = np.empty((one.parts, one.heads, one.tokens, 2), np.float32)
        self._rates, self._table = np.empty(self._stats.shape[1:], np.float32), np.empty((1, WORDS), np.int64)
        memory = scratch.take(mass_floats(one))
        find_peaks(at_once, one, self._stats, self._table, memory)
        scratch.give(memory)

    def mass(self) -> np.ndarray:
        """(H, S), as `attention_mass`."""
        one = self._laid()
        mass, memory = np.empty((one.heads, one.keys), np.float32), scratch.take(mass_floats(one))
        add_mass(at_once, one, self._stats, self._rates, self._table, mass, memory)
        scratch.give(memory)
        return mass

    def _laid(self) -> Any:
        q, k, _, asked, held = self._problem.arguments
        return lay_out([(q, k, asked, held)], None, None, None)[0]


def _mass(report: Report, problem: Problem) -> None:
    """H2O's. For a chunk the forward pass asks for the mass after its attention; for a decoded token it passes on what
    the attention has found (accel/cpu/recorded/sequence.py). What that would be for a chunk has no goal."""
    seen = problem.q, problem.k, problem.q_positions, problem.k_positions
    ways = {"attention": problem.dense, "passed on": Received(problem).mass}
    decoding = problem.tokens == 1
    if not decoding:
        ways["asked for"] = lambda: cpu.attention_mass(*seen)
    race = Race(ways, ROUNDS[report.size])
    of = "a token" if decoding else f"a chunk of {problem.tokens}"
    measure, against = f"attention_mass of {of}, past {problem.past:,}", "that attention"
    if not decoding:
        report.row(measure, race.ratio("asked for", "attention"), against=against, reach=0.5, at_most=True)
    reach = 0.5 if decoding else None
    values = race.ratio("passed on", "attention")
    report.row(f"{measure}, peaks and sums passed on", values, against=against, reach=reach, at_most=True)


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
