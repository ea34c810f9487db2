"""What every method costs in answers, for docs/results.md: `python -m benchmarks.quality MODEL --tasks ruler …`.

Runs the whole grid of methods and budgets by `thresher eval`'s own code, and records the summary of it in
`benchmarks/results/quality`; `python -m benchmarks.pages` then writes the tables. A run that was interrupted goes on
when it is given again; `--record` sums up what a folder has so far, and says so.
"""

from __future__ import annotations

import argparse
import json
import re
from pathlib import Path
from typing import Any

from benchmarks.common import RESULTS
from reference import Caote
from thresher.cli.show import cell_progress
from thresher.evaluation.folder import load
from thresher.evaluation.methods import named
from thresher.evaluation.methods import policy as spelled
from thresher.evaluation.metrics import grouped, interval, summarise
from thresher.evaluation.run import Progress, evaluate

QUALITY = RESULTS / "quality"
SHARE = re.compile(r"(budget|density)=[^,+ ]+,?")
EVICTIONS = [
    "keydiff",
    *("h2o", "caote:base=h2o", "caote:base=h2o,fast=true"),
    *("tova", "caote:base=tova", "caote:base=tova,fast=true"),
    *("snapkv", "caote:base=snapkv", "caote:base=snapkv,fast=true"),
    *("recent:sinks=4", "random"),
]
QUERIES = (16, 64, 128)
METHODS = [
    "dense",
    *(f"quoka:n_queries={n},budget={share}" for n in QUERIES for share in (0.25, 0.125, 0.0625)),
    *(f"{name}{',' if ':' in name else ':'}budget={share}" for name in EVICTIONS for share in (0.75, 0.5, 0.25)),
    "quoka:budget=0.125 + keydiff:budget=0.5",
]
COMPARED = [  # task by task
    "dense",
    "quoka:n_queries=128,budget=0.25",
    "quoka:n_queries=128,budget=0.125",
    *(f"{name},budget=0.5" for name in ("caote:base=snapkv", "recent:sinks=4")),
    *(f"{name}:budget=0.5" for name in ("keydiff", "snapkv", "tova", "h2o")),
]
TRAINED = ["fastforward:density=0.7", "fastforward:density=0.5"]  # for a model that has weights


def record(folder: Path, name: str) -> Path:
    """Sum up a run in results/quality/NAME.json."""
    meta, rows = load(folder)
    return write_record(name, meta, rows, complete=(folder / "metrics.json").exists())


def write_record(name: str, meta: dict[str, Any], rows: list[dict[str, Any]], *, complete: bool) -> Path:
    """results/quality/NAME.json of these lines; questions that some method has not answered yet are left out."""
    asked = grouped(rows, ("task", "length", "document", "ask", "question"))
    methods = max(map(len, asked.values()))
    whole = [row for members in asked.values() if len(members) == methods for row in members]
    told = {
        "meta": meta,
        "complete": complete,
        "answers": len(whole),
        "groups": summarise(whole),
        "gains": gains(whole),
    }
    QUALITY.mkdir(parents=True, exist_ok=True)
    path = QUALITY / f"{name}.json"
    lines = []  # an entry a line
    for key, part in told.items():
        entries = ",\n".join(json.dumps(entry, ensure_ascii=False) for entry in part) if isinstance(part, list) else ""
        lines.append(f"{json.dumps(key)}: " + (f"[\n{entries}]" if entries else json.dumps(part, ensure_ascii=False)))
    path.write_text("{" + ",\n".join(lines) + "}\n", encoding="utf-8")
    return path


