"""Many clients at once: requests per second, time to the first token, answers that differ from those alone, memory.

Each client asks again as soon as it has its answer, streamed and greedy. The questions are short chats, and a document
that several questions follow. Every server first answers each question alone; under load it must say the same. Beside
thresher's server stands llama.cpp's, where it is installed:

    LLAMA_CPP_PYTHON=PATH      the Python that has llama-cpp-python[server] (default: this one, where it is installed)
"""

from __future__ import annotations

import json
import os
import re
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from statistics import quantiles
from threading import Event, Thread
from typing import Any

import httpx

from benchmarks.common import Report, installed, main
from loaders import catalogue
from thresher.demo import document

CLIENTS = {"full": 32, "short": 32, "smallest": 4}
SECONDS = {"full": 120, "short": 20, "smallest": 2}
TOKENS = {"full": 32, "short": 32, "smallest": 4}  # of an answer, at most
DOCUMENT = {"full": 6000, "short": 3000, "smallest": 100}  # characters
TOPICS = ("the sea", "a clock", "bread", "the moon", "a bridge", "rain", "glass", "a garden")
QUESTIONS = ("Who speaks first?", "Where are they?", "What do they fear?", "Who is the king?")
PATIENCE = 600  # seconds for one answer
EVERY = 0.5  # seconds between two looks at the memory


@dataclass
class Found:
    """What one server did under load."""

    alone: list[str] = field(default_factory=list)
    first: list[float] = field(default_factory=list)  # seconds to the first token
    answers: list[tuple[int, str]] = field(default_factory=list)
    failed: int = 0
    seconds: float = 0.0
    memory: list[int] = field(default_factory=list)  # bytes, while the load lasts


def run(report: Report) -> None:
    size = report.size
    questions = [f"Say something of {topic}." for topic in TOPICS]
    questions += [f"{document()[: DOCUMENT[size]]}\n\n{question}" for question in QUESTIONS]
    report.settings |= {"clients": CLIENTS[size], "seconds": SECONDS[size], "tokens": TOKENS[size]}
    for name, command in servers(report.model).items():
        with serving(command) as (address, process):
            found = load(address, process.pid, questions, CLIENTS[size], SECONDS[size], TOKENS[size])
        tell(report, name, found)


def servers(model: str) -> dict[str, list[str]]:
    """How each is started; PORT stands for the port."""
    started = {"thresher": [sys.executable, "-m", "thresher", "serve", model, "--port", "PORT"]}
    python = os.environ.get("LLAMA_CPP_PYTHON") or (sys.executable if installed("llama-cpp-python") else "")
    if python and not Path(model).exists():
        path = str(catalogue.gguf_file(model))
        # By default it breaks off an answer when the next request comes.
        calm = ["--n_ctx", "8192", "--interrupt_requests", "false"]
        started["llama.cpp"] = [python, "-m", "llama_cpp.server", "--model", path, "--port", "PORT", *calm]
    return started


@contextmanager
def serving(command: list[str]) -> Iterator[tuple[str, subprocess.Popen]]:
    """A server that is ready to answer, and its address."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    process = subprocess.Popen([part.replace("PORT", str(port)) for part in command], stderr=subprocess.DEVNULL)
    address, end = f"http://127.0.0.1:{port}", time.monotonic() + PATIENCE
    try:
        while True:
            try:
                httpx.get(f"{address}/v1/models")
                break
            except httpx.TransportError:
                if process.poll() is not None or time.monotonic() > end:
                    raise RuntimeError(f"{' '.join(command)}: the server did not start") from None
                time.sleep(0.2)
        yield address, process
    finally:
        process.terminate()
        process.wait()


def load(address: str, pid: int, questions: list[str], clients: int, seconds: float, tokens: int) -> Found:
    """Every question alone, then all clients for so long; a client that has begun gets its answer to the end."""
    found, numbers, over = Found(), count(), Event()
    with httpx.Client(base_url=address, timeout=PATIENCE) as client:
        found.alone = [ask(client, question, tokens)[0] for question in questions]

    def client_asks(_: int) -> None:
        with httpx.Client(base_url=address, timeout=PATIENCE) as client:
            while time.monotonic() < end:
                which = next(numbers) % len(questions)
                try:
                    text, first = ask(client, questions[which], tokens)
                except (httpx.HTTPError, ValueError):
                    found.failed += 1
                    continue
                found.answers.append((which, text))
                found.first.append(first)

    def watch() -> None:
        while not over.wait(EVERY):
            found.memory.append(resident(pid))

    watching, started = Thread(target=watch), time.monotonic()
    end = started + seconds
    watching.start()
    with ThreadPoolExecutor(clients) as pool:
        list(pool.map(client_asks, range(clients)))
    found.seconds = time.monotonic() - started
    over.set()
    watching.join()
    return found


def ask(client: httpx.Client, question: str, tokens: int) -> tuple[str, float]:
    """The streamed answer, and the seconds to its first token. ValueError where the server refuses."""
    body = {"messages": [{"role": "user", "content": question}], "max_tokens": tokens, "temperature": 0, "stream": True}
    text, first, asked = "", 0.0, time.monotonic()
    with client.stream("POST", "/v1/chat/completions", json=body) as stream:
        if stream.status_code != 200:
            raise ValueError(f"got status {stream.status_code}")
        for line in stream.iter_lines():
            if line.startswith("data: {"):
                for choice in json.loads(line[6:])["choices"]:
                    if piece := choice["delta"].get("content"):
                        first = first or time.monotonic() - asked
                        text += piece
    return text, first or time.monotonic() - asked


def resident(pid: int) -> int:
    """Bytes of a process in physical memory, 0 where the system does not say."""
    try:
        status = Path(f"/proc/{pid}/status").read_text(encoding="ascii")
    except OSError:
        return 0
    line = re.search(r"VmRSS:\s*(\d+)", status)
    return 1024 * int(line[1]) if line else 0


def tell(report: Report, name: str, found: Found) -> None:
    wrong = sum(text != found.alone[which] for which, text in found.answers)
    report.row(f"{name}: requests", [len(found.answers) / found.seconds], unit="/s")
    report.row(f"{name}: first token", found.first, unit="s")
    ranks: Any = quantiles(found.first, n=20) if len(found.first) > 1 else found.first
    report.row(f"{name}: first token, 95 of 100", [ranks[-1]], unit="s")
    report.row(f"{name}: answers that differ from those alone", [float(wrong)], unit="")
    report.row(f"{name}: requests that failed", [float(found.failed)], unit="")
    if memory := [held for held in found.memory if held]:
        third = memory[len(memory) // 3 :] or memory
        report.row(f"{name}: memory, after a third of the time", [held / 2**20 for held in third], unit="MiB")
        report.row(f"{name}: memory, at the end over after a third", [memory[-1] / third[0]])


if __name__ == "__main__":
    main("load", run)
