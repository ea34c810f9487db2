"""Launches that are recorded once and then made all at once, by one call of the driver: a CUDA graph.

A graph repeats what was recorded to the letter: the same kernels over the same grids with the same words. What is to
differ from one time to the next must therefore stand in device memory. What its kernels write in between lies in
memory that is the graph's own as long as it lives, so that nothing else can be given it.
"""

from __future__ import annotations

import contextlib
from collections import defaultdict
from collections.abc import Iterator
from typing import Any

from accel.cuda.runtime.device import here, machine
from accel.cuda.runtime.errors import Word, watch


class Graph:
    """What one thread launched while it was recorded."""

    def __init__(self) -> None:
        self._memory: defaultdict[int, list[Any]] = defaultdict(list)
        self._ready: Any = None
        self._word = Word()

    @contextlib.contextmanager
    def recorded(self) -> Iterator[None]:
        """Within this, launches of this thread are noted and not made."""
        from cuda.bindings import driver

        there = machine()
        aside = there.device.create_stream()  # other threads go on launching on the stream of all work
        stream = driver.CUstream(int(aside.handle))
        relaxed = driver.CUstreamCaptureMode.CU_STREAM_CAPTURE_MODE_RELAXED
        _checked(driver.cuStreamBeginCapture(stream, relaxed))
        own = here.word
        here.recording, here.memory, here.word = stream, self._memory, self._word
        try:
            yield
        except BaseException:
            here.recording, here.memory, here.word = None, None, own
            driver.cuStreamEndCapture(stream)
            raise
        here.recording, here.memory, here.word = None, None, own
        found = _checked(driver.cuStreamEndCapture(stream))
        try:
            self._ready = _checked(driver.cuGraphInstantiate(found, 0))
        finally:
            driver.cuGraphDestroy(found)

    def launch(self) -> None:
        """Make the launches; returns at once."""
        from cuda.bindings import driver

        watch(self._word)
        _checked(driver.cuGraphLaunch(self._ready, machine().handle))

    def __del__(self) -> None:
        if self._ready is not None:
            with contextlib.suppress(Exception):  # the interpreter may be ending
                from cuda.bindings import driver

                driver.cuGraphExecDestroy(self._ready)


def _checked(result: Any) -> Any:
    """What a function of the driver returned besides its status."""
    status, *found = result
    if int(status) != 0:
        raise RuntimeError(f"cuda: {status.name} from a recorded pass")
    return found[0] if found else None
