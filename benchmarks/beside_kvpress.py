"""kvpress's KeyDiff, SnapKV and TOVA on the prompts of one of our runs: `python -m benchmarks.beside_kvpress FOLDER`.

kvpress 0.5.5 wants transformers below 5.3, so give it an environment of its own (`pip install torch kvpress`) and name
its Python in KVPRESS_PYTHON. It reads a prompt in one piece and evicts once, after it; ours read it in chunks and never
hold more than the budget. The prompts are the same token ids, the answers are greedy, and our scorers judge both. What
it answered is summed up in `benchmarks/results/quality`, as our own runs are.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import product
from pathlib import Path
from queue import Queue
from typing import Any

from benchmarks.quality import write_record
from loaders.catalogue import find
from thresher.evaluation.folder import load as load_run
from thresher.evaluation.samples import Tools, prompt
from thresher.evaluation.tasks import chosen
from thresher.model import load

SCRIPT = Path(__file__).with_name("kvpress_contestant.py")
METHODS = {"dense": ("dense", 1.0)} | {
    f"{name}:budget={share}": (name, share) for name, share in product(("keydiff", "snapkv", "tova"), (0.5, 0.25))
}


class Kvpress:
    """One process of kvpress, which answers a question at a time."""

    def __init__(self, settings: dict[str, Any]) -> None:
        python = os.environ.get("KVPRESS_PYTHON", sys.executable)
        self._process = subprocess.Popen(
            [python, str(SCRIPT), json.dumps(settings)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def ask(self, **question: Any) -> list[int]:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(question) + "\n")
        self._process.stdin.flush()
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError(f"kvpress: its process ended with {self._process.wait()}")
        return list(json.loads(line))

    def close(self) -> None:
        with self._process:  # which closes its pipes and waits
            self._process.kill()


def questions(folder: Path) -> Iterator[dict[str, Any]]:
    """The run's questions as token ids, asked together with their documents."""
    request = load_run(folder)[0]["request"]
    tools = Tools(load(find(request["model"]["name"]), backend="reference"), request["seed"])
    for task in chosen(request["tasks"]):
        for length in request["lengths"]:
            for document in task.documents(tools, task, length, request["limit"]):
                for n, ask in enumerate(document.asks):
                    about = {"task": task.name, "length": length, "document": document.name, "ask": n}
                    before, after = prompt(tools.llm, document.text, ask, task.chat)
                    yield {"about": about, "ids": before + after, "task": task, "ask": ask, "facts": document.facts}


def run(folder: Path, device: str, dtype: str, jobs: int) -> list[dict[str, Any]]:
    """A line per question and method, as in `predictions.jsonl`."""
    model = find(load_run(folder)[0]["request"]["model"]["name"])
    llm = load(model, backend="reference")
    idle: Queue[Kvpress] = Queue()
    everyone = [Kvpress({"model": str(model), "device": device, "dtype": dtype}) for _ in range(jobs)]
    for each in everyone:
        idle.put(each)

    def answered(question: dict[str, Any], method: str) -> dict[str, Any]:
        name, budget = METHODS[method]
        most, stops = question["task"].max_new_tokens, list(llm.stop_ids)
        process = idle.get()
        try:
            ids = process.ask(ids=question["ids"], method=name, budget=budget, most=most, stops=stops)
        finally:
            idle.put(process)
        text = llm.tokenizer.decode([token for token in ids if token not in stops])
        score = question["task"].score(text, question["ask"], question["facts"])
        return {**question["about"], "question": "known", "method": method, "answer": text, "score": score}

    try:
        with ThreadPoolExecutor(jobs) as pool:
            return list(pool.map(answered, *zip(*product(questions(folder), METHODS), strict=True)))
    finally:
        for each in everyone:
            each.close()


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.beside_kvpress", description=__doc__)
    parser.add_argument("folder", type=Path, help="a run of thresher eval or benchmarks.quality")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--jobs", type=int, default=1, help="processes of kvpress, each with a model of its own")
    arguments = parser.parse_args()
    rows = run(arguments.folder, arguments.device, arguments.dtype, arguments.jobs)
    meta = load_run(arguments.folder)[0]
    meta["request"] |= {"methods": list(METHODS), "backend": arguments.device, "dtype": arguments.dtype}
    print(write_record(f"{arguments.folder.name}-kvpress", meta, rows, complete=True))


if __name__ == "__main__":
    main()
