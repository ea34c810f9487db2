"""How everything here is measured, and how a result is told.

Contestants take turns in one process, A B C A B C …, after a round that does not count, so that whatever else the
machine does meets all of them. A ratio is taken within each round; told are its median, its lowest and its highest.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
from collections.abc import Callable, Iterable
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from statistics import median
from time import perf_counter, sleep
from typing import Any

from rich.console import Console
from rich.table import Table

RESULTS = Path(__file__).parent / "results"
SIZES = ("full", "short", "smallest")  # smallest: for the tests, says nothing about speed
MODEL = "smollm2-135m-instruct"
PAUSE = 0.05  # seconds between turns: idle threads of BLAS and OpenMP spin for up to 30 ms and would slow the next one
SETTLE = 0.05  # seconds that a turn may need until it runs as in the middle of a prompt: an idle core wakes slowly
PACKAGES = ("numpy", "numba", "torch", "transformers", "llama-cpp-python")


class Race:
    """Seconds of every contestant, round by round.

    A turn repeats itself for `settle` seconds, at least once, before the call that counts: in a prompt the same kernels
    follow one another, so that cores and helper threads are awake and nothing that another contestant left spinning or
    cached is in the way. Contestants that are whole programs settle by themselves: 0 for them.
    """

    def __init__(self, contestants: dict[str, Callable[[], Any]], rounds: int, *, settle: float = SETTLE) -> None:
        self.seconds: dict[str, list[float]] = {name: [] for name in contestants}
        for run in contestants.values():  # compiling, paging in, clock speeds
            run()
        for _ in range(rounds):
            for name, run in contestants.items():
                self.seconds[name].append(turn(run, settle))
                sleep(PAUSE)

    def median(self, name: str) -> float:
        """Median seconds of one contestant."""
        return median(self.seconds[name])

    def ratio(self, name: str, to: str) -> list[float]:
        """Seconds of `name` over those of `to`, in each round: above 1 where `to` is faster."""
        return [a / b for a, b in zip(self.seconds[name], self.seconds[to], strict=True)]


def turn(run: Callable[[], Any], settle: float = SETTLE) -> float:
    """Seconds of one call, after so many of others."""
    begun = perf_counter()
    while perf_counter() < begun + settle:
        run()
    started = perf_counter()
    run()
    return perf_counter() - started


def torch() -> Any:
    """The library, with as many threads as our kernels have."""
    import torch

    from accel.cpu import THREADS

    torch.set_num_threads(THREADS)
    return torch


def counts(threads: int) -> list[int]:
    """Numbers of threads: 1, 2, 4, … and all."""
    return sorted({*(2**n for n in range(threads.bit_length()) if 2**n <= threads), threads})


def spread(values: list[float]) -> dict[str, float]:
    """Median, lowest and highest, to five digits."""
    return {name: float(f"{f(values):.5g}") for name, f in (("median", median), ("low", min), ("high", max))}


class Report:
    """What one script found: rows that stand beside a target, and curves of times over a size."""

    def __init__(self, name: str, size: str, model: str = MODEL) -> None:
        self.name, self.size, self.model = name, size, model
        self.settings: dict[str, Any] = {}
        self.rows: list[dict[str, Any]] = []
        self.curves: dict[str, list[dict[str, Any]]] = {}
        self.machine = machine()  # before anything runs: the load average is that of the others

    def row(
        self,
        measure: str,
        values: list[float],
        *,
        against: str = "",
        unit: str = "×",
        reach: float | None = None,
        stretch: float | None = None,
        at_most: bool = False,
    ) -> None:
        """A figure, one value per round. `reach` and `stretch` are what it should be at least, or with `at_most`."""
        found = spread(values)
        sign = -1 if at_most else 1
        passed = [label for label, goal in (("stretch", stretch), ("reach", reach)) if goal is not None]
        met = [
            label
            for label, goal in (("stretch", stretch), ("reach", reach))
            if goal is not None and sign * found["median"] >= sign * goal
        ]
        self.rows.append(
            {
                "measure": measure,
                "against": against,
                "unit": unit,
                **found,
                "rounds": len(values),
                "reach": reach,
                "stretch": stretch,
                "at_most": at_most,
                "met": met[0] if met else "short" if passed else None,
            }
        )

    def point(self, curve: str, at: dict[str, int | str], seconds: dict[str, list[float]]) -> None:
        """A point of a curve: what it stands at, and what every contestant took there, round by round."""
        rounds = len(next(iter(seconds.values())))
        told = {name: spread(values) for name, values in seconds.items()}
        self.curves.setdefault(curve, []).append({**at, "rounds": rounds, "seconds": told})

    def as_dict(self) -> dict[str, Any]:
        """All of it, for JSON."""
        return {"benchmark": self.name, **{k: v for k, v in vars(self).items() if k not in ("name", "model")}}

    def show(self) -> None:
        """Tables for people, then one line for programs."""
        console = Console(width=160)
        self._show_rows(console)
        for curve, points in self.curves.items():
            sizes = [key for key in points[0] if key not in ("seconds", "rounds")]
            table = Table(*sizes, *points[0]["seconds"], title=f"{curve}: median milliseconds (lowest to highest)")
            for point in points:
                times = (
                    f"{1e3 * s['median']:.3g} ({1e3 * s['low']:.3g} to {1e3 * s['high']:.3g})"
                    for s in point["seconds"].values()
                )
                table.add_row(*(_word(point[key]) for key in sizes), *times)
            console.print(table)
        print(json.dumps(self.as_dict(), ensure_ascii=False))

    def _show_rows(self, console: Console) -> None:
        table = Table("measure", "against", "median", "lowest to highest", "reach", "stretch", "met", title=self.name)
        for row in self.rows:
            sign = "≤" if row["at_most"] else "≥"
            goals = (f"{sign} {goal:g} {row['unit']}" if (goal := row[key]) else "" for key in ("reach", "stretch"))
            found = f"{row['median']:.3g} {row['unit']}", f"{row['low']:.3g} to {row['high']:.3g}"
            table.add_row(row["measure"], row["against"], *found, *goals, row["met"] or "")
        console.print(table)


def _word(size: int | float | str) -> str:
    return size if isinstance(size, str) else f"{size:,}"


def balanced(rounds: Iterable[int]) -> int:
    """How many rounds a smaller, balanced run of an interrupted one has, from the rounds that each of its members came
    to: as many as keep the most, members with fewer left out; of equals the fewest."""
    done = list(rounds)
    return max(range(1, max(done, default=0) + 1), key=lambda r: r * sum(n >= r for n in done), default=0)


def machine() -> dict[str, Any]:
    """What the figures depend on."""
    from accel.cpu import THREADS

    return {
        "date": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "cpu": _cpu_name(),
        "cores": os.cpu_count(),
        "threads": THREADS,
        "load_before": round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None,
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        **{name: found for name in PACKAGES if (found := installed(name))},
    }


def installed(package: str) -> str | None:
    """The version of a package, or None where it is not installed."""
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _cpu_name() -> str:
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:
        return platform.processor() or platform.machine()
    facts = dict(line.split(":", 1) for line in text.split("\n\n")[0].split("\n") if ":" in line)
    facts = {key.strip(): value.strip() for key, value in facts.items()}
    return facts.get("model name", platform.machine()) + f" (model {facts.get('model', '?')})"


def parser(name: str) -> argparse.ArgumentParser:
    """The command line of one script, to which it may add."""
    found = argparse.ArgumentParser(prog=f"python -m benchmarks.{name}")
    found.add_argument("--size", choices=SIZES, default="full", help="how much is measured (default: %(default)s)")
    found.add_argument("--model", default=MODEL, help="for ttft, decode and peers (default: %(default)s)")
    return found


def main(name: str, run: Callable[..., None], known: argparse.ArgumentParser | None = None) -> None:
    """Run one script as its command line says; what a script added to its parser goes to `run` by name."""
    chosen = vars((known or parser(name)).parse_args())
    report = Report(name, chosen.pop("size"), chosen.pop("model"))
    run(report, **chosen)
    report.show()
