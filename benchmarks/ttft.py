"""Time to the first token of a long prompt, end to end, against transformers over the same weights.

FastForward's weights are untrained: they cost what trained ones cost, but choose at random.
"""

from __future__ import annotations

from functools import partial

import torch

import thresher
from benchmarks.common import Race, Report, main
from benchmarks.models import Ours, Transformers, fastforward
from thresher.bench import prompt

LENGTH = {"full": 8192, "short": 2048, "smallest": 192}
ROUNDS = {"full": 5, "short": 3, "smallest": 2}


def run(report: Report) -> None:
    length, rounds = LENGTH[report.size], ROUNDS[report.size]
    budget = length // 8
    report.settings = {"model": report.model, "prompt_tokens": length, "budget": budget, "chunk": 128}
    wide, narrow = (thresher.load(report.model, backend="cpu", dtype=dtype) for dtype in ("float32", "bfloat16"))
    ids = prompt(wide, length)
    quoka, keydiff, half = thresher.Quoka(budget), thresher.KeyDiff(budget), fastforward(wide.config)
    both = thresher.Policy(select=quoka, ffn=half)
    ours = {
        "dense": Ours(wide),
        "QUOKA": Ours(wide, thresher.Policy(select=quoka)),
        "KeyDiff": Ours(wide, thresher.Policy(evict=keydiff)),
        "QUOKA + KeyDiff": Ours(wide, thresher.Policy(select=quoka, evict=keydiff)),
        "FastForward": Ours(wide, thresher.Policy(ffn=half)),
        "QUOKA + FastForward": Ours(wide, both),
        "bfloat16 dense": Ours(narrow),
        "bfloat16 QUOKA + FastForward": Ours(narrow, both),
    }
    theirs = {
        "transformers float32": Transformers(report.model, torch.float32),
        "transformers bfloat16": Transformers(report.model, torch.bfloat16),
    }
    contestants = {**theirs, **ours}
    race = Race({name: partial(each.read, ids) for name, each in contestants.items()}, rounds, settle=0)
    report.point("time to first token", {"prompt": length}, race.seconds)
    _targets(report, race, length)


def _targets(report: Report, race: Race, length: int) -> None:
    goals = {"dense": (1.4, 1.7), "QUOKA": (2.5, 3.0), "QUOKA + FastForward": (3.2, 4.0)}
    for name in ("dense", "QUOKA", "KeyDiff", "QUOKA + KeyDiff", "FastForward", "QUOKA + FastForward"):
        reach, stretch = goals.get(name, (None, None))
        measure, against = f"first token of {length:,}, {name}", "transformers float32, dense"
        report.row(measure, race.ratio("transformers float32", name), against=against, reach=reach, stretch=stretch)
    narrow = race.ratio("transformers bfloat16", "bfloat16 dense")
    report.row(f"first token of {length:,}, bfloat16, dense", narrow, against="transformers bfloat16, dense")
    best = min(("QUOKA + FastForward", "bfloat16 QUOKA + FastForward"), key=race.median)
    dtype = "bfloat16" if best.startswith("bfloat16") else "float32"
    report.row(
        f"first token of {length:,}, QUOKA + FastForward, our best dtype ({dtype})",
        race.ratio("transformers bfloat16", best),
        against="transformers bfloat16, dense",
        reach=2,
        stretch=3,
    )


if __name__ == "__main__":
    main("ttft", run)
