"""The soft cap, as kernels apply it to scores and logits."""

from __future__ import annotations

import math

from accel.cuda.runtime.kernels import device


@device
def capped(x, cap):
    """cap · tanh(x / cap), or x where the cap is 0, which stands for none."""
    return cap * math.tanh(x / cap) if cap > 0 else x
