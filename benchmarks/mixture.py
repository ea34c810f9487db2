"""Mixtures of experts beside transformers, in speed and memory, from the same random weights (shape.py) in one run.

"experts on disk" is ours with less memory for experts than they take, a third in bfloat16: the others are read when a
token is sent to them. A random router sends tokens to all experts alike, so that little is gained by keeping some.
Every contestant is a process of its own, as in peers.py. A full run takes about ten minutes on two cores; with
--families and --dtypes a part of it.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from accel.cpu import THREADS
from benchmarks import common, shape
from benchmarks.common import Report, parser
from benchmarks.peers import race, words

FAMILIES = {"full": ("qwen3_moe", "deepseek_v3"), "short": ("qwen3_moe", "axk1"), "smallest": ("axk1",)}
DTYPES = {"full": ("float32", "bfloat16"), "short": ("float32",), "smallest": ("float32",)}
LENGTH = {"full": 2048, "short": 512, "smallest": 40}
NEW = {"full": 64, "short": 16, "smallest": 3}
ROUNDS = {"full": 3, "short": 2, "smallest": 1}
BUDGET = {"full": 150 << 20, "short": 150 << 20, "smallest": 1 << 20}  # bytes for experts
SMALLER = {
    "full": {},
    "short": {},
    "smallest": {"num_hidden_layers": 2, "vocab_size": 500, "moe_intermediate_size": 16},
}
PEERLESS = ("axk1",)  # transformers does as in deepseek_v3


def run(report: Report, *, families: Sequence[str] | None = None, dtypes: Sequence[str] | None = None) -> None:
    """All contestants on each family's model in each dtype."""
    size = report.size
    report.settings = {"prompt_tokens": LENGTH[size], "new_tokens": NEW[size], "expert_memory": BUDGET[size]}
    report.settings["failed"] = {}
    for family in families or FAMILIES[size]:
        with TemporaryDirectory() as folder:
            shape.write(Path(folder), family, report.model, **SMALLER[size])
            report.settings[f"{family} on disk"] = sum(file.stat().st_size for file in Path(folder).iterdir())
            vocabulary = {**shape.SHAPES[family], **SMALLER[size]}["vocab_size"]
            ids = np.random.default_rng(0).integers(0, vocabulary, LENGTH[size]).tolist()
            for dtype in dtypes or DTYPES[size]:
                found = _contestants(folder, family, dtype, BUDGET[size])
                race(report, found, f"{family}, {dtype}", THREADS, ids, NEW[size], ROUNDS[size])


def _contestants(model: str, family: str, dtype: str, budget: int) -> dict[str, tuple[str, dict[str, Any]]]:
    """Name -> (Python, settings)."""
    base = {"model": model, "dtype": dtype}
    ours = {**base, "program": "thresher"}
    found = {"thresher": ours, "experts on disk": {**ours, "expert_memory": budget}}
    if family not in PEERLESS:
        found["transformers"] = {**base, "program": "transformers"}
    return {name: (sys.executable, settings) for name, settings in found.items()}


def main() -> None:
    known = parser("mixture")
    known.add_argument("--families", type=words, metavar="NAME,NAME", help="qwen3_moe, deepseek_v3, axk1")
    known.add_argument("--dtypes", type=words, metavar="DTYPE,DTYPE", help="default: float32,bfloat16")
    common.main("mixture", run, known)


if __name__ == "__main__":
    main()
