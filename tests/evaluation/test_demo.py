"""The demo says what its two answers show, whichever they are."""

from __future__ import annotations

import thresher
from thresher.demo import FACT, SECRET, SELECT, document, verdict
from thresher.generate import Stats

DENSE = Stats(cache_bytes=1000, keys_read=[100, 100], keys_visible=[100, 100], neurons_run=[9], neurons_total=[9])
QUOKA = Stats(cache_bytes=1000, keys_read=[30, 50], keys_visible=[100, 100], neurons_run=[9], neurons_total=[9])
KEYDIFF = Stats(cache_bytes=250, keys_read=[60, 60], keys_visible=[60, 60], neurons_run=[3], neurons_total=[9])


def test_the_secret_stands_in_the_document_once() -> None:
    assert SECRET in FACT
    assert document().count(SECRET) == 1
    thresher.Policy(select=SELECT)


def test_what_the_answers_show() -> None:
    right, wrong = "It is 7421.", "It is 742."
    assert "read 40% of the keys, and found the sentence" in verdict("quoka", (right, right), (DENSE, QUOKA))
    held = "held 25% of the cache and ran 33% of the neurons, and found the sentence"
    assert held in verdict("keydiff", (right, right), (DENSE, KEYDIFF))
    assert "quoka left nothing out, and found" in verdict("quoka", (right, right), (DENSE, DENSE))
    lost = verdict("keydiff", (right, wrong), (DENSE, KEYDIFF))
    assert lost.startswith("keydiff lost the sentence")
    assert "found" not in lost
    for second in (right, wrong):
        assert "says nothing about one" in verdict("quoka", (wrong, second), (DENSE, QUOKA))
