from __future__ import annotations

from pathlib import Path

import pytest

import thresher
from tests.checkpoints import write_checkpoint
from thresher.evaluation import data
from thresher.evaluation.samples import Tools

SENTENCES = ["Rain fell on the quay.", "Nobody spoke!", "Was it late?", "The boats came home one by one."]
QASPER = {
    "id": "p1_0",
    "title": "On Rain",
    "abstract": "We measure rain.",
    "full_text": {"section_name": ["Intro", None], "paragraphs": [["It rains.", "Much."], ["It stops."]]},
}
REQUESTS = {
    "squad": [
        {"title": title, "query": f"Title: {title}\nBackground: {p}\nQuestion: {q}\nAnswer:", "answers_text": [a, a]}
        for title, p, q, a in [
            ("Quay", "The quay is long.", "How is the quay?", "long"),
            ("Quay", "The quay was built in 1870.", "When was it built?", "1870"),
            ("Moon", "The moon has no air.", "What is missing?", "air"),
        ]
    ],
    "drop": [{"question": "How many?", "answers": [["3", "4"], ["34"]], "passage": "They won 3 times."}],
    "qasper": [
        {**QASPER, "question_id": "a", "question": "Does it rain?", "answer": "Yes"},
        {**QASPER, "question_id": "a", "question": "Does it rain?", "answer": "Yes"},
        {**QASPER, "question_id": "b", "question": "Does it snow?", "answer": "No"},
    ],
    "math500": [{"index": 0, "problem": "Half of 1?", "solution": r"It is $\boxed{\frac{1}{2}}.$", "level": 1}],
    "gsm8k": [{"id": n, "question": f"What is {n} + {n}?", "short_answer": str(2 * n)} for n in range(5)],
}


@pytest.fixture(autouse=True)
def packages(monkeypatch: pytest.MonkeyPatch) -> None:
    """Data as the packages have it, a few lines of each."""
    monkeypatch.setattr(data, "essay_words", lambda: (" ".join(SENTENCES) * 3).split())
    adjectives, nouns, verbs = ([f"{kind}{n}" for n in range(40)] for kind in ("red", "cat", "run"))
    monkeypatch.setattr(data, "word_lists", lambda: (nouns, adjectives, verbs))
    monkeypatch.setattr(data, "questions", lambda name: iter(REQUESTS[name]))


@pytest.fixture(scope="session")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_checkpoint(tmp_path_factory.mktemp("checkpoint") / "small", max_position_embeddings=6000)


@pytest.fixture(scope="session")
def llm(directory: Path) -> thresher.LanguageModel:
    return thresher.load(directory, backend="reference")


@pytest.fixture
def tools(llm: thresher.LanguageModel) -> Tools:
    return Tools(llm, seed=0)
