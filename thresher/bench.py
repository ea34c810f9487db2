"""What a prompt costs on this machine, dense and under a policy: `thresher bench`.

The two take turns, A B A B …, after one token that loads every kernel and touches every weight; that token's memory is
what the peak is counted over. Decoding takes the likeliest token and does not stop at a stop token, so that both decode
equally long.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import cycle, islice
from statistics import median
from time import perf_counter
from typing import Any

import reference
from reference import CHUNK, Policy
from reference.checks import require, whole
from thresher.demo import document
from thresher.memory import forget_peak, peak, resident
from thresher.model import LanguageModel


@dataclass
class Cost:
    """What one policy took, run by run."""

    name: str
    time_to_first_token: list[float] = field(default_factory=list)  # seconds
    tokens_per_second: list[float] = field(default_factory=list)  # of decoding
    peak_bytes: list[int] = field(default_factory=list)  # over the loaded model; empty where the system does not tell
    cache_bytes: int = 0  # at the end

    def as_dict(self) -> dict[str, Any]:
        """Every run, and medians, for JSON."""
        runs = {"time_to_first_token": self.time_to_first_token, "tokens_per_second": self.tokens_per_second}
        return {
            "name": self.name,
            **{key: {"median": median(values), "runs": values} for key, values in runs.items()},
            "peak_bytes": max(self.peak_bytes, default=None),
            "cache_bytes": self.cache_bytes,
        }


def bench(
    llm: LanguageModel,
    policies: dict[str, Policy | None],
    *,
    prompt_tokens: int,
    new_tokens: int = 32,
    runs: int = 3,
    chunk: int = CHUNK,
    progress: Callable[[int], None] | None = None,
) -> list[Cost]:
    """Read a prompt of `prompt_tokens` and decode `new_tokens` under every policy, `runs` times in turns.

    `progress` is called with the tokens done. Raises ValueError for a count below 1 (2 for new_tokens, of which the
    first belongs to the prompt) and for a prompt that leaves the model no positions to decode at.
    """
    end = whole("prompt_tokens", prompt_tokens) + whole("new_tokens", new_tokens, least=2)
    whole("runs", runs)
    require(
        end <= llm.config.max_positions,
        f"prompt_tokens: got {prompt_tokens} and {new_tokens} new ones, wanted at most the model's "
        f"{llm.config.max_positions} positions",
    )
    ids = prompt(llm, prompt_tokens)
    costs = [Cost(name) for name in policies]
    for policy in policies.values():
        llm.new_state(policy)  # compiles what is not there yet
    llm.prefill(ids[:1])
    forget_peak()
    loaded = resident()
    for _ in range(runs):
        for cost, policy in zip(costs, policies.values(), strict=True):
            _measure(llm, ids, policy, new_tokens, chunk, cost, loaded, progress)
    return costs


def prompt(llm: LanguageModel, count: int) -> list[int]:
    """So many ids of a long public-domain text, which starts again where it ends."""
    return list(islice(cycle(llm.encode(document())), count))


def _measure(
    llm: LanguageModel,
    ids: list[int],
    policy: Policy | None,
    new_tokens: int,
    chunk: int,
    cost: Cost,
    loaded: int | None,
    progress: Callable[[int], None] | None,
) -> None:
    """One run; `loaded` is what the process held before the first."""
    counted = forget_peak()
    started = perf_counter()
    state = llm.prefill(ids, policy, chunk=chunk, progress=progress)
    token = _likeliest(state)
    first = perf_counter()
    for _ in range(new_tokens - 1):
        reference.decode(llm.model, [state], [token])
        token = _likeliest(state)
    last = perf_counter()
    cost.time_to_first_token.append(first - started)
    cost.tokens_per_second.append((new_tokens - 1) / (last - first))
    cost.cache_bytes = state.cache.nbytes
    if counted and loaded is not None and (most := peak()) is not None:
        cost.peak_bytes.append(most - loaded)


def _likeliest(state: reference.State) -> int:
    assert state.logits is not None  # there has been a prompt
    return int(state.logits.argmax())
