"""The pictures of docs/performance.md and of FastForward's training, drawn from the recorded results: `python -m
benchmarks.plots` (extra: plot).

Every point is a median; bars reach from the lowest to the highest round.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from matplotlib.axes import Axes

from benchmarks.common import RESULTS
from loaders.tensors import TensorFile

DATA = Path(__file__).parents[1] / "thresher" / "data"
PICTURES = Path(__file__).parents[1] / "docs" / "performance"
STYLE = {
    "font.size": 9,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.alpha": 0.3,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "svg.hashsalt": "thresher",
    "svg.fonttype": "none",
}


def main() -> None:
    PICTURES.mkdir(exist_ok=True)
    plt.rcParams.update(STYLE)
    for draw in DRAWN:
        figure, axes = plt.subplots(figsize=(6.4, 3.6), layout="constrained")
        facts = draw(axes)
        axes.set_title(f"{facts['cpu']}, {facts['threads']} threads, {facts['date'][:10]}", fontsize=7, loc="right")
        figure.savefig(PICTURES / f"{draw.__name__}.svg", metadata={"Date": None})
        plt.close(figure)


def over_past(axes: Axes) -> dict[str, Any]:
    """Attention of one chunk, dense and selected, over the length of the past."""
    told = _result("selection")
    _lines(axes, told["curves"]["QUOKA over past length"], "past")
    _log(axes, "tokens of past", "milliseconds per chunk of 128")
    return told["machine"]


def over_budget(axes: Axes) -> dict[str, Any]:
    """Attention of one chunk over the number of past tokens that it reads."""
    told = _result("selection")
    points = told["curves"]["QUOKA over budget"]
    _lines(axes, points, "budget")
    _log(axes, f"budget (past {points[0]['past']:,})", "milliseconds per chunk of 128")
    return told["machine"]


def crossover(axes: Axes) -> dict[str, Any]:
    """Where choosing keys begins to pay."""
    told = _result("selection")
    points = told["curves"]["around the crossover"]
    ratios = [p["seconds"]["dense"]["median"] / p["seconds"]["QUOKA"]["median"] for p in points]
    axes.plot([point["past"] for point in points], ratios, marker="o", markersize=3)
    axes.axhline(1, color="black", linewidth=1)
    budget = points[0]["budget"]
    axes.set(xlabel="tokens of past", ylabel=f"dense over QUOKA {budget:,}, medians", ylim=(0, None))
    return told["machine"]


def eviction(axes: Axes) -> dict[str, Any]:
    """What it costs to score a whole cache once per chunk."""
    told = _result("eviction")
    _lines(axes, told["curves"]["scoring one chunk over past length"], "past")
    _log(axes, "tokens in the cache", "milliseconds per chunk of 128")
    return told["machine"]


def stages(axes: Axes) -> dict[str, Any]:
    """Where the time of a prompt goes, policy by policy."""
    told = _result("shares")
    points = [point for points in told["curves"].values() for point in points]
    names = [point["policy"] for point in points]
    order = dict.fromkeys(stage for point in points for stage in point["seconds"] if stage != "total")
    left = [0.0] * len(points)
    for n, stage in enumerate(order):
        widths = [point["seconds"].get(stage, {"median": 0.0})["median"] for point in points]
        axes.barh(names, widths, left=left, label=stage, color=f"C{n}")
        left = [a + b for a, b in zip(left, widths, strict=True)]
    axes.invert_yaxis()
    length = told["settings"]["prompt_tokens"]
    axes.set(xlabel=f"seconds for a prompt of {length:,} tokens ({told['settings']['model']})")
    axes.legend(fontsize=7, ncols=4, loc="upper center", bbox_to_anchor=(0.4, -0.2))
    return told["machine"]


def first_token(axes: Axes) -> dict[str, Any]:
    """Time to first token of every contestant."""
    told = _result("ttft")
    (point,) = told["curves"]["time to first token"]
    names, medians, errors = _bars(point["seconds"])
    colours = ["C1" if name.startswith("transformers") else "C0" for name in names]
    axes.barh(names, medians, xerr=errors, color=colours)
    axes.invert_yaxis()
    axes.set(xlabel=f"seconds to the first token of {point['prompt']:,}")
    return told["machine"]


def roofline(axes: Axes) -> dict[str, Any]:
    """How near the kernels come to what the machine's arithmetic (in registers) and memory (a sum) allow."""
    attention, selection, eviction, ffn = (_result(name) for name in ("attention", "selection", "eviction", "ffn"))
    shape = attention["settings"]
    peak, read = shape["limit_gflops"]["float32"], shape["read_gb_per_s"]
    parts = selection["curves"]["parts of QUOKA"][0]
    slots, past = selection["settings"]["n_queries"], parts["past"]
    key_bytes = 4 * shape["kv_heads"] * shape["head_dim"]  # of one token
    keydiff = eviction["curves"]["KeyDiff's scores"][0]
    weights = ffn["settings"]["weight_gb_per_s"]
    points = {  # flops per byte read from the arrays, GFLOP/s
        "dense attention": (shape["chunk"] * shape["heads"] / shape["kv_heads"] / 2, shape["gflops"]["thresher"]),
        "QUOKA's scores": (slots / 2, _rate(slots / 2 * key_bytes * past, parts["seconds"]["score"])),
        "KeyDiff's scores": (1.5, _rate(1.5 * key_bytes * keydiff["keys"], keydiff["seconds"]["keydiff_scores"])),
        "dense FFN": (ffn["settings"]["block"] / 2, ffn["settings"]["gflops"]["dense, float32"]),
        "linear, T = 1, float32": (0.5, 0.5 * weights["float32"]),
        "linear, T = 1, bfloat16": (1.0, weights["bfloat16"]),
        "linear, T = 1, int8": (64 / 34, 64 / 34 * weights["int8"]),  # 32 numbers and their scale in 34 bytes
    }
    roof = [2.0**n for n in range(-2, 10)]
    axes.plot(roof, [min(peak, read * x) for x in roof], color="black", linewidth=1)
    for n, (name, (intensity, rate)) in enumerate(points.items()):
        axes.plot(intensity, rate, "o", color=f"C{n}", label=name)
    axes.set_xscale("log", base=2)
    axes.set_yscale("log", base=2)
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_formatter(lambda x, _: f"{x:g}")
    axes.set(xlabel="floating-point operations per byte of keys, values or weights", ylabel="GFLOP/s")
    axes.legend(fontsize=7)
    return attention["machine"]


