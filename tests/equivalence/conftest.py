from __future__ import annotations

from types import ModuleType

import pytest

import accel


@pytest.fixture(scope="session")
def backend(request: pytest.FixtureRequest) -> ModuleType:
    return accel.backend(request.config.getoption("--backend"))
