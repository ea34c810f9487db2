"""From lines to figures: means with bootstrap intervals per task, length, way of asking and method."""

from __future__ import annotations

import math
import zlib
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from thresher.evaluation.cells import Row

DRAWS = 1000
LEVEL = 0.95
GROUP = ("task", "length", "question", "method")
COSTS = ("prompt_tokens", "new_tokens", "keys_evicted", "cache_bytes", "time_to_first_token", "kl", "same_from_start")


def summarise(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """One entry per group, in the order of the lines: how many, the mean score with its interval, the mean costs."""
    return [
        {**dict(zip(GROUP, group, strict=True)), **_summary(group, members)}
        for group, members in grouped(rows, GROUP).items()
    ]


def grouped(rows: Iterable[Row], names: Sequence[str]) -> dict[tuple[Any, ...], list[Row]]:
    """The lines by the values of some fields, in the order in which they are met."""
    groups: dict[tuple[Any, ...], list[Row]] = {}
    for row in rows:
        groups.setdefault(tuple(row[name] for name in names), []).append(row)
    return groups


def _summary(group: tuple[Any, ...], rows: list[Row]) -> dict[str, Any]:
    found: dict[str, Any] = {"n": len(rows)}
    if "bands" in rows[0]:
        return found | {"perplexity": _perplexity([row["bands"] for row in rows])}
    scores = [row["score"] for row in rows]
    low, high = interval([(row["document"], row["score"]) for row in rows], seed=zlib.crc32(repr(group).encode()))
    found |= {"score": float(np.mean(scores)), "low": low, "high": high}
    found |= {name: float(np.mean([row[name] for row in rows])) for name in COSTS if name in rows[0]}
    found["share_of_keys_read"] = sum(row["keys_read"] for row in rows) / sum(row["keys_visible"] for row in rows)
    depths = grouped([{"depth": row["facts"].get("depth"), **row} for row in rows], ["depth"])
    if None not in {depth for (depth,) in depths}:
        found["by_depth"] = {
            str(d): float(np.mean([r["score"] for r in part])) for (d,), part in sorted(depths.items())
        }
    return found


def _perplexity(runs: list[list[dict[str, Any]]]) -> dict[str, float]:
    """exp of the mean of −ln p per band of positions, and over "all"."""
    sums: dict[str, list[float]] = {}
    for bands in runs:
        for band in bands:
            for label in (f"{band['first']}-{band['end']}", "all"):
                total = sums.setdefault(label, [0.0, 0])
                total[0] += band["nll"]
                total[1] += band["tokens"]
    return {label: math.exp(nll / tokens) for label, (nll, tokens) in sums.items() if tokens}


def interval(scores: Sequence[tuple[str, float]], seed: int = 0) -> tuple[float, float]:
    """The middle 95 % of the means of DRAWS samples, drawn with replacement: whole documents, because questions about
    one document go right or wrong together."""
    documents: dict[str, list[float]] = {}
    for document, score in scores:
        documents.setdefault(document, []).append(score)
    sums = np.array([sum(part) for part in documents.values()])
    counts = np.array([len(part) for part in documents.values()])
    drawn = np.random.default_rng(seed).integers(len(sums), size=(DRAWS, len(sums)))
    means = sums[drawn].sum(axis=1) / counts[drawn].sum(axis=1)
    low, high = np.quantile(means, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return float(low), float(high)
