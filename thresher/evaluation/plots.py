"""The pictures of a run, as PNG and SVG beside its figures (extra: plot).

    needles-…      the grid of the needle, depth × length, a panel per method
    budget-…       the score against the share of the prompt's tokens that a budget comes to, with intervals
    first-token-…  the score against the time to the first token
    cache-…        bytes of the cache against the length
    perplexity     by bands of positions

The first four once per way of asking, "known" and "after".
"""

from __future__ import annotations

import math
import os
import re
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from reference.checks import require
from reference.policy import Policy
from thresher.evaluation.cells import Row
from thresher.evaluation.folder import load
from thresher.evaluation.methods import DENSE
from thresher.evaluation.metrics import grouped, interval, summarise

BUDGET = re.compile(r"budget=[^,+ ]+,?")
STYLE: Any = {
    "font.size": 9,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.alpha": 0.3,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "svg.hashsalt": "thresher",
}
WIDE = 4  # panels beside each other
PAGE, ENTRY, LINE = 7.2, 2.1, 0.17  # inches: a lone panel's width, an entry of the legend's, and its height
MARKS = "osD^vP*Xp<>h"


def plot(folder: str | os.PathLike[str]) -> list[Path]:
    """Draw every picture that a run has the figures for; returns the files.

    FileNotFoundError for a folder that is no run, and where matplotlib is not installed.
    """
    meta, rows = load(folder)
    try:
        import matplotlib as mpl
    except ModuleNotFoundError:
        raise FileNotFoundError("plot: matplotlib is not installed: pip install 'thresher[plot]'") from None
    mpl.use("Agg")
    import matplotlib.pyplot as plt

    files = []
    with plt.rc_context(STYLE):
        for name, figure in _figures(rows):
            figure.suptitle(Path(meta["request"]["model"]["name"]).name, fontsize=8, x=0.01, ha="left")
            for kind in ("png", "svg"):
                path = Path(folder) / f"{name}.{kind}"
                figure.savefig(path, dpi=150, metadata={"Date": None} if kind == "svg" else None)
                files.append(path)
            plt.close(figure)
    require(bool(files), f"{folder}: got no task that has a picture, wanted one")
    return files


def _figures(rows: list[Row]) -> Iterator[tuple[str, Any]]:
    for (question,), asked in grouped([row for row in rows if "score" in row], ["question"]).items():
        answered = [row for row in asked if "time_to_first_token" in row]
        if grid := [row for row in answered if row["task"] == "niah"]:
            yield f"needles-{question}", _needles(grid)
        yield f"budget-{question}", _panels(asked, _score_over_budget)
        if answered:
            yield f"first-token-{question}", _panels(answered, _score_over_time)
            yield f"cache-{question}", _cache(answered)
    if texts := [row for row in rows if "bands" in row]:
        yield "perplexity", _perplexity(texts)


def family(method: str) -> str:
    """A method without its budgets: those that share it are points of one line."""
    return " + ".join(BUDGET.sub("", part).rstrip(",:") for part in method.split(" + "))


def share(row: Row) -> float:
    """The share of the prompt's tokens that the smallest budget of a method comes to; 1 without a budget."""
    policy = Policy(**row["policy"])
    budgets = [part.budget for part in (policy.select, policy.evict) if part is not None]
    shares = [budget if isinstance(budget, float) else budget / row["prompt_tokens"] for budget in budgets]
    return min([1.0, *shares])


def _subplots(count: int, width: float, height: float) -> tuple[Any, list[Any]]:
    """A figure with so many panels, WIDE of them in a row."""
    import matplotlib.pyplot as plt

    columns = min(WIDE, count)
    lines = math.ceil(count / columns)
    figure, axes = plt.subplots(
        lines, columns, figsize=(width * columns, height * lines), layout="constrained", squeeze=False
    )
    for spare in axes.flat[count:]:
        spare.set_axis_off()
    return figure, list(axes.flat[:count])


