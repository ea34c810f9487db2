"""FastForward for all blocks of a pass: every block has neurons of its own, and so its own list of weight rows.

The predictor pools and scores all blocks in one call, and ranks them in another. Blocks are spans of the feed-forward
kernels, so that all cores find work, and the weights of neurons that several blocks chose may still be in the caches.
"""

from __future__ import annotations

from functools import partial

import numpy as np

from accel.cpu.ffn.call import feed_forward
from accel.cpu.ffn.predictor import block_scores
from accel.cpu.linear.few_tokens import FEW
from accel.cpu.linear.maps import SPAN
from accel.cpu.linear.unit import WIDTH
from accel.cpu.methods.topk import keep_top
from accel.cpu.runtime.arrays import Matrix
from reference import contract
from reference.predictor import Compensator, Predictor


def fastforward_blocks(
    x: np.ndarray,
    block: int,
    predictor: Predictor,
    keep: int,
    w_gate: Matrix,
    w_up: Matrix,
    w_down: Matrix,
    *,
    compensator: Compensator | None = None,
    act: str = "silu",
) -> tuple[np.ndarray, np.ndarray]:
    """FastForward for each `block` tokens of x (T, E): the output (T, E), and the neurons of each block (B, K). As
    `reference.fastforward_blocks`."""
    chosen = keep_top(block_scores(x, block, predictor), keep)
    contract.sparse_ffn(x, w_gate, w_up, w_down, chosen[0], compensator, act)
    run = partial(feed_forward, w_gate=w_gate, w_up=w_up, w_down=w_down, silu=act == "silu", compensator=compensator)
    in_rows = all(isinstance(w, np.ndarray) for w in (w_gate, w_up, w_down))
    if in_rows and FEW < block <= SPAN and block % WIDTH == 0:  # spans of one call
        return run(x, chosen=chosen, block=block), chosen
    parts = [x[start : start + block] for start in range(0, len(x), block)]
    return np.concatenate([run(part, chosen=own[None]) for part, own in zip(parts, chosen, strict=True)]), chosen
