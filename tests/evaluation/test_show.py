"""The page of a policy: its figures from a trace drawn by hand, and the file that holds them."""

from __future__ import annotations

import base64
import json
import re
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest

import thresher
from reference import Trace
from reference.trace import Eviction, Read
from thresher.show import Choices, page


def test_choices_follow_from_a_trace() -> None:
    """One layer, two heads, chunks of 2 over 6 tokens: the second chunk reads all, the third one token; after the
    second, head 0 forgets token 0 and head 1 token 3."""
    trace = Trace(
        reads=[Read(0, 0, None), Read(0, 2, None), Read(0, 4, np.array([[1], [2]]))],
        evictions=[Eviction(0, 2, np.array([[0], [3]]), np.zeros((2, 1)))],
    )
    positions = [np.array([[1, 2, 3, 4, 5], [0, 1, 2, 4, 5]])]
    found = Choices.of(trace, positions, tokens=6, chunk=2)
    assert found.kept.tolist() == [[[False, True, True, True, True, True], [True, True, True, False, True, True]]]
    assert found.read.tolist() == [[[0.5, 1, 0, 0, 1, 1], [0.5, 0.5, 1, 0, 1, 1]]]  # nothing comes after the last two


def test_what_is_forgotten_is_not_read_by_a_chunk_that_reads_all() -> None:
    trace = Trace(
        reads=[Read(0, at, None) for at in (0, 1, 2)], evictions=[Eviction(0, 1, np.array([[0]]), np.zeros((1, 1)))]
    )
    found = Choices.of(trace, [np.array([[1, 2]])], tokens=3, chunk=1)
    assert found.read.tolist() == [[[0.5, 1, 1]]]


def test_the_page_holds_text_figures_and_both_answers(llm: thresher.LanguageModel, tmp_path: Path) -> None:
    text = "Mara keeps bees </script> on the roof & sings.\n" * 6
    policy = thresher.Policy(thresher.Quoka(budget=32), thresher.KeyDiff(budget=64))
    figures = page(llm, text, "Who?", policy, tmp_path / "page.html", chunk=32, max_new_tokens=4)
    whole = (tmp_path / "page.html").read_text(encoding="utf-8")
    data = json.loads(re.findall(r'id="data">(.*?)</script>', whole, re.DOTALL)[0])
    assert data == figures
    assert text in "".join(data["tokens"])
    assert not re.search(r'(src|href)="|https?://(?!www\.w3\.org/2000/svg)', whole)  # nothing from elsewhere
    size = data["layers"] * data["heads"] * len(data["tokens"])
    kept = np.frombuffer(base64.b64decode(data["values"]["kept"]), np.uint8).reshape(data["layers"], data["heads"], -1)
    assert kept.size == size
    assert set(np.unique(kept)) == {0, 255}
    assert (kept.sum(axis=2) == 64 * 255).all()
    assert list(data["answers"]) == ["dense", "quoka:budget=32 + keydiff:budget=64"]
    dense = llm.generate([{"role": "user", "content": f"{text}Who?"}], max_new_tokens=4, chunk=32)
    assert data["answers"]["dense"]["text"] == "".join(dense)
    assert [step["at"] for step in data["timeline"]] == list(range(0, len(data["tokens"]), 32))
    assert max(n for step in data["timeline"] for n in step["read"]) == 32


def test_a_policy_that_leaves_nothing_out_has_no_page(llm: thresher.LanguageModel, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="policy: got none that selects or evicts"):
        page(llm, "x", "y", thresher.Policy(), tmp_path / "page.html")
    assert not list(tmp_path.iterdir())


@pytest.mark.skipif(shutil.which("chromium") is None, reason="no chromium here")
def test_a_browser_shades_every_token_and_draws_every_chunk(llm: thresher.LanguageModel, tmp_path: Path) -> None:
    policy = thresher.Policy(evict=thresher.KeyDiff(budget=64))
    figures = page(llm, "Mara & <b>Otto</b>. " * 12, "Who?", policy, tmp_path / "page.html", chunk=32, max_new_tokens=4)
    options = ["--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path / 'profile'}", "--dump-dom"]
    command = ["chromium", *options, "--virtual-time-budget=5000", (tmp_path / "page.html").as_uri()]
    dom = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True).stdout
    shown = [int(share) for share in re.findall(r'title="token \d+: (\d+) %"', dom)]
    kept = np.frombuffer(base64.b64decode(figures["values"]["kept"]), np.uint8).reshape(-1, len(figures["tokens"]))
    assert shown == pytest.approx((100 * kept.mean(axis=0) / 255).tolist(), abs=0.51)
    assert dom.count("<rect ") == 2 * len(figures["timeline"])
    assert "<b>Otto" not in dom.partition('id="text"')[2].partition("<script")[0]  # the text is no markup
    assert all(f"<b>{label}</b>" in dom for label in figures["answers"])
