"""FastForward for all blocks of a pass, one after another: each fills the card by itself."""

from __future__ import annotations

from typing import Any

from accel.cuda.ffn.call import sparse_ffn
from accel.cuda.ffn.predictor import predictor_scores
from accel.cuda.methods.topk import keep_top
from accel.cuda.runtime.arrays import F32, Array
from accel.cuda.runtime.moves import joined


def fastforward_blocks(
    x: Array,
    block: int,
    predictor: Any,
    keep: int,
    w_gate: Array,
    w_up: Array,
    w_down: Array,
    *,
    compensator: Any = None,
    act: str = "silu",
) -> tuple[Array, Array]:
    """FastForward for each `block` tokens of x (T, E): the output (T, E), and the neurons of each block (B, K)."""
    parts = [x[start : start + block] for start in range(0, len(x), block)]
    scores = joined([predictor_scores(part, predictor).split(0, 1) for part in parts], F32)
    chosen = keep_top(scores, keep)
    outputs = [
        sparse_ffn(part, w_gate, w_up, w_down, chosen[n], compensator=compensator, act=act)
        for n, part in enumerate(parts)
    ]
    return joined(outputs, outputs[0].dtype), chosen
