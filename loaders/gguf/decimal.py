"""GGUF keeps decimals as float32."""

from __future__ import annotations

import numpy as np


def decimal(value: float) -> float:
    """The shortest decimal that is this float32: 1e-05, where the metadata give 9.999999747378752e-06."""
    return float(str(np.float32(value)))
