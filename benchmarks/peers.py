"""First token, decoding and memory beside what a user would run instead, from one thread to all cores.

Beside transformers stand OpenVINO GenAI, dense and with XAttention, and llama.cpp, each where it is there:

    OPENVINO_MODEL=DIRECTORY   what `optimum-cli export openvino --weight-format fp32 --model MODEL DIRECTORY` wrote
    OPENVINO_INT8=DIRECTORY    the same with --weight-format int8
    OPENVINO_PYTHON=PATH       the Python that has openvino-genai (default: this one)
    LLAMA_CPP_PYTHON=PATH      the Python that has llama-cpp-python (default: this one, where it is installed)

optimum-intel wants another transformers than ours, so give it an environment of its own: torch for the CPU first, then
`pip install openvino-genai nncf "transformers<5.6"`, then `pip install --no-deps optimum optimum-intel`; it runs
without torchvision. Every contestant is a process of its own, since thread pools are in each other's way. Those of one
dtype and number of threads take turns, one at a time; after that they end, so that memory holds the next ones. New
tokens are as many for all, whatever they are. A contestant that fails is named in the record, and the others go on.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import thresher
from accel.cpu import THREADS
from benchmarks import common
from benchmarks.common import Report, counts, installed, parser
from loaders import catalogue
from thresher.bench import prompt

LENGTH = {"full": 8128, "short": 1024, "smallest": 96}  # with NEW, all positions of the model
ROUNDS = {"full": 5, "short": 2, "smallest": 1}
NEW = {"full": 64, "short": 16, "smallest": 3}
DTYPES = {"full": ("float32", "bfloat16", "int8"), "short": ("float32", "bfloat16", "int8"), "smallest": ("float32",)}
ONLY = {"smallest": ("dense", "QUOKA + FastForward", "transformers")}  # the second has no weights there, and fails
SCRIPT = Path(__file__).with_name("contestant.py")
MIB = 1 << 20


class Contestant:
    """A program in a process of its own, which has read the prompt once. RuntimeError with its last word if it ends."""

    def __init__(self, process: subprocess.Popen[str], errors: Path, ids: list[int], tokens: int) -> None:
        self._process, self._errors, self._tokens = process, errors, tokens
        self.loaded: dict[str, float] = self._hear()
        self._say(json.dumps(ids))
        self.told: list[dict[str, float]] = []
        self.run()
        self.told.clear()

    def run(self) -> None:
        """Read the prompt, and go on from it."""
        self._say(str(self._tokens))
        self.told.append(self._hear())

    def all(self, name: str) -> list[float]:
        """A figure of every round."""
        return [told[name] for told in self.told]

    def _say(self, line: str) -> None:
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(line + "\n")
            self._process.stdin.flush()
        except OSError:
            self._failed()

    def _hear(self) -> Any:
        assert self._process.stdout is not None
        return json.loads(self._process.stdout.readline() or "null") or self._failed()

    def _failed(self) -> Any:
        said = self._errors.read_text(encoding="utf-8", errors="replace").split("\n")
        last = next((line for line in reversed(said) if line.strip()), "")
        raise RuntimeError(f"ended with {self._process.wait()}: {last}")


@contextmanager
def started(python: str, settings: dict[str, Any]) -> Iterator[tuple[subprocess.Popen[str], Path]]:
    """The process of a contestant for as long as it is needed, and where it writes its errors."""
    command = [python, str(SCRIPT), json.dumps(settings)]
    with tempfile.TemporaryDirectory() as folder, (Path(folder) / "errors").open("w", encoding="utf-8") as errors:
        process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors, text=True, bufsize=1
        )
        try:
            yield process, Path(errors.name)
        finally:
            process.kill()
            process.communicate()


def contestants(model: str, budget: int, dtype: str) -> dict[str, tuple[str, dict[str, Any]]]:
    """Name -> (Python, settings) of all that are there for a dtype."""
    quoka, keydiff = {"select": f"quoka:budget={budget}"}, {"evict": f"keydiff:budget={budget}"}
    half = {**quoka, "ffn": "fastforward:density=0.5"}
    ours = {"dense": {}, "QUOKA": quoka, "KeyDiff": keydiff, "QUOKA + FastForward": half}
    base = {"program": "thresher", "model": model, "dtype": dtype}
    found: dict[str, tuple[str, dict[str, Any]]] = {
        name: (sys.executable, {**base, **policy}) for name, policy in ours.items()
    }
    if dtype != "int8":
        weights = str(catalogue.find(model))
        found["transformers"] = sys.executable, {"program": "transformers", "model": weights, "dtype": dtype}
    if exported := os.environ.get("OPENVINO_INT8" if dtype == "int8" else "OPENVINO_MODEL"):
        python = os.environ.get("OPENVINO_PYTHON", sys.executable)
        peer = {"program": "openvino", "model": exported, "dtype": dtype}
        found["OpenVINO"], found["OpenVINO XAttention"] = (python, peer), (python, {**peer, "sparse": True})
    python = os.environ.get("LLAMA_CPP_PYTHON") or (sys.executable if installed("llama-cpp-python") else "")
    if python and model in {entry.name for entry in catalogue.models()}:
        file = str(catalogue.gguf_file(model))
        found["llama.cpp"] = python, {"program": "llama.cpp", "model": file, "dtype": dtype}
    return found


def run(
    report: Report,
    *,
    threads: Sequence[int] | None = None,
    dtypes: Sequence[str] | None = None,
    only: Sequence[str] | None = None,
    tokens: int | None = None,
    rounds: int | None = None,
) -> None:
    """All contestants, or `only` some, at every dtype and number of threads; `tokens` are the prompt's."""
    size = report.size
    length, rounds, new = tokens or LENGTH[size], rounds or ROUNDS[size], NEW[size]
    budget = length // 8
    report.settings = {"model": report.model, "prompt_tokens": length, "new_tokens": new, "budget": budget}
    report.settings["failed"] = {}
    ids = prompt(thresher.load(report.model, backend="reference"), length)
    only = only or ONLY.get(size)
    for dtype in dtypes or DTYPES[size]:
        found = contestants(report.model, budget, dtype)
        if only is not None:
            found = {name: found[name] for name in only if name in found}
        for count in threads or (counts(THREADS) if size != "smallest" else [THREADS]):
            race(report, found, dtype, count, ids, new, rounds)


