"""A folder to start from: `thresher verify --new DIR` copies the one that lies in thresher/data/my_kernels."""

from __future__ import annotations

import os
import shutil
import tempfile
from importlib.resources import as_file, files
from pathlib import Path


def start(folder: str | os.PathLike[str]) -> Path:
    """Copy the template to a new folder, and return its path.

    Raises FileExistsError where something is there already. Nothing is left behind by a copy that fails.
    """
    target = Path(folder)
    if target.exists():
        raise FileExistsError(f"{target}: got something there already, wanted the name of a new folder")
    target.parent.mkdir(parents=True, exist_ok=True)
    staging = Path(tempfile.mkdtemp(prefix=f".{target.name}.", dir=target.parent))
    try:
        with as_file(files("thresher") / "data" / "my_kernels") as template:
            for name in sorted(path.name for path in template.iterdir() if path.suffix in (".py", ".md")):
                shutil.copyfile(template / name, staging / name)
        staging.chmod(0o755)  # mkdtemp's are private
        staging.rename(target)
    except BaseException:
        shutil.rmtree(staging)
        raise
    return target
