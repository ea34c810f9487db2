"""Tokens per second after a long prompt, against transformers and llama.cpp (where it is installed).

All read the same prompt once; then they take turns, a few tokens each, so that all contexts grow alike.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

import thresher
from benchmarks.common import Race, Report, main
from benchmarks.models import LlamaCpp, Ours, Transformers, has_llama_cpp
from thresher.bench import prompt

CONTEXT = {"full": 8192, "short": 2048, "smallest": 128}
ROUNDS = {"full": 7, "short": 5, "smallest": 2}
TURN = 8  # tokens per turn


def run(report: Report) -> None:
    context, rounds = CONTEXT[report.size], ROUNDS[report.size]
    length, budget = context - TURN * (rounds + 1), context // 8
    report.settings = {"model": report.model, "prompt_tokens": length, "budget": budget, "tokens_per_turn": TURN}
    wide, narrow = (thresher.load(report.model, backend="cpu", dtype=dtype) for dtype in ("float32", "bfloat16"))
    policy = thresher.Policy(evict=thresher.KeyDiff(budget))
    contestants: dict[str, Any] = {
        "transformers": Transformers(report.model, torch.float32),
        "dense": Ours(wide),
        "KeyDiff": Ours(wide, policy),
        "bfloat16 KeyDiff": Ours(narrow, policy),
    }
    if has_llama_cpp(report.model):
        contestants["llama.cpp"] = LlamaCpp(report.model, context)
    ids = prompt(wide, length)
    for each in contestants.values():
        each.read(ids)
    race = Race({name: _turn(each) for name, each in contestants.items()}, rounds, settle=0)
    report.point(f"{TURN} tokens after a prompt", {"prompt": length}, race.seconds)
    for name in contestants:
        report.row(f"decoding, {name}", [TURN / seconds for seconds in race.seconds[name]], unit="tokens/s")
    _targets(report, race, f"context {context:,}")


def _turn(contestant: Any) -> Callable[[], None]:
    return lambda: contestant.go_on(TURN)


def _targets(report: Report, race: Race, at: str) -> None:
    dense = race.ratio("transformers", "dense")
    report.row(f"decoding, dense, {at}", dense, against="transformers float32", reach=4, stretch=6)
    if "llama.cpp" not in race.seconds:
        report.settings["llama.cpp"] = "not installed"
        return
    for name in ("KeyDiff", "bfloat16 KeyDiff"):
        against = "llama.cpp, same GGUF, dense"
        report.row(f"decoding, {name}, {at}", race.ratio("llama.cpp", name), against=against, reach=1, stretch=2)


if __name__ == "__main__":
    main("decode", run)
