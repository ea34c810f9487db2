"""Every name of the contract against its definition: a backend means what `reference` means.

How cases are drawn and what counts as the same is told in `thresher/verify`; each failure names the case.
"""

from __future__ import annotations

import os
import random
from types import ModuleType

import pytest

import reference
from thresher.verify import check_function, contract

SEED = 0 if "CI" in os.environ else random.randrange(2**31)  # in CI the cases are the same at every run

QUICK = {"keep_top", "select_neurons", "rms_norm", "rotate", "linear", "draw"}  # that can be asked more often


@pytest.mark.parametrize("name", contract())
def test_backend_means_the_same_as_the_reference(backend: ModuleType, name: str) -> None:
    examples = 200 if name in QUICK else 40
    result = check_function(backend, name, examples=examples, seed=SEED)
    assert not result.failure, result.failure
    assert result.examples >= examples


@pytest.mark.parametrize("name", contract())
def test_the_reference_passes_its_own_check(name: str) -> None:
    """In float32 and from 16-bit storage it stays within what backends are allowed of itself in float64."""
    result = check_function(reference, name, examples=10, seed=SEED)
    assert not result.failure, result.failure
