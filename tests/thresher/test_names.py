"""A user's own file that is called like one of our packages."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def python(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.run(
        [sys.executable, *arguments], cwd=folder, env=environment, capture_output=True, text=True, check=False
    )


@pytest.mark.parametrize("name", ["loaders.py", "reference.py", "accel/__init__.py"])
def test_a_file_in_the_way_is_named(tmp_path: Path, name: str) -> None:
    file = tmp_path / name
    file.parent.mkdir(exist_ok=True)
    file.write_text("")
    package = name.partition("/")[0].removesuffix(".py")
    told = f"{file} is in the way of thresher's own package '{package}': give it another name"
    command = python(tmp_path, "-m", "thresher", "methods")
    assert (command.returncode, command.stderr) == (1, f"thresher: {told}\n")
    script = python(tmp_path, "-c", "import thresher; thresher.load")
    assert script.stderr.splitlines()[-1] == f"ImportError: {told}"
    (tmp_path / "loading.py").write_text("import thresher; thresher.load")
    file.unlink()
    assert python(tmp_path, "loading.py").returncode == 0  # a folder without modules is not in the way
