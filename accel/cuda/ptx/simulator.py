"""Whether kernels run in numba.cuda's simulator: NUMBA_ENABLE_CUDASIM=1 was set when Numba was imported."""

from __future__ import annotations

import numba

SIMULATED = bool(numba.config.ENABLE_CUDASIM)  # type: ignore[attr-defined]
