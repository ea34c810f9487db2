"""First token, decoding and memory beside what a user would run instead, from one thread to all cores.

Beside transformers stand OpenVINO GenAI, dense and with XAttention, and llama.cpp, each where it is there:

    OPENVINO_MODEL=DIRECTORY   what `optimum-cli export openvino --weight-format fp32 --model MODEL DIRECTORY` wrote
    OPENVINO_PYTHON=PATH       the Python that has openvino-genai (default: this one)
    LLAMA_CPP_PYTHON=PATH      the Python that has llama-cpp-python (default: this one, where it is installed)

optimum-intel wants another transformers than ours, so give it an environment of its own: torch for the CPU first, then
`pip install openvino-genai nncf "transformers<5.6"`, then `pip install --no-deps optimum optimum-intel`; it runs
without torchvision. Every contestant is a process of its own, since thread pools are in each other's way; they take
turns, one at a time, and all are started anew for every number of threads. New tokens are as many for all, whatever
they are.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import thresher
from accel.cpu import THREADS
from benchmarks.common import Report, installed, main
from loaders import catalogue
from thresher.bench import prompt

LENGTH = {"full": 8192, "short": 1024, "smallest": 96}
ROUNDS = {"full": 5, "short": 2, "smallest": 1}
NEW = {"full": 64, "short": 16, "smallest": 3}
SCRIPT = Path(__file__).with_name("contestant.py")


class Contestant:
    """A program in a process of its own, which has read the prompt once."""

    def __init__(self, process: subprocess.Popen[str], ids: list[int], tokens: int) -> None:
        self._process, self._tokens = process, tokens
        self._say(json.dumps(ids))
        self.told: list[dict[str, float]] = []
        self.run()
        self.told.clear()

    def run(self) -> None:
        """Read the prompt, and go on from it."""
        assert self._process.stdout is not None
        self._say(str(self._tokens))
        self.told.append(json.loads(self._process.stdout.readline() or "null") or self._failed())

    def all(self, name: str) -> list[float]:
        """A figure of every round."""
        return [told[name] for told in self.told]

    def _say(self, line: str) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(line + "\n")
        self._process.stdin.flush()

    def _failed(self) -> Any:
        raise RuntimeError(f"{' '.join(map(str, self._process.args))}: ended with {self._process.wait()}")


@contextmanager
def started(python: str, settings: dict[str, Any]) -> Iterator[subprocess.Popen[str]]:
    """The process of a contestant, for as long as it is needed."""
    command = [python, str(SCRIPT), json.dumps(settings)]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    with process:
        try:
            yield process
        finally:
            process.kill()


def contestants(model: str, budget: int, dtypes: tuple[str, ...]) -> dict[str, tuple[str, dict[str, Any]]]:
    """Name -> (Python, settings) of all that are there."""
    found: dict[str, tuple[str, dict[str, Any]]] = {}
    weights = str(catalogue.find(model))
    exported = os.environ.get("OPENVINO_MODEL")
    for dtype in dtypes:
        ours = {"program": "thresher", "model": model, "dtype": dtype}
        found[f"{dtype} dense"] = sys.executable, ours
        found[f"{dtype} QUOKA"] = sys.executable, {**ours, "select": f"quoka:budget={budget}"}
        found[f"{dtype} KeyDiff"] = sys.executable, {**ours, "evict": f"keydiff:budget={budget}"}
        theirs = {"program": "transformers", "model": weights, "dtype": dtype}
        found[f"{dtype} transformers"] = sys.executable, theirs
        if exported:
            python = os.environ.get("OPENVINO_PYTHON", sys.executable)
            peer = {"program": "openvino", "model": exported, "dtype": dtype}
            found[f"{dtype} OpenVINO"] = python, peer
            found[f"{dtype} OpenVINO XAttention"] = python, {**peer, "sparse": True}
    python = os.environ.get("LLAMA_CPP_PYTHON") or (sys.executable if installed("llama-cpp-python") else "")
    if python and model in {entry.name for entry in catalogue.models()}:
        found["llama.cpp"] = python, {"program": "llama.cpp", "model": str(catalogue.gguf_file(model))}
    return found


def counts(threads: int) -> list[int]:
    """Numbers of threads: 1, 2, 4, … and all."""
    return sorted({*(2**n for n in range(threads.bit_length()) if 2**n <= threads), threads})


def run(report: Report) -> None:
    length, tokens, rounds = LENGTH[report.size], NEW[report.size], ROUNDS[report.size]
    budget = length // 8
    report.settings = {"model": report.model, "prompt_tokens": length, "new_tokens": tokens, "budget": budget}
    ids = prompt(thresher.load(report.model, backend="reference"), length)
    found = contestants(report.model, budget, ("float32", "bfloat16") if report.size != "smallest" else ("float32",))
    report.settings["contestants"] = list(found)
    for threads in counts(THREADS) if report.size != "smallest" else [THREADS]:
        with ExitStack() as running:
            racing = {}
            for name, (python, settings) in found.items():
                settings = {**settings, "threads": threads, "positions": length + tokens}
                racing[name] = Contestant(running.enter_context(started(python, settings)), ids, tokens)
            for _ in range(rounds):
                for one in racing.values():
                    one.run()
        report.point("time to first token", {"threads": threads}, {n: one.all("first") for n, one in racing.items()})
        for name, one in racing.items():
            at = f"{name}, {threads} threads"
            report.row(f"first token, {at}", one.all("first"), unit="s")
            report.row(f"decoding, {at}", one.all("speed"), unit="tokens/s")
            if "peak" in one.told[0]:
                report.row(f"peak memory, {at}", [peak / 2**20 for peak in one.all("peak")], unit="MiB")


if __name__ == "__main__":
    main("peers", run)
