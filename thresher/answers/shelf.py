"""States on disk within a byte budget: what was read once need not be read again.

Whatever was used longest ago goes first. A file that is damaged counts as one that is not there.
"""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path

from reference.checks import whole
from thresher.state import State

SUFFIX = ".state.safetensors"


class Shelf:
    """A folder of states, `budget` bytes at most. Two processes may share one."""

    def __init__(self, folder: str | os.PathLike[str], budget: int) -> None:
        self.folder, self.budget = Path(folder), whole("budget", budget, least=0)

    def take(self, name: str) -> State | None:
        """The state of that name, or None where there is none that is whole."""
        path = self._path(name)
        try:
            state = State.load(path)
            os.utime(path)  # used just now
        except FileNotFoundError:
            return None
        except ValueError:
            path.unlink(missing_ok=True)
            return None
        return state

    def keep(self, name: str, state: State) -> None:
        """Write the state down, and drop what was used longest ago until the budget holds; one that is larger than the
        whole budget is not kept."""
        if state.cache.nbytes > self.budget:
            return
        self.folder.mkdir(parents=True, exist_ok=True)
        state.save(self._path(name))
        self._fit()

    def _fit(self) -> None:
        sizes = {}
        for path in self.folder.glob(f"*{SUFFIX}"):
            with suppress(FileNotFoundError):  # another process dropped it
                found = path.stat()
                sizes[path] = (found.st_mtime_ns, found.st_size)
        total = sum(size for _, size in sizes.values())
        for path, (_, size) in sorted(sizes.items(), key=lambda item: item[1]):
            if total <= self.budget:
                return
            path.unlink(missing_ok=True)
            total -= size

    def _path(self, name: str) -> Path:
        return self.folder / f"{name}{SUFFIX}"
