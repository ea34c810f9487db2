"""Set before NumPy is imported: tests that run side by side must not fight over the cores."""

from __future__ import annotations

import os

if "PYTEST_XDIST_WORKER" in os.environ:
    for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
        os.environ.setdefault(name, "1")

import pytest
from hypothesis import settings

# No deadlines: a slow machine is not a wrong answer. In CI the examples are the same at every run.
settings.register_profile("thresher", deadline=None, derandomize=bool(os.environ.get("CI")), print_blob=True)
settings.load_profile("thresher")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--backend", default="cpu", help="the backend that tests/equivalence holds to the reference")
