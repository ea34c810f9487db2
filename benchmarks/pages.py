"""The tables of the pages in docs, from the recorded results: `python -m benchmarks.pages`.

A table stands between a comment and `<!-- end -->`. The comment is one of these, and `gains` is written like `quality`:

    <!-- rows: NAME -->                     <!-- quality: NAME, TASK, LENGTH, QUESTION -->
    <!-- curve: NAME, CURVE -->             <!-- answers: SCRIPT, NAME -->
                                            <!-- tasks: NAME, LENGTH, QUESTION -->
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from benchmarks import mixing, quality, sources, voting
from benchmarks.common import RESULTS

DOCS = Path(__file__).parents[1] / "docs"
PAGES = (DOCS / "performance.md", DOCS / "answers.md", DOCS / "results.md")
QUALITY = {"quality": quality.block, "gains": quality.gains_block, "tasks": quality.tasks_block}
ANSWERS = {"voting": voting.block, "sources": sources.block, "mixing": mixing.block}
BLOCK = re.compile(
    r"(<!-- (rows|curve|quality|gains|tasks|answers): ([\w.-]+)(?:, (.+?))? -->\n).*?(<!-- end -->)", re.DOTALL
)


def filled(page: str) -> str:
    """The page with every table as the results have it now."""

    def table(block: re.Match[str]) -> str:
        if block[2] in QUALITY:
            return block[1] + "\n".join([*QUALITY[block[2]](block[3], *block[4].split(", ")), ""]) + block[5]
        if block[2] == "answers":
            return block[1] + "\n".join([*ANSWERS[block[3]](block[4]), ""]) + block[5]
        told = json.loads((RESULTS / f"{block[3]}.json").read_text(encoding="utf-8"))
        lines = _rows(told["rows"]) if block[2] == "rows" else _curve(told["curves"][block[4]])
        facts = told["machine"]
        packages = ", ".join(f"{name} {facts[name]}" for name in ("numpy", "numba", "torch", "transformers"))
        made = f"{facts['cpu']}, {facts['threads']} threads, load {facts['load_before']} before the run, {packages}"
        if "gpu" in told["settings"]:
            made = f"{told['settings']['gpu']}; {made}"
        return block[1] + "\n".join([*lines, "", f"*{facts['date']}; {made}*", ""]) + block[5]

    return BLOCK.sub(table, page)


def _rows(rows: list[dict[str, Any]]) -> list[str]:
    lines = [
        "| measure | against | median | lowest to highest | rounds | reach | stretch |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        sign = "≤" if row["at_most"] else "≥"
        marks = {"stretch": ("✓", "✓"), "reach": ("✓", "✗"), "short": ("✗", "✗"), None: ("", "")}[row["met"]]
        goals = [
            f"{sign} {row[key]:g} {mark}" if row[key] is not None else ""
            for key, mark in zip(("reach", "stretch"), marks, strict=True)
        ]
        figures = f"{_three(row['median'])} {row['unit']}", f"{_three(row['low'])} to {_three(row['high'])}"
        lines.append("| " + " | ".join([row["measure"], row["against"], *figures, str(row["rounds"]), *goals]) + " |")
    return lines


def _curve(points: list[dict[str, Any]]) -> list[str]:
    """Milliseconds, each with its lowest and highest."""
    sizes = [key for key in points[0] if key not in ("seconds", "rounds")]
    header = [*sizes, *points[0]["seconds"]]
    lines = [f"| {' | '.join(header)} |", "|" + "---|" * len(header)]
    for point in points:
        at = [f"{point[key]:,}" if not isinstance(point[key], str) else point[key] for key in sizes]
        times = [
            f"{_three(1e3 * s['median'])} ({_three(1e3 * s['low'])} to {_three(1e3 * s['high'])})"
            for s in point["seconds"].values()
        ]
        lines.append(f"| {' | '.join([*at, *times])} |")
    return lines


def _three(x: float) -> str:
    """Three digits, in full."""
    return f"{float(f'{x:.3g}'):,.10g}"


if __name__ == "__main__":
    for page in PAGES:
        page.write_text(filled(page.read_text(encoding="utf-8")), encoding="utf-8")
