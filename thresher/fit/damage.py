"""What each layer costs when it alone is thinned: the other way, beside the attention's reach, to share out a density.

    damage_l = mean over tokens of KL(p ‖ p_l),   p the next token's distribution of the dense model,
                                                  p_l that with the oracle's half of the neurons in layer l alone

WORK/damage.json has the layers that are done, so that a run that was killed goes on with the next.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

import reference
from reference import FastForward, Model, Policy
from thresher.state import write_atomically

TOKENS = 1024  # of a prompt that are read: enough for six sparse blocks of 128
PROMPTS = 2  # that are read at most


def measure(
    dense: Callable[[], Model],
    layers: int,
    prompts: np.ndarray,
    folder: Path,
    *,
    density: float,
    block: int,
    progress: Callable[[int, int], None] | None = None,
) -> np.ndarray:
    """The damage of every layer on prompts (P, T), which were not trained on: (L,) float64 of at least 0.

    `dense` gives the model, which is not asked for where all is measured.
    """
    file = folder / "damage.json"
    done: list[float] = json.loads(file.read_text()) if file.exists() else []
    texts = [ids[:TOKENS] for ids in prompts[:PROMPTS]]
    if len(done) < layers:
        model = dense()
        whole = [_Distribution(_logits(model, Policy(), ids)) for ids in texts]
    for layer in range(len(done), layers):
        part = FastForward(density, neurons="oracle", block=block, dense_first=block, dense_last=block)
        policy = Policy(overrides={layer: Policy(ffn=part)})
        found = [was.divergence(_logits(model, policy, ids)) for was, ids in zip(whole, texts, strict=True)]
        done.append(float(np.concatenate(found).mean()))
        write_atomically(file, lambda path: path.write_text(json.dumps(done)))
        if progress is not None:
            progress(layer + 1, layers)
    return np.maximum(done, 0)  # rounding


def _logits(model: Model, policy: Any, ids: np.ndarray) -> np.ndarray:
    return reference.prefill(model, reference.new_state(model, policy), ids, every=True)


class _Distribution:
    """The next token's distribution after each token of a text, from logits (T, V)."""

    def __init__(self, logits: np.ndarray) -> None:
        logs = logits - _log_total(logits)[:, None]
        self.p = np.exp(logs)
        self.negative_entropy = np.einsum("tv,tv->t", self.p, logs)

    def divergence(self, logits: np.ndarray) -> np.ndarray:
        """KL(p ‖ q) = Σ p ln p − Σ p · logits + ln Σ e^logits, for q of other logits (T, V) -> (T,)."""
        return self.negative_entropy - np.einsum("tv,tv->t", self.p, logits) + _log_total(logits)


def _log_total(logits: np.ndarray) -> np.ndarray:
    """ln Σ_v e^logits, without overflow: (T, V) -> (T,)."""
    peak = logits.max(axis=1)
    return peak + np.log(np.exp(logits - peak[:, None]).sum(axis=1))