def _needles(rows: list[Row]) -> Any:
    """A panel per method: found or not at each depth (down) and length (across)."""
    methods = grouped(rows, ["method"])
    lengths = sorted({row["length"] for row in rows})
    depths = sorted({row["facts"]["depth"] for row in rows})
    figure, panels = _subplots(len(methods), 1.4 + 0.55 * len(lengths), 2.4)
    for panel, ((method,), members) in zip(panels, methods.items(), strict=True):
        cells = grouped([{**row, "depth": row["facts"]["depth"]} for row in members], ["depth", "length"])
        scores = np.full((len(depths), len(lengths)), np.nan)
        for (depth, length), part in cells.items():
            scores[depths.index(depth), lengths.index(length)] = np.mean([row["score"] for row in part])
        image = panel.imshow(scores, vmin=0, vmax=1, cmap="RdYlBu", aspect="auto")
        for (i, j), score in np.ndenumerate(scores):
            if not np.isnan(score):
                ink = "black" if 0.2 < score < 0.8 else "white"
                panel.text(j, i, f"{score:.0%}", ha="center", va="center", fontsize=6.5, color=ink)
        panel.set_xticks(range(len(lengths)), [f"{length:,}" for length in lengths], rotation=30)
        panel.set_yticks(range(len(depths)), [f"{depth:.0%}" for depth in depths])
        panel.set_title(method.replace(" + ", "\n+ "), fontsize=8)
        panel.grid(False)
    figure.supxlabel("length, tokens", fontsize=8)
    figure.supylabel("depth of the needle", fontsize=8)
    figure.colorbar(image, ax=panels, label="found", shrink=0.8)
    return figure


def _panels(rows: list[Row], draw: Callable[[Any, list[Row], dict[str, Any]], None]) -> Any:
    """A panel per kind of task and length, and one legend for all."""
    groups = grouped([{**row, "kind": row["task"].partition("/")[0]} for row in rows], ["kind", "length"])
    figure, panels = _subplots(len(groups), max(3.4, PAGE / len(groups)), 3.0)
    looks = _looks(rows)
    for panel, ((kind, length), members) in zip(panels, groups.items(), strict=True):
        draw(panel, members, looks)
        panel.set_ylim(-0.04, 1.04)
        panel.set_ylabel("score")
        panel.set_title(
            f"{kind}, {length:,} tokens, n = {len(members) // len({r['method'] for r in members})}", fontsize=8
        )
    handles = {
        label: handle for panel in panels for handle, label in zip(*panel.get_legend_handles_labels(), strict=True)
    }
    columns = max(2, int(figure.get_figwidth() / ENTRY))
    figure.set_figheight(figure.get_figheight() + LINE * math.ceil(len(handles) / columns))
    figure.legend(
        handles.values(), handles.keys(), loc="outside lower center", ncols=columns, fontsize=7, frameon=False
    )
    return figure


def _looks(rows: list[Row]) -> dict[str, Any]:
    """Colour and mark of each family of methods, the same in every panel."""
    names = dict.fromkeys(family(row["method"]) for row in rows)
    from matplotlib import colormaps

    wheel: Any = colormaps["tab10" if len(names) <= 10 else "tab20"]
    return {name: {"color": wheel(n % wheel.N), "marker": MARKS[n % len(MARKS)]} for n, name in enumerate(names)}


def _mean(rows: list[Row], value: Callable[[Row], float]) -> float:
    return float(np.mean([value(row) for row in rows]))


def _scores(rows: list[Row]) -> tuple[float, float, float]:
    """Mean score and how far its interval reaches down and up."""
    pairs = [(f"{row['task']} {row['document']}", row["score"]) for row in rows]
    low, high = interval(pairs, seed=zlib.crc32(rows[0]["method"].encode()))
    mean = float(np.mean([score for _, score in pairs]))
    return mean, max(mean - low, 0), max(high - mean, 0)


