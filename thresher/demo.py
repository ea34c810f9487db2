"""The demo: a long public-domain text into which one sentence was planted, read without a method and with one."""

from __future__ import annotations

from importlib.resources import files
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from thresher.generate import Stats

MODEL = "smollm2-135m-instruct"
FACT = "The password to the treasure vault is 7421."
SECRET = "7421"
SELECT = "quoka:budget=2048"  # holds on the demo's model, where every eviction that was tried fails
QUESTION = "What is the password to the treasure vault?"


def document(depth: float = 0.5) -> str:
    """The Tempest, Act 1, with FACT as a paragraph of its own at `depth` of its length (0 the start, 1 the end)."""
    text = (files("thresher") / "data" / "the-tempest.txt").read_text(encoding="utf-8")
    paragraphs = text.split("\n\n")
    paragraphs.insert(round(depth * len(paragraphs)), FACT)
    return "\n\n".join(paragraphs)


def verdict(method: str, answers: tuple[str, str], stats: tuple[Stats, Stats]) -> str:
    """What the two answers show, without a method and with it, in a sentence or two."""
    dense, thinned = (SECRET in answer for answer in answers)
    if not dense:
        return (
            "The model does not find the sentence even without a method, so this says nothing about one: try a larger "
            "model."
        )
    if not thinned:
        return (
            f"{method} lost the sentence: what it left out was needed. Try a larger budget, another method or a larger "
            "model; `thresher eval` measures which of them holds."
        )
    before, after = stats
    saved = []
    if sum(after.keys_read) < sum(after.keys_visible):
        saved.append(f"read {sum(after.keys_read) / sum(after.keys_visible):.0%} of the keys")
    if after.cache_bytes < before.cache_bytes:
        saved.append(f"held {after.cache_bytes / before.cache_bytes:.0%} of the cache")
    if sum(after.neurons_run) < sum(after.neurons_total):
        saved.append(f"ran {sum(after.neurons_run) / sum(after.neurons_total):.0%} of the neurons")
    return (
        f"{method} {' and '.join(saved) or 'left nothing out'}, and found the sentence as well. One question is no "
        "proof: `thresher eval` asks many."
    )
