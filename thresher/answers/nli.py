"""Support and sameness by a model of textual entailment that the user names, as in the paper (extra: nli).

Differs from RA-RAG: a question and its answer are put one after the other, and not rewritten as a statement.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from importlib.util import find_spec
from typing import Any

from reference.checks import require
from thresher.evaluation.scorers.words import normalise


class Entailment:
    """P(entailment) of a sequence classification model of transformers, from the Hugging Face hub or a directory."""

    def __init__(self, name: str | os.PathLike[str]) -> None:
        for package in ("torch", "transformers"):
            wanted = f"wanted {package} installed: try `pip install 'thresher[nli]'`"
            require(find_spec(package) is not None, f"nli: got {name} without {package}, {wanted}")
        import transformers

        self._tokenizer: Any = transformers.AutoTokenizer.from_pretrained(name)
        self._model: Any = transformers.AutoModelForSequenceClassification.from_pretrained(name).eval()
        labels = {int(n): str(label).lower() for n, label in self._model.config.id2label.items()}
        found = [n for n, label in labels.items() if label.startswith("entail")]
        require(len(found) == 1, f"nli: got {name} with labels {', '.join(labels.values())}, wanted one of entailment")
        self._label = found[0]

    def entails(self, premise: str, hypothesis: str) -> float:
        """How likely it is that the second follows from the first. A premise that is too long loses its end."""
        import torch

        given = self._tokenizer(premise, hypothesis, return_tensors="pt", truncation="only_first")
        with torch.inference_mode():
            return float(self._model(**given).logits[0].softmax(dim=-1)[self._label])

    def support(self, passages: Sequence[str], question: str, answer: str) -> float:
        """How far the passages say that this is the answer: for `Reader(support=…)`."""
        return self.entails("\n\n".join(passages), f"{question} {answer}")

    def same(self, question: str, a: str, b: str) -> bool:
        """Whether two answers are equal once normalised, or each follows from the other."""
        if normalise(a) == normalise(b):
            return True
        return all(self.entails(f"{question} {x}", f"{question} {y}") > 0.5 for x, y in ((a, b), (b, a)))