def gains(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """What CAOTE gains over the method that it stands on, question by question, for each suite of tasks."""
    about = ("task", "length", "document", "ask", "question")
    scores = {(row["method"], *(row[name] for name in about)): row["score"] for row in rows if "score" in row}
    found = []
    suites = [
        {**row, "suite": row["task"].partition("/")[0]}
        for row in rows
        if "score" in row and (_base(row["method"]), *(row[name] for name in about)) in scores
    ]
    for (suite, length, question, method), members in grouped(
        suites, ("suite", "length", "question", "method")
    ).items():
        base = _base(method)
        pairs = [
            (f"{row['task']} {row['document']}", row["score"] - scores[base, *(row[name] for name in about)])
            for row in members
        ]
        low, high = interval(pairs)
        group = {"task": suite, "length": length, "question": question, "method": method, "base": base}
        found.append(
            {**group, "n": len(pairs), "mean": sum(x for _, x in pairs) / len(pairs), "low": low, "high": high}
        )
    return found


def _base(method: str) -> str | None:
    """The method that CAOTE stands on, with the same budget."""
    evict = spelled(method).evict
    return f"{evict.base}:budget={evict.budget}" if isinstance(evict, Caote) else None


def _told(name: str) -> dict[str, Any]:
    return dict(json.loads((QUALITY / f"{name}.json").read_text(encoding="utf-8")))


def gains_block(name: str, task: str, length: str, question: str) -> list[str]:
    """A table of a record: what CAOTE gains, a line per base and form, a column per budget."""
    told = _told(name)
    of_task = [g for g in told["gains"] if (g["task"], g["length"], g["question"]) == (task, int(length), question)]
    budgets = sorted({share for g in of_task for share in _shares(g["method"])}, reverse=True)
    lines: dict[str, dict[float, str]] = {}
    for gain in of_task:
        cell = f"{100 * gain['mean']:+.1f} ({100 * gain['low']:+.1f} to {100 * gain['high']:+.1f})"
        form = f"{'FastCAOTE' if 'fast=true' in gain['method'] else 'CAOTE'} over {gain['base'].partition(':')[0]}"
        lines.setdefault(form, {})[_shares(gain["method"])[0]] = cell
    header = ["", *(f"{100 * share:g} %" for share in budgets)]
    body = [
        f"| {form} | " + " | ".join(cells.get(share, "") for share in budgets) + " |" for form, cells in lines.items()
    ]
    return [f"| {' | '.join(header)} |", "|" + "---|" * len(header), *body, "", f"*n = {of_task[0]['n']} questions*"]


def tasks_block(name: str, length: str, question: str) -> list[str]:
    """A table of a record: scores in percent, a line per task, a column per method of COMPARED."""
    told = _told(name)
    groups = [g for g in told["groups"] if (g["length"], g["question"]) == (int(length), question) and "/" in g["task"]]
    scores = {(g["task"], g["method"]): g["score"] for g in groups}
    methods = list(named(COMPARED))
    header = ["task", *(f"{_family(m)} {100 * min(_shares(m)):g} %" if _shares(m) else m for m in methods)]
    body = [
        f"| {task.partition('/')[2]} | " + " | ".join(f"{100 * scores[task, m]:.0f}" for m in methods) + " |"
        for task in dict.fromkeys(g["task"] for g in groups)
    ]
    count = next(g["n"] for g in groups)
    return [f"| {' | '.join(header)} |", "|" + "---|" * len(header), *body, "", f"*n = {count} questions of each task*"]


def block(name: str, task: str, length: str, question: str) -> list[str]:
    """A table of a record, with the line that says how it was made."""
    told = _told(name)
    made, versions = told["meta"]["request"], told["meta"]["versions"]
    machine = told["meta"]["machine"]
    where = "the CPU" if made["backend"] == "cpu" or machine["gpu"].startswith("none") else machine["gpu"]
    facts = [f"{made['dtype']} on {where}", f"seed {made['seed']}", f"numpy {versions['numpy']}"]
    return [*table(told, task, int(length), question), "", f"*{made['model']['name']}, {', '.join(facts)}*"]


def table(told: dict[str, Any], task: str, length: int, question: str) -> list[str]:
    """Markdown: a line per method, a column per budget; the score in percent and how it moved from dense, or the
    perplexity."""
    groups = [g for g in told["groups"] if (g["task"], g["length"], g["question"]) == (task, length, question)]
    budgets = sorted({share for g in groups for share in _shares(g["method"])}, reverse=True)
    # in the order of the grid, since an interrupted run has its answers in any order
    lines: dict[str, dict[float, str]] = {_family(method): {} for method in named(METHODS + TRAINED)}
    for group in groups:
        shares = _shares(group["method"])
        lines.setdefault(_family(group["method"]), {})[min(shares, default=1.0)] = _cell(group)
    header = ["method", *(f"{100 * share:g} %" for share in budgets)]
    dense = next(g for g in groups if g["method"] == "dense")
    score = (
        _cell(dense)
        if "perplexity" in dense
        else f"{_cell(dense)} ({100 * dense['low']:.0f} to {100 * dense['high']:.0f})"
    )
    told_first = f"Dense: {score}, n = {dense['n']} for every method."
    body = [
        f"| {name} | " + " | ".join(cells.get(share, "") for share in budgets) + " |"
        for name, cells in lines.items()
        if name != "dense" and cells
    ]
    return [told_first, "", f"| {' | '.join(header)} |", "|" + "---|" * len(header), *body]


def _shares(method: str) -> list[float]:
    """Its budgets, and the density of FastForward."""
    policy = spelled(method)
    found = [part.budget for part in (policy.select, policy.evict) if part is not None]
    return [*found, policy.ffn.density] if policy.ffn is not None else found


def _family(method: str) -> str:
    """The method without them."""
    return " + ".join(SHARE.sub("", part).rstrip(",:") for part in method.split(" + "))


def _cell(group: dict[str, Any]) -> str:
    if "perplexity" in group:
        return f"{group['perplexity']['all']:.2f}"
    if "difference" not in group:
        return f"{100 * group['score']:.1f}"
    change = group["difference"]
    return f"{100 * group['score']:.1f} ({100 * change['low']:+.1f} to {100 * change['high']:+.1f})"


def _run(arguments: argparse.Namespace, progress: Progress) -> None:
    evaluate(
        arguments.model,
        tasks=arguments.tasks.split(","),
        methods=arguments.methods or METHODS + TRAINED * arguments.trained,
        lengths=[int(text) for text in arguments.lengths.split(",")],
        limit=arguments.limit,
        questions=arguments.questions.split(","),
        backend=arguments.backend,
        dtype=arguments.dtype,
        jobs=arguments.jobs,
        out=arguments.out,
        progress=progress,
    )


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.quality", description=__doc__)
    parser.add_argument("model")
    parser.add_argument("--tasks", default="ruler")
    parser.add_argument("--lengths", default="4096")
    parser.add_argument("--limit", type=int, default=12, help="documents per task and length")
    parser.add_argument("--questions", default="known")
    parser.add_argument("--methods", help='as for thresher eval, "dense; …"; default: the whole grid')
    parser.add_argument("--trained", action="store_true", help="FastForward too: the model has weights")
    parser.add_argument("--backend", default="auto")
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--out", type=Path, required=True, help="the folder of the run")
    parser.add_argument("--name", help="of the record; default: the folder's")
    parser.add_argument("--record", action="store_true", help="run nothing, sum up what the folder has")
    arguments = parser.parse_args()
    if not arguments.record:
        with cell_progress() as progress:
            _run(arguments, progress)
    path = record(arguments.out, arguments.name or arguments.out.name)
    told = json.loads(path.read_text(encoding="utf-8"))
    for task, length, question in dict.fromkeys((g["task"], g["length"], g["question"]) for g in told["groups"]):
        print(f"\n{task}, {length:,} tokens, question {question}", *table(told, task, length, question), sep="\n")


if __name__ == "__main__":
    main()
