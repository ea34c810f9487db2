"""Layers trained on a Dask cluster of this machine, one of whose workers dies over its layer."""

from __future__ import annotations

import os
import signal
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from tests.checkpoints import write_checkpoint
from thresher.fit import fastforward

distributed = pytest.importorskip("distributed", reason="no cluster is installed (extra: cluster)")


@pytest.mark.filterwarnings("ignore")  # the cluster's own, about a worker that died
def test_a_worker_that_is_killed_changes_nothing(tmp_path: Path) -> None:
    model = write_checkpoint(tmp_path / "small")
    (tmp_path / "text.txt").write_text(
        "It was a bright cold day in April, and the clocks were striking thirteen. " * 40
    )
    settings: dict[str, Any] = {"tokens": 1280, "context": 128, "block": 16, "steps": 800, "backend": "reference"}

    def kill(worker: int, training: Path) -> None:
        while not training.exists():
            time.sleep(0.01)
        time.sleep(0.5)
        os.kill(worker, signal.SIGKILL)

    with (
        distributed.LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=None) as cluster,
        distributed.Client(cluster) as client,
    ):
        worker = next(iter(client.run(os.getpid).values()))
        killer = threading.Thread(target=kill, args=(worker, tmp_path / "dask.work" / "layers"))
        killer.start()
        there = fastforward(model, [tmp_path / "text.txt"], out=tmp_path / "dask", joblib_backend="dask", **settings)
        killer.join()
        assert worker not in client.run(os.getpid).values()
    here = fastforward(model, [tmp_path / "text.txt"], out=tmp_path / "loky", jobs=2, **settings)
    assert there.read_bytes() == here.read_bytes()
