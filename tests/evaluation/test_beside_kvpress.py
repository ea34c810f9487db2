"""kvpress gets the very token ids of our run, and our scorers judge what it says. A stand-in answers here."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import thresher
from thresher.evaluation.folder import load

beside = pytest.importorskip("benchmarks.beside_kvpress")

STAND_IN = """
import json, sys
for line in sys.stdin:
    asked = json.loads(line)
    open(sys.argv[2], "a").write(line)
    print(json.dumps(ANSWER if asked["method"] == "keydiff" else asked["stops"][:1]), flush=True)
"""


def test_the_same_ids_are_asked_and_judged(
    directory: Path, llm: thresher.LanguageModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, heard, script = tmp_path / "run", tmp_path / "heard", tmp_path / "stand_in.py"
    thresher.evaluate(
        str(directory), tasks=["niah"], methods="dense", lengths=[400], limit=2, questions=["known"],
        backend="reference", out=run,
    )  # fmt: skip
    ours = load(run)[1]
    right = llm.tokenizer.encode(ours[0]["wanted"][0]).ids
    script.write_text(STAND_IN.replace("ANSWER", json.dumps(right)), encoding="utf-8")
    monkeypatch.setenv("KVPRESS_PYTHON", sys.executable)
    monkeypatch.setattr(beside, "SCRIPT", script)
    start = subprocess.Popen
    monkeypatch.setattr(beside.subprocess, "Popen", lambda command, **more: start([*command, str(heard)], **more))

    rows = beside.run(run, "cpu", "float32", jobs=2)

    asked = [json.loads(line) for line in heard.read_text(encoding="utf-8").splitlines()]
    assert len(rows) == len(asked) == 2 * len(beside.METHODS)
    read = {hashlib.sha256(np.asarray(each["ids"], np.int64).tobytes()).hexdigest() for each in asked}
    assert read == {row["prompt_sha256"] for row in ours}
    about_first = [row for row in rows if row["document"] == ours[0]["document"]]
    assert {row["method"]: row["score"] for row in about_first} == {
        name: float(name.startswith("keydiff")) for name in beside.METHODS
    }
