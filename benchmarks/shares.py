"""Where the time of a prompt goes: every call of the forward pass, timed by what it is for.

One model reads the same prompt under several policies. Shares are of the time from the first token to the last; the
rest is what Python does between the kernels.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from time import perf_counter
from types import FunctionType
from typing import Any

import reference
import thresher
from benchmarks.attention import cpu
from benchmarks.common import Report, main
from benchmarks.models import fastforward
from reference import Model
from thresher.bench import prompt

LENGTH = {"full": 8192, "short": 2048, "smallest": 384}
ROUNDS = {"full": 3, "short": 3, "smallest": 1}
STAGES = {
    "attention_each": "attend",
    "attention_and_mass_each": "attend",
    "select_keys_each": "choose keys",
    "gather": "gather",
    "linear": "project",
    "linear_each": "project",
    "gated_ffn": "FFN",
    "fastforward_blocks": "FFN",
    "keydiff_scores": "evict",
    "keep_top": "evict",
    "keep": "evict",
}
SMALL = "norm, rotate, add, append"


class Timed:
    """The cpu backend with a clock around each of its functions and around its caches' gathers and evictions."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = defaultdict(float)

    def __getattr__(self, name: str) -> Any:
        if name == "run_pass":  # which makes a step of many calls
            raise AttributeError(name)
        found = getattr(cpu, name)
        if name == "new_cache":
            return self._new_cache
        return self._around(name, found) if isinstance(found, FunctionType) else found

    def _around(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def timed(*arguments: Any, **options: Any) -> Any:
            started = perf_counter()
            answer = function(*arguments, **options)
            self.seconds[STAGES.get(name, SMALL)] += perf_counter() - started
            return answer

        return timed

    def _new_cache(self, *arguments: Any) -> Any:
        cache = cpu.new_cache(*arguments)
        for layer in cache.layers:
            for name in ("append", "gather", "keep"):
                setattr(layer, name, self._around(name, getattr(layer, name)))
        return cache


def run(report: Report) -> None:
    length, rounds = LENGTH[report.size], ROUNDS[report.size]
    budget = length // 8
    report.settings = {"model": report.model, "prompt_tokens": length, "budget": budget}
    llm = thresher.load(report.model, backend="cpu")
    ids = prompt(llm, length)
    quoka, keydiff, half = thresher.Quoka(budget), thresher.KeyDiff(budget), fastforward(llm.config)
    policies = {
        "dense": thresher.Policy(),
        "QUOKA": thresher.Policy(select=quoka),
        "KeyDiff": thresher.Policy(evict=keydiff),
        "QUOKA + FastForward": thresher.Policy(select=quoka, ffn=half),
    }
    for policy in policies.values():
        llm.prefill(ids[: 2 * budget + 256], policy)  # kernels and weights in memory
    found: dict[str, list[dict[str, float]]] = {name: [] for name in policies}
    for _ in range(rounds):
        for name, policy in policies.items():
            found[name].append(_stages(llm, policy, ids))
    stages = dict.fromkeys([*STAGES.values(), SMALL, "rest", "total"])
    for name, runs in found.items():
        seconds = {stage: [each[stage] for each in runs] for stage in stages if any(each[stage] for each in runs)}
        report.point(f"time of a prompt by stage, {name}", {"policy": name}, seconds)
        for stage in seconds:
            if stage != "total":
                share = [100 * part / whole for part, whole in zip(seconds[stage], seconds["total"], strict=True)]
                report.row(f"share of {stage}, {name}", share, against="time to first token", unit="%")


def _stages(llm: thresher.LanguageModel, policy: thresher.Policy, ids: list[int]) -> dict[str, float]:
    """Seconds by stage of one prompt."""
    timed = Timed()
    model = Model(llm.config, llm.model.weights, timed)  # type: ignore[arg-type]
    started = perf_counter()
    reference.prefill(model, reference.new_state(model, policy), ids)
    total = perf_counter() - started
    timed.seconds["rest"] = total - sum(timed.seconds.values())
    return defaultdict(float, {**timed.seconds, "total": total})


if __name__ == "__main__":
    main("shares", run)
