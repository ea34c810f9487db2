"""Whom to believe, on real questions: `python -m benchmarks.sources MODEL --out DIR`.

Five sources of known reliability (`benchmarks.library`) answer questions of SQuAD and DROP through a model, as
`thresher ask` does. Weights are estimated on the first of the questions, without labels, and tested on the others, for
every seed, prior and policy. Some questions are asked again, to tell what kept states save. A run that was interrupted
goes on in its folder; `--record` alone sums up what a folder has, as a smaller run with as many questions for all.
"""

from __future__ import annotations

import argparse
import json
from collections import defaultdict
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import library, voting
from benchmarks.common import balanced
from benchmarks.library import PRIORS, Timed
from benchmarks.voting import RECORDS
from reference import estimate_reliability, reliable_sources, sources_asked, weighted_vote
from thresher.answers.work import ASKED, QUERIES, Jobs, Reading, blocks, completed
from thresher.cli.show import cell_progress
from thresher.evaluation.cells import Engine, Row
from thresher.evaluation.folder import load
from thresher.evaluation.methods import named

POLICIES = "dense; keydiff:budget=0.5"
TIME = "time"  # of a label: what is asked again
VOTES = {
    "correlation": "correlation",
    "majority": "majority vote",
    "estimated": "estimated weights",
    "kappa": "best four",
    "true": "true weights",
    "single": "best single source",
    "any": "any source is right",
}
READS = {
    "from right texts": "right, from a right text",
    "from swapped texts": "wrong, from a swapped text",
    "without the text": "does not know, without the text",
}


def run(arguments: argparse.Namespace) -> None:
    """Ask all that the folder does not have yet. Blocks of questions come one after the other, each to all sources."""
    found = library.questions(arguments.file)
    asked = library.chosen(found, arguments.questions)
    pool = [each for each in found if each not in asked]  # no swapped text has the answer of another question
    engine = Engine.of(arguments.model, arguments.backend, arguments.dtype)
    readings = {name: Reading(engine, policy) for name, policy in named(arguments.policies).items()}
    out, queries = arguments.out.absolute(), [each.question for each in asked]
    cells: list[Any] = []
    for seed in range(arguments.seeds):
        tables = []
        for prior in arguments.priors.split(","):
            folder = out / "library" / f"{prior}-{seed}"
            library.build(folder, prior, seed, arguments.sources, asked, pool)
            for name, reading in readings.items():
                table = blocks(reading, str(folder / "sources"), f"{prior}/{seed}/{name}", queries)
                tables.append(table)
                if seed == 0 and len(tables) <= len(readings):
                    for top in map(int, arguments.tops.split(",")):
                        changed = {"about": f"{TIME}/{top}/{name}", "reading": replace(reading, top=top)}
                        cells += [Timed(**{**vars(each), **changed}) for each in table[: arguments.timed]]
        cells += [cell for part in zip(*tables, strict=True) for cell in part]
    request = {
        "kind": "benchmarks.sources",
        "model": Path(engine.model).name,
        **{name: getattr(arguments, name) for name in ("backend", "dtype", "questions", "sources", "seeds", "priors")},
        "policies": {name: reading.policy.specs for name, reading in readings.items()},
        "timed": [arguments.timed, arguments.tops],
    }
    with cell_progress() as progress:
        _, folder = completed(cells, ASKED, request, out / "run", Jobs(arguments.jobs), progress)
    assert folder is not None
    folder.finish({})


