"""The gated FFN from weights in 8 bits, map by map: groups of W_down run along the neurons, so that it cannot be read
neuron by neuron, as ffn/call.py does. Where neurons are chosen, all others count as zeros there."""

from __future__ import annotations

import numpy as np

from accel.cpu.ffn.activation import activated
from accel.cpu.linear.maps import linear, linear_each
from accel.cpu.runtime.arrays import Grouped, Matrix, readable_matrix
from reference.predictor import Compensator


def feed_forward_by_maps(
    x: np.ndarray,
    w_gate: Matrix,
    w_up: Matrix,
    w_down: Matrix,
    neurons: np.ndarray | None,
    silu: bool,
    compensator: Compensator | None,
) -> np.ndarray:
    """The FFN of x (T, E) by all neurons or by some (K,), plus the compensator's share: (T, E). Arguments fit."""
    gate, up = (_some(readable_matrix(w), neurons) for w in (w_gate, w_up))
    hidden, ups = linear_each(x, [(gate, None), (up, None)])  # (T, F or K)
    activated(hidden, silu, ups)
    if neurons is not None:
        every = np.zeros((len(x), w_down.shape[1]), np.float32)
        every[:, neurons] = hidden
        hidden = every
    y = linear(hidden, w_down)
    if compensator is not None:
        y += linear(activated(linear(x, compensator.c1), silu), compensator.c2)
    return y


def _some(weight: np.ndarray | Grouped, chosen: np.ndarray | None) -> np.ndarray | Grouped:
    """Chosen rows of a matrix."""
    if chosen is None:
        return weight
    return weight.some(chosen) if isinstance(weight, Grouped) else weight[chosen]
