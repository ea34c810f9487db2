"""What the commands that answer share: a model made ready, a prompt that fits it, and what an answer took."""

from __future__ import annotations

import logging
import sys
from time import perf_counter
from typing import TYPE_CHECKING

from thresher.cli import show

if TYPE_CHECKING:
    from reference import Policy
    from thresher.generate import Stats
    from thresher.model import LanguageModel

log = logging.getLogger(__name__)

WAYS = "--truncate middle, a shorter text, or a model that reads more"


def load(
    model: str,
    policy: Policy | None,
    backend: str,
    dtype: str = "float32",
    adapter: str | None = None,
    expert_memory: str | None = None,
) -> LanguageModel:
    """The model, with all that it needs under the policy compiled before another bar is shown."""
    from thresher.kernels import compile_kernels
    from thresher.model import load

    started = perf_counter()
    llm = load(model, backend=backend, dtype=dtype, adapter=adapter, expert_memory=expert_memory)
    if llm.device != "cpu":
        print(f"On {llm.device}", file=sys.stderr)
    compile_kernels(llm.model.backend, policy)
    log.info("%r is ready after %.2f s", llm, perf_counter() - started)
    return llm


def messages(question: str, system: str | None) -> list[dict[str, str]]:
    """A conversation; an empty system message is one too, and keeps the template from adding its own."""
    head = [] if system is None else [{"role": "system", "content": system}]
    return [*head, {"role": "user", "content": question}]


def refuse(what: str, tokens: int, positions: int, ways: str = WAYS) -> None:
    """ValueError where a prompt is longer than the model, with the ways out."""
    if tokens > positions:
        raise ValueError(f"{what} has {tokens:,} tokens and this model reads {positions:,}. Ways out: {ways}")


def summary(stats: Stats, max_new_tokens: int, dense_bytes: int = 0) -> str:
    """What an answer took and why it ended, in a line. dense_bytes: what the cache would take without eviction."""
    cache = f"cache {show.size(stats.cache_bytes)}"
    if sum(stats.keys_evicted):
        cache += f", dense {show.size(dense_bytes)}"
    reasoning = f" ({stats.reasoning_tokens} of reasoning)" if stats.reasoning_tokens else ""
    parts = [
        f"{stats.prompt_tokens:,} prompt tokens",
        f"first token after {stats.time_to_first_token:.2f} s",
        f"{stats.new_tokens} tokens{reasoning} at {stats.tokens_per_second:.1f}/s",
        cache,
    ]
    if sum(stats.keys_read) < sum(stats.keys_visible):
        parts.append(f"{sum(stats.keys_read) / sum(stats.keys_visible):.0%} of keys read")
    if sum(stats.keys_evicted):
        parts.append(f"{max(stats.keys_evicted):,} tokens evicted")
    if sum(stats.neurons_run) < sum(stats.neurons_total):
        parts.append(f"{sum(stats.neurons_run) / sum(stats.neurons_total):.0%} of neurons run")
    if stats.finish_reason == "length":
        parts.append(f"cut after --max-new-tokens {max_new_tokens}")
    if stats.finish_reason == "positions":
        parts.append("cut: the model has no more positions")
    return " · ".join(parts)


def dense_bytes(llm: LanguageModel, tokens: int) -> int:
    """What the cache of so many tokens takes without a policy."""
    return llm.config.cache_bytes_per_token(llm.model.weights.embedding.dtype.itemsize) * tokens