def record(out: Path, name: str, share: float) -> Path:
    """Sum up a folder in results/answers/sources-NAME.json. share: of the questions, to estimate with."""
    meta, rows = load(out / "run", ASKED)
    tables: dict[str, dict[int, Row]] = defaultdict(dict)
    for row in rows:
        tables[row["about"]][row["block"]] = row
    labels = [about for about in tables if about.startswith(f"{TIME}/")]
    timed = {tuple(about.split("/")[1:]): list(tables.pop(about).values()) for about in sorted(labels)}
    priors = meta["request"]["priors"].split(",")
    wanted = [f"{prior}/{{}}/{policy}" for prior in priors for policy in meta["request"]["policies"]]
    begun = {
        seed: min(_in_a_row(tables[about.format(seed)]) for about in wanted) for seed in range(meta["request"]["seeds"])
    }
    most = balanced(begun.values())
    seeds = [seed for seed, count in begun.items() if count >= most > 0]
    found: dict[tuple[str, str], list[dict[str, float]]] = defaultdict(list)
    for seed in seeds:
        for prior in priors:
            truth = library.truth(out / "library" / f"{prior}-{seed}")
            for policy in meta["request"]["policies"]:
                part = [tables[f"{prior}/{seed}/{policy}"][n] for n in range(most)]
                found[prior, policy].append(judged(part, truth, share, seed))
    told = {
        "meta": meta,
        "complete": (out / "run" / "metrics.json").exists(),
        "questions": min(most * QUERIES, meta["request"]["questions"]),
        "estimate": share,
        "seeds": seeds,
        "rows": [
            {"prior": prior, "policy": policy, **voting.told(repeats), "repeats": [_json(each) for each in repeats]}
            for (prior, policy), repeats in found.items()
        ],
        "costs": [{"top": int(top), "policy": policy, **_costs(each)} for (top, policy), each in timed.items()],
    }
    RECORDS.mkdir(parents=True, exist_ok=True)
    path = RECORDS / f"sources-{name}.json"
    path.write_text(json.dumps(told, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")
    return path


def judged(part: list[Row], truth: dict[str, Any], share: float, seed: int) -> dict[str, float]:
    """What one seed comes to. Accuracy is over the questions to test with; "I don't know" is wrong there."""
    said = [told for row in part for told in row["said"]]
    table = np.array([numbers for row in part for numbers in row["clusters"]], np.int64).T  # (N, M)
    wanted, held = truth["wanted"][: len(said)], truth["held"][: len(said)]
    hit = np.array(
        [[library.right(each["text"], texts) for each in told] for told, texts in zip(said, wanted, strict=True)]
    ).T
    has = np.array([[-1 if each is None else int(each) for each in row] for row in held]).T
    reliability, first = np.array(truth["reliability"]), round(share * len(said))
    v = estimate_reliability(table[:, :first], seed=seed)
    test, hits = table[:, first:], hit[:, first:]

    def accuracy(given: np.ndarray, weights: np.ndarray) -> float:
        voted = weighted_vote(given, weights, seed=seed)
        speaks = [np.flatnonzero(test[:, n] == u)[0] if u >= 0 else -1 for n, u in enumerate(voted)]
        return float(np.mean([i >= 0 and hits[i, n] for n, i in enumerate(speaks)]))

    def mean(of: np.ndarray, where: np.ndarray) -> float:
        return float(of[where].mean()) if where.any() else float("nan")

    sources, chosen = len(table), np.where(reliable_sources(test, v, voting.KAPPA), test, -1)
    alike = np.ptp(reliability) == 0 or np.ptp(v) == 0
    return {
        "correlation": float("nan") if alike else float(np.corrcoef(v, reliability)[0, 1]),
        "majority": accuracy(test, np.ones(sources)),
        "estimated": accuracy(test, v),
        "kappa": accuracy(chosen, v),
        "true": accuracy(test, sources * reliability - 1),
        "single": float(hits.mean(axis=1).max()),
        "any": float(hits.any(axis=0).mean()),
        "fewer reads": 1 - float(sources_asked(test, v, voting.KAPPA).mean()),
        "from right texts": mean(hit, has == 1),
        "from swapped texts": mean(~hit & (table >= 0), has == 0),
        "without the text": mean(table < 0, has == -1),
    }


def block(name: str) -> list[str]:
    """Markdown of a record."""
    told = json.loads((RECORDS / f"sources-{name}.json").read_text(encoding="utf-8"))
    lines = []
    for prior in dict.fromkeys(row["prior"] for row in told["rows"]):
        names = [*VOTES.values(), "fewer reads", *READS.values()]
        rows = [row for row in told["rows"] if row["prior"] == prior]
        lines += ["", f"| {list(voting.PRIORS)[list(PRIORS).index(prior)]} | " + " | ".join(_words(rows)) + " |"]
        lines.append("|" + "---|" * (len(rows) + 1))
        for key, words in zip((*VOTES, "fewer reads", *READS), names, strict=True):
            cells = [voting.cell(row[key], 1 if key == "correlation" else 100) for row in rows]
            lines.append(f"| {words} | {' | '.join(cells)} |")
    if told["costs"]:
        lines += ["", *_cost_table(told["costs"])]
    meta, machine = told["meta"]["request"], told["meta"]["machine"]
    where = "the CPU" if meta["backend"] == "cpu" or machine["gpu"].startswith("none") else machine["gpu"]
    first = round(told["estimate"] * told["questions"])
    split = f"{first} questions to estimate, {told['questions'] - first} to test, {len(told['seeds'])} seeds"
    return [*lines[1:], "", f"*{meta['model']}, {meta['dtype']} on {where}; {split}*"]


def _cost_table(costs: list[dict[str, Any]]) -> list[str]:
    header = ("a question to a source", "passages", "way", "seconds", "tokens read", "tokens kept", "MB of a state")
    lines = [f"| {' | '.join(header)} |", "|" + "---|" * len(header)]
    for cost in costs:
        for way in ("anew", "kept"):
            size = f"{cost['bytes'] / cost['states'] / 1e6:.1f}" if way == "kept" else ""
            figures = f"{cost[way]['seconds']:.3f} | {cost[way]['read']:.0f} | {cost[way]['kept']:.0f}"
            lines.append(f"| {_word(cost['policy'])} | {cost['top']} | {way} | {figures} | {size} |")
    same = all(cost["same"] for cost in costs)
    return [*lines, "", f"With a kept state {'no answer' if same else 'some answers'} changed."]


def _words(rows: list[dict[str, Any]]) -> list[str]:
    return [_word(row["policy"]) for row in rows]


def _word(policy: str) -> str:
    return policy.replace("keydiff:budget=0.5", "KeyDiff at 50 %")


def _json(figures: dict[str, float]) -> dict[str, float | None]:
    return {name: None if np.isnan(value) else value for name, value in figures.items()}


def _costs(rows: list[Row]) -> dict[str, Any]:
    """Of a question to a source, in the mean; and of all states that were kept."""
    asked = sum(row["asked"] for row in rows)
    ways = {
        way: {name: sum(row[way][name] for row in rows) / asked for name in rows[0][way]}
        for way in ("anew", "keeping", "kept")
    }
    kept = {name: sum(row[name] for row in rows) for name in ("states", "bytes")}
    return {"asked": asked, "same": all(row["same"] for row in rows), **kept, **ways}


def _in_a_row(table: dict[int, Row]) -> int:
    """How many blocks there are from the first on."""
    return next(n for n in range(len(table) + 1) if n not in table)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.sources", description=__doc__)
    parser.add_argument("model", nargs="?", default="qwen2.5-coder-0.5b-instruct")
    parser.add_argument("--out", type=Path, help="the folder of the run")
    parser.add_argument("--questions", type=int, default=240)
    parser.add_argument("--estimate", type=float, default=0.4, help="share of the questions to estimate with")
    parser.add_argument("--sources", type=int, default=5)
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--priors", default=",".join(PRIORS), help="default: %(default)s")
    parser.add_argument("--policies", default=POLICIES, help="default: %(default)s")
    parser.add_argument("--timed", type=int, default=2, help=f"blocks of {QUERIES} questions that are asked again")
    parser.add_argument("--tops", default="3,24", help="with so many passages (default: %(default)s)")
    parser.add_argument("--file", type=Path, help="questions that --save wrote, for a machine without the package")
    parser.add_argument("--save", type=Path, help="write the package's questions to a file, and run nothing")
    parser.add_argument("--backend", default="auto")
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--name", help="of the record; default: the model's")
    parser.add_argument("--record", action="store_true", help="run nothing, sum up what the folder has")
    arguments = parser.parse_args()
    if arguments.save:
        library.save(library.questions(), arguments.save)
        return
    if not arguments.record:
        run(arguments)
    name = arguments.name or Path(arguments.model).name
    record(arguments.out, name, arguments.estimate)
    print("\n".join(block(name)))


if __name__ == "__main__":
    main()
