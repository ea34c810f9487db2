from __future__ import annotations

import numpy as np
import pytest

from thresher.memory import forget_peak, peak, resident

MIB = 1 << 20


@pytest.mark.skipif(not forget_peak(), reason="this system does not let a process forget its peak")
def test_the_peak_is_that_since_it_was_forgotten() -> None:
    np.ones(96 * MIB, np.uint8)  # touched and freed: a peak of before
    assert forget_peak()
    before = resident()
    assert before is not None
    held = np.ones(32 * MIB, np.uint8)
    del held
    most = peak()
    assert most is not None
    assert 30 * MIB < most - before < 48 * MIB
