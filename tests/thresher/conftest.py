from __future__ import annotations

from pathlib import Path

import pytest

import thresher
from tests.checkpoints import write_checkpoint


@pytest.fixture(scope="session")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_checkpoint(tmp_path_factory.mktemp("checkpoint") / "small")


@pytest.fixture(scope="session")
def llm(directory: Path) -> thresher.LanguageModel:
    return thresher.load(directory, backend="reference")