def race(
    report: Report,
    found: dict[str, tuple[str, dict[str, Any]]],
    what: str,
    threads: int,
    ids: list[int],
    new: int,
    rounds: int,
) -> None:
    """Contestants, all of the dtype or model that `what` tells, with so many threads, in turns."""
    racing: dict[str, Contestant] = {}
    with ExitStack() as running:

        def attempt(name: str, step: Any) -> None:
            try:
                step()
            except RuntimeError as error:
                report.settings["failed"][f"{what} {name}, {threads} threads"] = str(error)
                racing.pop(name, None)

        def enter(name: str) -> None:
            python, settings = found[name]
            settings = {**settings, "threads": threads, "positions": len(ids) + new}
            racing[name] = Contestant(*running.enter_context(started(python, settings)), ids, new)

        for name in found:
            attempt(name, lambda name=name: enter(name))
        for _ in range(rounds):
            for name, one in list(racing.items()):
                attempt(name, one.run)
    if racing:
        first = {name: one.all("first") for name, one in racing.items()}
        further = {name: [1 / speed for speed in one.all("speed") if speed] for name, one in racing.items()}
        report.point(f"time to first token, {what}", {"threads": threads}, first)
        report.point(f"time of a further token, {what}", {"threads": threads}, further)
    for name, one in racing.items():
        at = f"{what} {name}, {threads} threads"
        report.row(f"first token, {at}", one.all("first"), unit="s")
        report.row(f"decoding, {at}", one.all("speed"), unit="tokens/s")
        if "peak" in one.loaded:
            report.row(f"resident memory when loaded, {at}", [one.loaded["resident"] / MIB], unit="MiB")
            report.row(f"peak memory, {at}", [peak / MIB for peak in one.all("peak")], unit="MiB")


def main() -> None:
    known = parser("peers")
    known.add_argument("--threads", type=_numbers, metavar="N,N", help="default: 1, 2, 4, … and all")
    known.add_argument("--dtypes", type=words, metavar="DTYPE,DTYPE", help="default: float32,bfloat16,int8")
    known.add_argument("--only", type=words, metavar="NAME,NAME", help="dense, QUOKA, transformers, OpenVINO, …")
    known.add_argument("--tokens", type=int, metavar="N", help="of the prompt")
    known.add_argument("--rounds", type=int, metavar="N", help="that count")
    common.main("peers", run, known)


def words(text: str) -> list[str]:
    return text.split(",")


def _numbers(text: str) -> list[int]:
    return [int(word) for word in text.split(",")]


if __name__ == "__main__":
    main()