def _rate(flops: float, seconds: dict[str, float]) -> float:
    return flops / seconds["median"] / 1e9


def training_losses(axes: Axes) -> dict[str, Any]:
    """Held-out losses of the weights in the package along the four trainings, each from 1; the mean over the layers."""
    told = trained()
    held = json.loads(told["held_out"])
    names = {
        "predictor": "predictor",
        "oracle_masks": "compensator, oracle's masks",
        "predicted_masks": "its own masks",
    }
    for kind, name in names.items():
        losses = np.mean([layer["losses"][kind] for layer in held], axis=0)
        axes.plot(np.linspace(0, 1, len(losses)), losses / losses[0], marker="o", markersize=3, label=name)
    begun = json.loads(told.get("start", "{}"))  # weights that were tuned on: from where the first tuning began
    losses = np.array(json.loads(begun.get("tuning_held_out", "[]")) + json.loads(told["tuning_held_out"]))
    axes.plot(np.linspace(0, 1, len(losses)), losses / losses[0], marker="o", markersize=3, label="all layers together")
    axes.set(xlabel="share of the steps", ylabel="held-out loss over the first", ylim=(0, None))
    axes.legend(fontsize=7)
    return _result("fastforward")["machine"]


def neurons_found(axes: Axes) -> dict[str, Any]:
    """How many of the oracle's neurons the predictor finds, layer by layer."""
    told = _result("fastforward")
    by_layer = told["settings"]["overlap by layer at 2,048"]
    axes.bar(range(len(by_layer)), by_layer)
    axes.axhline(0.5, color="black", linewidth=1)
    axes.text(len(by_layer) - 0.5, 0.5, "chance", fontsize=7, ha="right", va="bottom")
    axes.set(xlabel="layer", ylabel="share of the oracle's half found", ylim=(0, 1))
    return told["machine"]


def ladder(axes: Axes) -> dict[str, Any]:
    """Perplexity by how neurons are chosen and what is added to them."""
    told = _result("fastforward")
    start = "perplexity at 2,048, "
    found = {r["measure"].removeprefix(start): r["median"] for r in told["rows"] if r["unit"] == ""}
    found = {name: value for name, value in found.items() if not name.startswith("perplexity")}
    names = sorted(found, key=found.__getitem__)
    axes.barh(names, [found[name] for name in names], color=["C1" if "fast" in name else "C0" for name in names])
    axes.invert_yaxis()
    axes.set(xscale="log", xlabel="perplexity of essays at 2,048 tokens, sparse blocks only")
    axes.tick_params(axis="y", labelsize=6)
    return told["machine"]


def trained() -> dict[str, str]:
    """What the weights in the package say of their training."""
    return TensorFile(DATA / "smollm2-135m-instruct.fastforward.safetensors").metadata


def _result(name: str) -> dict[str, Any]:
    return json.loads((RESULTS / f"{name}.json").read_text(encoding="utf-8"))


def _bars(seconds: dict[str, dict[str, float]]) -> tuple[list[str], list[float], list[list[float]]]:
    """Names, medians, and the distances down to the lowest and up to the highest."""
    medians = [s["median"] for s in seconds.values()]
    down = [s["median"] - s["low"] for s in seconds.values()]
    up = [s["high"] - s["median"] for s in seconds.values()]
    return list(seconds), medians, [down, up]


def _lines(axes: Axes, points: list[dict[str, Any]], over: str) -> None:
    at = [point[over] for point in points]
    for name in points[0]["seconds"]:
        found = [point["seconds"][name] for point in points]
        medians = [1e3 * s["median"] for s in found]
        down = [1e3 * (s["median"] - s["low"]) for s in found]
        up = [1e3 * (s["high"] - s["median"]) for s in found]
        axes.errorbar(at, medians, [down, up], label=name, marker="o", markersize=3, capsize=2, linewidth=1.2)


def _log(axes: Axes, across: str, along: str) -> None:
    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    axes.xaxis.set_major_formatter(lambda x, _: f"{x / 1024:g}K" if x >= 1024 else f"{x:g}")
    axes.set(xlabel=across, ylabel=along)
    axes.legend(fontsize=7)


DRAWN = (
    *(over_past, over_budget, crossover, eviction, stages, first_token, roofline),
    *(training_losses, neurons_found, ladder),
)

if __name__ == "__main__":
    main()
