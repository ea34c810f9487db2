"""A document of 4,000 tokens read by SmolLM2 under each policy: facts planted in it are still found."""

from __future__ import annotations

from itertools import takewhile

import pytest

import thresher
from loaders import catalogue
from thresher.demo import document

NAME = "smollm2-135m-instruct"
FACTS = (  # sentence, question, what the answer must hold; from the first tenth of the document to the last
    ("The password to the treasure vault is 7421.", "what is the password to the treasure vault?", "7421"),
    (
        "The secret ingredient of the cook's soup is cinnamon.",
        "what is the secret ingredient of the cook's soup?",
        "cinnamon",
    ),
    ("The lighthouse keeper's dog is called Biscuit.", "what is the lighthouse keeper's dog called?", "Biscuit"),
    ("The old bell of the ship was made in Lisbon.", "in which city was the old bell of the ship made?", "Lisbon"),
    ("The magic word that opens the cave is pineapple.", "what is the magic word that opens the cave?", "pineapple"),
)
POLICIES = {
    "dense": None,
    "quoka at 25 %": thresher.Policy(select=thresher.Quoka(0.25)),
    "keydiff at 50 %": thresher.Policy(evict=thresher.KeyDiff(0.5)),
    "both": thresher.Policy(select=thresher.Quoka(0.25), evict=thresher.KeyDiff(0.5)),
}

pytestmark = [
    pytest.mark.real,
    pytest.mark.skipif(not catalogue.is_pulled(NAME), reason=f"{NAME} is not pulled"),
]


@pytest.fixture(scope="module")
def llm() -> thresher.LanguageModel:
    return thresher.load(NAME)


def questions(llm: thresher.LanguageModel) -> tuple[list[int], list[list[int]]]:
    """Token ids of the document with the facts in it, and for each fact those of the rest of the prompt."""
    paragraphs, tokens = [], 0
    for paragraph in document(1.0).split("\n\n"):  # the demo's own fact stands at its end
        tokens += len(llm.encode(paragraph + "\n\n"))
        if tokens > 3900:
            break
        paragraphs.append(paragraph)
    places = [round((n + 0.5) / len(FACTS) * len(paragraphs)) for n in range(len(FACTS))]
    for place, (fact, _, _) in reversed(list(zip(places, FACTS, strict=True))):
        paragraphs.insert(place, fact)
    text = "\n\n".join(paragraphs)
    prompts = [
        llm.encode([{"role": "user", "content": f"Read this text:\n\n{text}\n\nAccording to the text, {question}"}])
        for _, question, _ in FACTS
    ]
    shared = sum(1 for _ in takewhile(lambda column: len(set(column)) == 1, zip(*prompts)))  # noqa: B905
    return prompts[0][:shared], [prompt[shared:] for prompt in prompts]


@pytest.mark.parametrize("name", POLICIES)
def test_planted_facts_are_found(llm: thresher.LanguageModel, name: str) -> None:
    """The password, the soup and the cave: those that the dense model finds (it misses the dog and the bell).

    The document is read once, before any question is known, and every question goes on from a copy of that state.
    """
    shared, rest = questions(llm)
    assert len(shared) > 4000
    state = llm.prefill(shared, policy=POLICIES[name])
    found = []
    for tokens, (_, _, wanted) in zip(rest, FACTS, strict=True):
        own = state.copy()
        llm.prefill(tokens, state=own)
        found.append(wanted in "".join(llm.generate(own, max_new_tokens=16)))
    assert (found[0], found[1], found[4]) == (True, True, True)
    if name != "dense":
        read, visible = (sum(getattr(state.counts, field)) for field in ("keys_read", "keys_visible"))
        assert (read < 0.5 * visible) == ("quoka" in name)
        assert max(state.cache.sizes) == (len(shared) if "quoka" in name else (len(shared) + 1) // 2)
