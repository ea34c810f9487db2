"""An answer as the definition of the loop gives it, for one sequence by itself: what a server must not change."""

from __future__ import annotations

import numpy as np

import reference
import thresher
from reference import Policy, Sampling


def alone(
    llm: thresher.LanguageModel,
    ids: list[int],
    count: int,
    *,
    policy: Policy | None = None,
    chunk: int = 8,
    sampling: Sampling | None = None,
    seed: int = 0,
) -> list[tuple[int, float]]:
    """`count` tokens after `ids`, or up to one that ends answers, which is left out; each with its log-probability."""
    model, rng = llm.model, np.random.default_rng(seed)
    state = reference.new_state(model, policy)
    reference.prefill(model, state, ids, chunk=chunk)
    drawn: list[tuple[int, float]] = []
    while len(drawn) < count:
        row = np.asarray(state.logits, np.float64)
        token = (sampling or Sampling()).draw(row, rng)
        if token in llm.stop_ids:
            break
        drawn.append((token, float(row[token] - row.max() - np.log(np.exp(row - row.max()).sum()))))
        reference.decode(model, [state], [token])
    return drawn
