"""The GPU that this process computes on, and its one stream.

All work of all threads goes to one stream in the order of the calls (but what a thread records is launched later, see
graph.py). Memory that one call frees may therefore be
given to the next without a wait: whatever still uses it is ahead in the stream. In numba.cuda's simulator
(NUMBA_ENABLE_CUDASIM=1) there is no device; kernels are then run by the interpreter over NumPy's memory.
"""

from __future__ import annotations

import os
import threading
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from accel.cuda.ptx.simulator import SIMULATED

LEAST_DRIVER = 13000  # CUDA 13.0, whose toolkit the extra `cuda` installs


@dataclass(frozen=True)
class Machine:
    """One GPU: cuda.core's device, the stream of all work, and the pool that memory comes from."""

    device: Any
    stream: Any
    pool: Any

    @cached_property
    def capability(self) -> tuple[int, int]:
        """The compute capability, such as (9, 0)."""
        return tuple(self.device.compute_capability)

    @cached_property
    def handle(self) -> Any:
        """The stream as the driver's own functions take it."""
        from cuda.bindings import driver

        return driver.CUstream(int(self.stream.handle))

    @cached_property
    def processors(self) -> int:
        """Multiprocessors."""
        return self.device.properties.multiprocessor_count

    @cached_property
    def shared(self) -> int:
        """Bytes of shared memory that a block can have."""
        return self.device.properties.max_shared_memory_per_block_optin

    @cached_property
    def name(self) -> str:
        """What the maker calls it."""
        return self.device.name


class Here(threading.local):
    """What holds in this thread alone."""

    def __init__(self) -> None:
        self.process: int | None = None  # in which the device was made current
        self.recording: Any = None  # the stream that launches go to while a graph is recorded, and
        self.memory: Any = None  # where memory comes from then (graph.py)
        self.given: dict[Any, Any] = {}  # what a recorded pass reads anew each time (recorded.py)
        self.word: Any = None  # where kernels note what is wrong, and
        self.words: list[Any] = []  # what to look at when the device is waited for (errors.py)


_machines: dict[int, Machine] = {}  # by process: a forked child can use nothing of its parent's
_lock = threading.Lock()
here = Here()


def machine() -> Machine:
    """The device in use, made current in this thread. RuntimeError in one line where there is none that can be used."""
    if here.process == os.getpid():
        return _machines[here.process]
    with _lock:
        found = _machines.get(os.getpid()) or _open()
        found.device.set_current()
        _machines[os.getpid()] = found
        here.process = os.getpid()
    return found


def _open() -> Machine:
    if _machines:
        raise RuntimeError("cuda: this process was forked from one that uses the GPU; start it with 'spawn' instead")
    try:
        from cuda.bindings import driver
        from cuda.core import Device, DeviceMemoryResource
    except ImportError as error:
        raise RuntimeError(f"cuda: {error}; install what it needs with: pip install 'thresher[cuda]'") from None
    try:
        _, version = driver.cuDriverGetVersion()
    except RuntimeError:  # cuda.bindings found no libcuda
        raise RuntimeError("cuda: found no NVIDIA driver on this machine; backend='cpu' needs none") from None
    if version < LEAST_DRIVER:
        raise RuntimeError(
            f"cuda: the driver is for CUDA {version // 1000}.{version % 1000 // 10}, wanted 13.0 or newer; "
            "install a newer NVIDIA driver"
        )
    try:
        device = Device()
        device.set_current()
    except Exception as error:  # the driver's own words, whatever class they come in
        raise RuntimeError(f"cuda: found no usable device ({error}); backend='cpu' needs none") from None
    return Machine(device, device.create_stream(), DeviceMemoryResource(device))


def device_name() -> str:
    """The device in use, its compute capability and its memory."""
    there, gib = machine(), 2**30
    major, minor = there.capability
    free, total = memory()
    return f"{there.name}, compute capability {major}.{minor}, {free / gib:.1f} of {total / gib:.1f} GiB free"


def free_memory() -> int:
    """Bytes of the device that nobody holds."""
    return memory()[0]


def memory() -> tuple[int, int]:
    """Bytes free on the device and in all; 0 where it does not say."""
    from cuda.bindings import driver

    machine()
    _, free, total = driver.cuMemGetInfo()
    return free or 0, total or 0


def synchronize() -> None:
    """Wait until the device has done all that was asked of it."""
    if not SIMULATED:
        machine().stream.sync()