def _score_over_budget(panel: Any, rows: list[Row], looks: dict[str, Any]) -> None:
    lines: dict[str, list[tuple[float, float, float, float]]] = {}
    for (method,), members in grouped(rows, ["method"]).items():
        lines.setdefault(family(method), []).append((_mean(members, share), *_scores(members)))
    for name, points in lines.items():
        x, y, down, up = np.array(sorted(points)).T
        if name == DENSE:
            panel.axhline(y[0], color="0.3", linewidth=1, label=DENSE)
            panel.axhspan(y[0] - down[0], y[0] + up[0], color="0.3", alpha=0.1)
        else:
            panel.errorbar(x, y, (down, up), label=name, markersize=4, capsize=2, linewidth=1, **looks[name])
    panel.set_xscale("log", base=2)
    percent = sorted({round(100 * x, 1) for name, points in lines.items() if name != DENSE for x, *_ in points})
    panel.set_xticks([x / 100 for x in percent], [f"{x:g}" for x in percent])
    panel.minorticks_off()
    panel.set_xlabel("budget, % of the prompt's tokens")


def _score_over_time(panel: Any, rows: list[Row], looks: dict[str, Any]) -> None:
    """A point per method, with its budget as a share of the prompt beside it."""
    times = []
    for (method,), members in grouped(rows, ["method"]).items():
        score, down, up = _scores(members)
        times.append(_mean(members, lambda row: row["time_to_first_token"]))
        name, at = family(method), ([times[-1]], [score])
        panel.errorbar(*at, [[down], [up]], label=name, linestyle="", markersize=4, capsize=2, **looks[name])
        if name != DENSE:
            panel.annotate(
                f"{round(100 * _mean(members, share), 1):g} %",
                (times[-1], score),
                (4, -9),
                textcoords="offset points",
                fontsize=6,
            )
    panel.set_xlabel("time to the first token, s")
    panel.set_xlim(0, 1.12 * max(times))


def _cache(rows: list[Row]) -> Any:
    """Bytes that a method's cache holds at the end, over the length of the prompt."""
    figure, (panel,) = _subplots(1, 6.4, 3.8)
    for n, ((method,), members) in enumerate(grouped(rows, ["method"]).items()):
        points = [
            (_mean(part, lambda row: row["prompt_tokens"]), _mean(part, lambda row: row["cache_bytes"]) / 2**20)
            for part in grouped(members, ["length"]).values()
        ]
        x, y = zip(*sorted(points), strict=True)
        panel.plot(x, y, marker=MARKS[n % len(MARKS)], markersize=4, linewidth=1, color=f"C{n % 10}", label=method)
    panel.set_xlabel("prompt, tokens")
    panel.set_ylabel("cache, MiB")
    panel.set_ylim(bottom=0)
    figure.legend(loc="outside right upper", fontsize=7, frameon=False)
    return figure


def _perplexity(rows: list[Row]) -> Any:
    """Perplexity of each band of positions, a line per method."""
    groups = grouped(rows, ["length"])
    figure, panels = _subplots(len(groups), 4.6, 3.6)
    for panel, ((length,), members) in zip(panels, groups.items(), strict=True):
        for n, entry in enumerate(summarise(members)):
            bands = {label: value for label, value in entry["perplexity"].items() if label != "all"}
            label = entry["method"]
            panel.plot(
                list(bands), list(bands.values()), marker=MARKS[n % len(MARKS)], markersize=4, linewidth=1, label=label
            )
        panel.set_title(f"{length:,} tokens", fontsize=8)
        panel.set_xlabel("positions")
        panel.tick_params(axis="x", rotation=30)
        panel.set_ylabel("perplexity")
    handles = panels[0].get_legend_handles_labels()
    figure.legend(*handles, loc="outside lower center", ncols=2, fontsize=7, frameon=False)
    return figure
