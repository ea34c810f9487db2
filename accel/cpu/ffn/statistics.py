"""What the baselines beside FastForward rank neurons by. The products are kernels, the rest is the reference's."""

from __future__ import annotations

import numpy as np

import reference
from accel.cpu.linear.maps import linear_each
from accel.cpu.runtime.arrays import Grouped, Matrix
from reference import contract
from reference.neurons import statistic_of


def griffin_statistic(x: np.ndarray, w_gate: Matrix, w_up: Matrix, *, act: str = "silu") -> np.ndarray:
    """GRIFFIN's statistic: x (T, E), w_gate and w_up (F, E) -> (F,) float32."""
    contract.griffin_statistic(x, w_gate, w_up, act)
    gate, up = linear_each(x, [(w_gate, None), (w_up, None)])  # (T, F)
    return statistic_of(gate, up, act)


def neuron_magnitudes(w_gate: Matrix, w_up: Matrix, w_down: Matrix) -> np.ndarray:
    """‖gate row‖ · ‖up row‖ · ‖down column‖: (F, E), (F, E), (E, F) -> (F,) float32."""
    stored = (w.rows(np.arange(len(w))) if isinstance(w, Grouped) else w for w in (w_gate, w_up, w_down))
    return reference.neuron_magnitudes(*stored).astype(np.float32, copy=False)
