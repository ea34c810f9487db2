"""Where independent work is done, layers in training or cells of an evaluation: in processes of this machine, or on a
cluster, through joblib.

loky    processes of this machine
dask    the cluster of the scheduler that is named, or else of the current `distributed.Client`, or of the scheduler
        that DASK_SCHEDULER_ADDRESS names, or one made of this machine
ray     the cluster that `ray.init` finds
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from importlib.util import find_spec
from typing import Any

import joblib

from reference.checks import one_of, require

PACKAGES = {"loky": "joblib", "dask": "distributed", "ray": "ray"}


def check_backend(name: str) -> None:
    """ValueError for a joblib backend that is not known or not installed."""
    one_of("joblib_backend", name, PACKAGES)
    package = PACKAGES[name]
    require(
        find_spec(package) is not None,
        f"joblib_backend: got {name!r} without its package, wanted it installed: try `pip install {package}`",
    )


@contextmanager
def workers(name: str, jobs: int, scheduler: str | None = None) -> Iterator[Any]:
    """A joblib Parallel whose results come in any order."""
    with ExitStack() as stack:
        if name == "dask":
            import distributed

            new_client: Any = distributed.Client
            if scheduler is not None:
                stack.enter_context(new_client(scheduler))
            else:
                try:
                    distributed.get_client()
                except ValueError:
                    stack.enter_context(new_client())
        elif name == "ray":
            from ray.util.joblib import register_ray

            register_ray()
        stack.enter_context(joblib.parallel_config(backend=name, n_jobs=jobs))
        # Ray hands results back only when all are there.
        kind = "list" if name == "ray" else "generator_unordered"
        yield joblib.Parallel(return_as=kind, pre_dispatch="n_jobs", batch_size=1)
