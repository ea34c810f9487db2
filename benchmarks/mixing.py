"""What several ways of asking cover: `python -m benchmarks.mixing MODEL --problems gsm8k --out DIR`.

Runs `thresher solve`'s own code and records pass@k of each method and of their mix, the runs that the mix saves, and a
majority vote beside them. A run that was interrupted goes on in its folder; `--record` alone sums up what a folder has,
as a smaller run with as many runs of every method on every problem.
"""

from __future__ import annotations

import argparse
import json
from collections import Counter
from pathlib import Path
from typing import Any

from benchmarks.common import balanced
from benchmarks.voting import RECORDS
from thresher.answers.coverage import MIX, coverage
from thresher.answers.problems import read_problems
from thresher.answers.solve import METHODS
from thresher.answers.work import TRIED, Jobs, solve, tries
from thresher.cli.show import cell_progress
from thresher.evaluation.cells import Engine
from thresher.evaluation.folder import load

SHOWN = (1, 3, 9, 21)  # k of the table


def record(out: Path, name: str) -> Path:
    """Sum up a folder in results/answers/mixing-NAME.json."""
    meta, rows = load(out, TRIED)
    methods = meta["request"]["methods"]
    done = Counter((row["problem"], row["round"]) for row in rows)
    rounds = dict.fromkeys(sorted({row["problem"] for row in rows}), 0)
    for problem in rounds:
        while done[problem, rounds[problem]] == len(methods):
            rounds[problem] += 1
    most = balanced(rounds.values())
    whole = [row for row in rows if row["round"] < most <= rounds[row["problem"]]]
    wanted = {row["problem"]: row["wanted"] for row in whole}
    answers = tries(whole)
    told = coverage(
        {name: answers[name] for name in methods},
        [texts for _, texts in sorted(wanted.items())],
        meta["request"]["seed"],
    )
    complete = (out / "metrics.json").exists()
    seconds = {name: sum(row["seconds"] for row in whole if row["method"] == name) for name in methods}
    RECORDS.mkdir(parents=True, exist_ok=True)
    path = RECORDS / f"mixing-{name}.json"
    text = json.dumps({"meta": meta, "complete": complete, "seconds": seconds, **told}, ensure_ascii=False, indent=1)
    path.write_text(text + "\n", encoding="utf-8")
    return path


def block(name: str) -> list[str]:
    """Markdown of a record, in percent, each with its interval over the problems."""
    told = json.loads((RECORDS / f"mixing-{name}.json").read_text(encoding="utf-8"))
    methods: dict[str, dict[str, Any]] = told["methods"]
    ks = sorted({k for k in (*SHOWN, told["runs"]) if k <= told["runs"]})
    lines = [f"| | {' | '.join(methods)} |", "|" + "---|" * (len(methods) + 1)]
    for k in ks:
        lines.append(f"| pass@{k} | {' | '.join(_share(each['pass'][k - 1]) for each in methods.values())} |")
    lines.append(
        f"| majority of {told['runs']} | {' | '.join(_share(each['majority']) for each in methods.values())} |"
    )
    saved = [_saved(each) if method != MIX else "" for method, each in methods.items()]
    lines.append(f"| runs that the mix saves | {' | '.join(saved)} |")
    meta, machine = told["meta"]["request"], told["meta"]["machine"]
    where = "the CPU" if meta["backend"] == "cpu" or machine["gpu"].startswith("none") else machine["gpu"]
    facts = f"{told['problems']} problems, {told['runs']} runs of each method, temperature {meta['temperature']:g}"
    return [*lines, "", f"*{meta['model']['name']}, {meta['dtype']} on {where}; {facts}*"]


def _share(figure: dict[str, float]) -> str:
    return f"{100 * figure['mean']:.1f} ({100 * figure['low']:.1f} to {100 * figure['high']:.1f})"


def _saved(each: dict[str, Any]) -> str:
    return "never reached" if each["saved"] is None else f"{each['saved']:.0%}, at run {each['reached']}"


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.mixing", description=__doc__)
    parser.add_argument("model", nargs="?", default="qwen2.5-coder-0.5b-instruct")
    parser.add_argument("--out", type=Path, required=True, help="the folder of the run")
    parser.add_argument("--problems", default="gsm8k", help="gsm8k, math500, or a file of them (default: %(default)s)")
    parser.add_argument("--limit", type=int, default=100, help="problems (default: %(default)s)")
    parser.add_argument("--runs", type=int, default=21, help="of each method (default: %(default)s, the paper's)")
    parser.add_argument("--methods", default=",".join(METHODS), help="default: %(default)s")
    parser.add_argument("--max-new-tokens", type=int, default=320)
    parser.add_argument("--backend", default="auto")
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--name", help="of the record; default: the folder's")
    parser.add_argument("--record", action="store_true", help="run nothing, sum up what the folder has")
    arguments = parser.parse_args()
    if not arguments.record:
        with cell_progress() as progress:
            solve(
                Engine.of(arguments.model, arguments.backend, arguments.dtype),
                read_problems(arguments.problems, arguments.limit),
                arguments.methods.split(","),
                runs=arguments.runs,
                max_new_tokens=arguments.max_new_tokens,
                out=arguments.out,
                jobs=Jobs(arguments.jobs),
                progress=progress,
            )
    name = arguments.name or arguments.out.name
    record(arguments.out, name)
    print("\n".join(block(name)))


if __name__ == "__main__":
    main()
