"""From lines to figures: means with bootstrap intervals per task, length, way of asking and method.

A method is best judged by its difference from dense on the same questions: what is hard for the model is hard for both,
and only what the method changed is left. Its interval is therefore much narrower than that of either score.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from thresher.evaluation.cells import Row
from thresher.evaluation.methods import DENSE

DRAWS = 1000
LEVEL = 0.95
GROUP = ("task", "length", "question", "method")
COSTS = ("prompt_tokens", "new_tokens", "keys_evicted", "cache_bytes", "time_to_first_token", "kl", "same_from_start")


def summarise(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """One entry per group, in the order of the lines: how many, the mean score with its interval, the mean costs, and
    the mean difference from dense, where it was asked the same. Tasks of one suite, such as ruler/vt, are followed by
    an entry for all of them together."""
    dense = {_asked(row): row["score"] for row in rows if row["method"] == DENSE and "score" in row}
    suites: dict[str, list[Row]] = {}
    for row in rows:
        suites.setdefault(row["task"].partition("/")[0], []).append(row)
    entries = []
    for suite, members in suites.items():
        groups = grouped(members, GROUP)
        if len({row["task"] for row in members}) > 1:
            groups |= {(suite, *rest): part for rest, part in grouped(members, GROUP[1:]).items()}
        for group, part in groups.items():
            entries.append({**dict(zip(GROUP, group, strict=True)), **_summary(group, part, dense)})
    return entries


def _asked(row: Row) -> tuple[Any, ...]:
    """The question of a line, whichever method answered it."""
    return tuple(row[name] for name in ("task", "length", "document", "ask", "question"))


def grouped(rows: Iterable[Row], names: Sequence[str]) -> dict[tuple[Any, ...], list[Row]]:
    """The lines by the values of some fields, in the order in which they are met."""
    groups: dict[tuple[Any, ...], list[Row]] = {}
    for row in rows:
        groups.setdefault(tuple(row[name] for name in names), []).append(row)
    return groups


def _summary(group: tuple[Any, ...], rows: list[Row], dense: dict[tuple[Any, ...], float]) -> dict[str, Any]:
    found: dict[str, Any] = {"n": len(rows)}
    if "bands" in rows[0]:
        return found | {"perplexity": _perplexity([row["bands"] for row in rows])}
    scores = [row["score"] for row in rows]
    seed = zlib.crc32(repr(group).encode())
    low, high = interval([(f"{row['task']} {row['document']}", row["score"]) for row in rows], seed)
    found |= {"score": float(np.mean(scores)), "low": low, "high": high}
    pairs = [
        (f"{row['task']} {row['document']}", row["score"] - dense[_asked(row)]) for row in rows if _asked(row) in dense
    ]
    if len(pairs) == len(rows) and rows[0]["method"] != DENSE:
        low, high = interval(pairs, seed)
        found["difference"] = {"mean": float(np.mean([moved for _, moved in pairs])), "low": low, "high": high}
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
