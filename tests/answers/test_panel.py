"""Sources vote: with readers that need no model, so that what each source says is known."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

import reference
from thresher.answers import panel
from thresher.answers.reader import Said
from thresher.answers.sources import Source, read_sources


class Told:
    """A reader whose sources say what a table has; it notes who was asked."""

    def __init__(self, table: dict[str, dict[str, str | None]]) -> None:
        self.table = table
        self.asked: list[list[str]] = []

    def answers(self, asked: Sequence[tuple[Source, str]]) -> list[Said]:
        self.asked.append([source.name for source, _ in asked])
        return [Said(self.table[source.name].get(question)) for source, question in asked]


def same(question: str, a: str, b: str) -> bool:
    return a.lower() == b.lower()


def sources(*names: str) -> list[Source]:
    return [Source(name, ("text",)) for name in names]


def test_the_estimate_is_that_of_the_reference_on_clusters() -> None:
    table = {
        "a": {"q": "Red", "r": "one", "s": None},
        "b": {"q": "RED", "r": "One", "s": "x"},
        "c": {"q": "blue", "r": "one", "s": "x"},
    }
    got = panel.estimate(sources("a", "b", "c"), ["q", "r", "s"], Told(table), same)
    wanted = reference.estimate_reliability(np.array([[0, 0, -1], [0, 0, 0], [1, 0, 0]]))
    assert got == dict(zip("abc", wanted.tolist(), strict=True))
    assert got["c"] < got["a"] == got["b"] == 2.0


def test_asking_walks_by_weight_until_kappa_know() -> None:
    reader = Told({"a": {"q": "no"}, "b": {"q": None}, "c": {"q": "Yes"}, "d": {"q": "yes"}, "e": {"q": "no"}})
    weights = {"c": 3.0, "b": 2.0, "d": 1.5, "a": 1.2, "e": -1.0}
    verdict = panel.ask(sources(*"abcde"), "q", reader, same, weights=weights, kappa=3)
    assert reader.asked == [["c", "b", "d"], ["a"]]
    assert verdict.answer == "Yes"  # the first of its cluster speaks for it
    assert dict(verdict.clusters) == {"c": 0, "b": -1, "d": 0, "a": 1}
    assert verdict.not_read == {"e": "3 sources of at least its weight knew an answer"}
    told = json.loads(json.dumps(verdict.as_dict()))
    assert [each["source"] for each in told["sources"]] == ["c", "b", "d", "a"]
    assert told["sources"][0] == {
        "source": "c",
        "weight": 3.0,
        "cluster": 0,
        "text": "Yes",
        "why": "",
        "support": None,
        "passages": [],
    }


def test_weights_outvote_heads_and_unknown_sources_have_the_start() -> None:
    reader = Told({"a": {"q": "x"}, "b": {"q": "y"}, "c": {"q": "y"}})
    assert panel.ask(sources(*"abc"), "q", reader, same).answer == "y"
    verdict = panel.ask(sources(*"abc"), "q", reader, same, weights={"a": 5.0})
    assert (verdict.answer, verdict.weights["b"]) == ("x", 1.0)


def test_nobody_knows() -> None:
    verdict = panel.ask(sources("a", "b"), "q", Told({"a": {}, "b": {}}), same)
    assert verdict.answer is None
    assert set(verdict.clusters.values()) == {-1}


def test_an_answer_joins_the_first_cluster_whose_first_member_it_is_like() -> None:
    def near(question: str, a: str, b: str) -> bool:
        return abs(int(a) - int(b)) <= 1

    assert panel.clusters("q", ["5", None, "6", "7", "5"], near) == [0, -1, 0, 1, 0]  # 7 is like 6, but not like 5


def test_a_hostile_source_changes_its_own_vote_only(folder: Path) -> None:
    """The reader repeats whatever a text tells it: what it says for one source follows from that source's text."""

    class Gullible:
        def answers(self, asked: Sequence[tuple[Source, str]]) -> list[Said]:
            return [Said("2020" if "2020" in source.passages[0] else "1870") for source, _ in asked]

    found = read_sources(folder)
    verdict = panel.ask(found, "When?", Gullible(), same)
    assert verdict.answer == "1870"
    assert {name: said.text for name, said in verdict.said.items()} == {
        "atlas": "1870",
        "diary": "1870",
        "poster": "2020",
    }


def test_weights_are_kept_in_a_file(tmp_path: Path) -> None:
    path = tmp_path / "weights.json"
    panel.save_weights(path, {"a": 1.5, "ü": -1.0}, 20)
    assert panel.load_weights(path) == {"a": 1.5, "ü": -1.0}
    for text, line in [
        ("[]", "got a JSON list"),
        ("{}", "got format None, wanted thresher-weights-1"),
        ('{"format": "thresher-weights-1", "weights": {"a": "1"}}', "wanted a finite number for each source"),
        ('{"format": "thresher-weights-1", "weights": {"a": NaN}}', "wanted a finite number for each source"),
        ('{"format": "thresher-weights-1", "weights": {"a": true}}', "wanted a finite number for each source"),
        ("\udcff", "not JSON"),
    ]:
        path.write_bytes(text.encode("utf-8", "surrogateescape"))
        with pytest.raises(ValueError, match=rf"weights\.json: .*{line}"):
            panel.load_weights(path)


def test_queries_are_lines_of_text_or_json() -> None:
    assert panel.read_queries('When?\n\n  Who?\n{"question": "Why?", "answer": 3}\n', "f") == ["When?", "Who?", "Why?"]
    for text, line in [("\n", "f: got no line"), ('{"q": 1}', "f: line 1: got None"), ("{", "f: line 1: got text")]:
        with pytest.raises(ValueError, match=line):
            panel.read_queries(text, "f")


def test_no_queries_no_estimate() -> None:
    with pytest.raises(ValueError, match="queries: got none"):
        panel.estimate(sources("a"), [], Told({}), same)
    with pytest.raises(ValueError, match="kappa: got 0"):
        panel.ask(sources("a"), "q", Told({}), same, kappa=0)
