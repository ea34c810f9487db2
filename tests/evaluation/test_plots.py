"""The pictures: which there are, what they show, and the command that draws them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

pytest.importorskip("matplotlib")

from thresher.evaluation import plots
from thresher.evaluation.folder import FORMAT


def line(method: str, policy: dict[str, str], document: int, score: float, **fields: Any) -> dict[str, Any]:
    return {
        "task": "niah", "length": 1024, "document": str(document), "ask": 0, "question": "known", "method": method,
        "prompt_tokens": 1000, "new_tokens": 5, "score": score, "policy": policy, "keys_read": 5, "keys_visible": 10,
        "keys_evicted": 0, "cache_bytes": 2**20, "time_to_first_token": 1.5, "facts": {"depth": document / 4}, **fields,
    }  # fmt: skip


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    rows = [
        line(method, policy, document, score, length=length)
        for length in (1024, 2048)
        for document in range(5)
        for method, policy, score in (
            ("dense", {}, 1.0),
            ("keydiff:budget=0.5", {"evict": "keydiff:budget=500"}, float(document > 0)),
            ("keydiff:budget=0.25", {"evict": "keydiff:budget=250"}, float(document > 2)),
        )
    ]
    bands = [{"first": 0, "end": 512, "tokens": 511, "nll": 511.0}]
    about = {"task": "perplexity", "length": 1024, "document": "0", "ask": 0, "question": "known", "facts": {}}
    rows.append({**about, "method": "dense", "prompt_tokens": 512, "bands": bands, "policy": {}})
    (tmp_path / "predictions.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "meta.json").write_text(json.dumps({"format": FORMAT, "request": {"model": {"name": "models/tiny"}}}))
    return tmp_path


def test_every_picture_is_a_png_and_an_svg_that_says_what_it_shows(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import matplotlib as mpl

    monkeypatch.setitem(mpl.rcParams, "svg.fonttype", "none")  # letters stay letters
    files = plots.plot(folder)
    names = {"needles-known", "budget-known", "first-token-known", "cache-known", "perplexity"}
    assert {path.name for path in files} == {f"{name}.{kind}" for name in names for kind in ("png", "svg")}
    assert all(path.read_bytes().startswith(b"\x89PNG") for path in files if path.suffix == ".png")
    shown = {path.stem: "\n".join(ElementTree.parse(path).getroot().itertext()) for path in files[1::2]}
    assert all("tiny" in text and "models/" not in text for text in shown.values())
    for text in ("keydiff:budget=0.25", "2,048", "75%", "0%", "100%"):
        assert text in shown["needles-known"]
    for text in ("keydiff", "dense", "niah, 1,024 tokens, n = 5"):
        assert text in shown["budget-known"]
    assert "0-512" in shown["perplexity"]
    before = [path.read_bytes() for path in files]
    assert [path.read_bytes() for path in plots.plot(folder)] == before


def test_budgets_are_points_of_a_line() -> None:
    assert plots.family("keydiff:budget=0.5") == "keydiff"
    assert plots.family("quoka:budget=64,n_queries=64 + caote:budget=0.5,base=tova") == (
        "quoka:n_queries=64 + caote:base=tova"
    )
    assert plots.family("dense") == "dense"
    assert plots.share(line("dense", {}, 0, 1)) == 1
    assert plots.share(line("x", {"select": "quoka:budget=250", "evict": "h2o:budget=900"}, 0, 1)) == 0.25
    assert plots.share(line("x", {"evict": "h2o:budget=9000"}, 0, 1)) == 1
    assert plots.share(line("x", {"select": "quoka:budget=0.125,of=past"}, 0, 1)) == 0.125


def test_a_folder_that_is_no_run_is_named(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"nothing: got no meta.json, wanted the folder of a run"):
        plots.plot(tmp_path / "nothing")
    (folder / "predictions.jsonl").write_text('{"task": "niah"}\n')
    with pytest.raises(ValueError, match="line 1: got no length, document"):
        plots.plot(folder)
    (folder / "predictions.jsonl").write_text("")
    with pytest.raises(ValueError, match="got a run without a prediction"):
        plots.plot(folder)
    (folder / "meta.json").write_text('{"format": "x"}')
    with pytest.raises(ValueError, match=r"got a meta.json of another kind"):
        plots.plot(folder)
