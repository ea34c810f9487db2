"""The demo's document: a long public-domain text into which one sentence was planted."""

from __future__ import annotations

from importlib.resources import files

MODEL = "smollm2-135m-instruct"
FACT = "The password to the treasure vault is 7421."
QUESTION = "What is the password to the treasure vault?"


def document(depth: float = 0.5) -> str:
    """The Tempest, Act 1, with FACT as a paragraph of its own at `depth` of its length (0 the start, 1 the end)."""
    text = (files("thresher") / "data" / "the-tempest.txt").read_text(encoding="utf-8")
    paragraphs = text.split("\n\n")
    paragraphs.insert(round(depth * len(paragraphs)), FACT)
    return "\n\n".join(paragraphs)
