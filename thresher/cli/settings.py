"""Defaults from the project that a person works in: the table [tool.thresher] of the nearest pyproject.toml.

    [tool.thresher]
    model = "smollm2-135m-instruct"
    backend = "cpu"

Every option of a command may stand there, under the name that it has on the command line.
"""

from __future__ import annotations

import tomllib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

FILE = "pyproject.toml"


def defaults(options: Mapping[str, Iterable[str]], folder: Path) -> dict[str, dict[str, Any]]:
    """For each command the settings that it has an option for. options: the names of each command's parameters.

    The file is the nearest one in `folder` or above it. ValueError names it where it is no TOML, or where no command
    has such an option.
    """
    found = next((path for up in (folder, *folder.parents) if (path := up / FILE).is_file()), None)
    if found is None:
        return {}
    try:
        tool = tomllib.loads(found.read_text(encoding="utf-8")).get("tool", {})
    except ValueError as error:
        raise ValueError(f"{found}: it is not TOML ({error})") from None
    table = tool.get("thresher", {}) if isinstance(tool, dict) else {}
    if not isinstance(table, dict):
        raise ValueError(f"{found}: [tool.thresher] has to be a table")
    given = {name.replace("-", "_"): value for name, value in table.items()}
    known = {name for names in options.values() for name in names}
    if unknown := sorted(given.keys() - known):
        raise ValueError(f"{found}: [tool.thresher] has {', '.join(unknown)}, and no command has such an option")
    return {command: {n: given[n] for n in names if n in given} for command, names in options.items()}
