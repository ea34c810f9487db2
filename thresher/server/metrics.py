"""What Prometheus reads at /metrics."""

from __future__ import annotations

from collections.abc import Callable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_LATEST

SECONDS = (0.01, 0.03, 0.1, 0.3, 1, 3, 10, 30, 100, 300)  # a hundred times from a short prompt's to a long one's


class Metrics:
    """Counts of one application; all names start with `thresher_`."""

    content_type = CONTENT_TYPE_LATEST

    def __init__(self) -> None:
        self._registry = CollectorRegistry()
        self.requests = Counter(
            "thresher_requests", "Requests by path and HTTP status.", ["path", "status"], registry=self._registry
        )
        self.answers = Counter("thresher_answers", "Answers by how they ended.", ["end"], registry=self._registry)
        self.prompt_tokens = Counter(
            "thresher_prompt_tokens",
            "Prompt tokens: read, or reused from an earlier prompt.",
            ["how"],
            registry=self._registry,
        )
        self.new_tokens = Counter("thresher_new_tokens", "Tokens drawn.", registry=self._registry)
        self.first_token = Histogram(
            "thresher_first_token_seconds",
            "Seconds from a request to its answer's first token.",
            buckets=SECONDS,
            registry=self._registry,
        )

    def watch(self, name: str, meaning: str, value: Callable[[], float]) -> None:
        """Report a value that is asked for when it is read."""
        Gauge(f"thresher_{name}", meaning, registry=self._registry).set_function(value)

    def page(self) -> bytes:
        """All of it in Prometheus' text format."""
        return generate_latest(self._registry)
