"""Linux's control groups, which may grant a process less than its machine has."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path


def groups(controller: str, root: Path = Path("/")) -> Iterator[Path]:
    """The directories that may limit this process by "cpu" or "memory": its own groups and all that they lie in.

    Inside a container a group's path is often that of the host, which is not to be seen there. What limits the
    container then stands at the top.
    """
    try:
        lines = (root / "proc/self/cgroup").read_text().splitlines()
    except OSError:  # not Linux
        return
    top = root / "sys/fs/cgroup"
    for line in lines:
        number, controllers, path = line.split(":", 2)
        if number == "0":  # version 2, alone or beside version 1
            tops = [top, top / "unified"]
        elif controller in controllers.split(","):
            tops = [top / controllers, top / controller]
        else:
            continue
        inner = Path(*(part for part in Path(path).parts if part not in ("/", "..")))
        yield from (above / part for above in tops for part in (inner, *inner.parents))
