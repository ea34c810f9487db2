"""The tasks by name. `ruler` and `longbench` stand for all of theirs; `ruler/vt` is one of them."""

from __future__ import annotations

from collections.abc import Iterable

from reference.checks import require
from thresher.evaluation.samples import Task
from thresher.evaluation.tasks import longbench, needles, packaged, ruler, texts

TASKS: dict[str, Task] = {
    task.name: task for task in (needles.NIAH, *ruler.TASKS, *packaged.TASKS, *longbench.TASKS, *texts.TASKS)
}


def chosen(names: Iterable[str]) -> list[Task]:
    """The tasks that are named, in their own order. ValueError for none and for one that there is not."""
    found: dict[str, None] = {}
    groups = list(dict.fromkeys(name.partition("/")[0] for name in TASKS))
    for name in names:
        members = [task for task in TASKS if task == name or task.startswith(f"{name}/")]
        require(bool(members), f"tasks: got {name!r}, wanted some of {', '.join(groups)}")
        found |= dict.fromkeys(members)
    require(bool(found), f"tasks: got none, wanted some of {', '.join(groups)}")
    return [TASKS[name] for name in TASKS if name in found]
