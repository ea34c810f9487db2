"""How likely a model finds yes against no, without writing either."""

from __future__ import annotations

import numpy as np

from thresher.model import LanguageModel
from thresher.state import State


def yes(llm: LanguageModel, state: State) -> float:
    """P(yes) / (P(yes) + P(no)) of the token after a state, in lower case and capitalised, with a space before or none.

    Tokens with which both words begin say nothing and are left out; 0.5 where no others are left.
    """
    logits = llm.model.backend.to_numpy(state.logits).astype(np.float64)
    spelled = [_first_tokens(llm, word) for word in ("yes", "no")]
    p = [np.logaddexp.reduce(logits[sorted(a - b)]) for a, b in (spelled, spelled[::-1]) if a - b]
    return float(1 / (1 + np.exp(np.clip(p[1] - p[0], -500, 500)))) if len(p) == 2 else 0.5


def _first_tokens(llm: LanguageModel, word: str) -> set[int]:
    spelled = (word, word.capitalize(), f" {word}", f" {word.capitalize()}")
    return {llm.tokenizer.encode(text, add_special_tokens=False).ids[0] for text in spelled}
