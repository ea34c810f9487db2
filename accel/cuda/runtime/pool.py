"""Device memory, given back and taken again without asking the driver, which costs more than a small kernel.

All work is on one stream in the order of the calls (device.py), so memory may be taken again as soon as the last array
that used it is gone: whatever the device still does with it is ahead of what comes next.
"""

from __future__ import annotations

from collections import defaultdict
from functools import lru_cache
from typing import Any

from accel.cuda.runtime.device import here, machine, memory

SMALLEST = 512  # bytes
KEPT = 8 << 30  # bytes that may lie about unused before they go back to the driver


class Block:
    """Some bytes on the device, which return to the pool when nothing refers to them any more."""

    __slots__ = ("address", "buffer", "free", "nbytes")

    def __init__(self, buffer: Any, nbytes: int, free: list[Any]) -> None:
        self.buffer, self.nbytes, self.free, self.address = buffer, nbytes, free, int(buffer.handle)

    def __del__(self) -> None:
        self.free.append(self.buffer)


class Pool:
    """Buffers that are not in use, by size. What a thread records has buffers of its own (graph.py)."""

    def __init__(self) -> None:
        self._free: defaultdict[int, list[Any]] = defaultdict(list)
        self._taken = 0  # since it was last looked at how much lies about

    def take(self, nbytes: int) -> Block:
        """At least so many bytes. MemoryError where the device has no more, even after all that is unused went back."""
        size = _rounded(nbytes)
        free = (self._free if here.memory is None else here.memory)[size]
        try:
            return Block(free.pop(), size, free)
        except IndexError:
            pass
        self._taken += size
        if self._taken > KEPT:
            self.clear()
        there = machine()
        for attempt in (1, 2):
            try:
                return Block(there.pool.allocate(size, stream=there.stream), size, free)
            except Exception as error:
                if attempt == 1:
                    self.clear()
                    there.stream.sync()
                    continue
                unused, total = memory()
                raise MemoryError(
                    f"cuda: wanted {size / 2**30:.2f} GiB more and {unused / 2**30:.2f} of {total / 2**30:.2f} GiB are "
                    f"free; a smaller budget or dtype='bfloat16' needs less ({type(error).__name__})"
                ) from None
        raise AssertionError("two attempts end in a block or an error")

    def clear(self) -> None:
        """Give back to the driver what is not in use."""
        self._taken = 0
        for buffers in list(self._free.values()):
            buffers.clear()


@lru_cache(4096)
def _rounded(nbytes: int) -> int:
    """The size that is asked of the driver: few different ones, an eighth too large at most."""
    step = max(SMALLEST, 1 << max((nbytes - 1).bit_length() - 4, 0))
    return -(-nbytes // step) * step


pool = Pool()
