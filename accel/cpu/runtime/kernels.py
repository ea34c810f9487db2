"""Kernels: Python functions of (task, worker, …) as machine code on all cores.

`task` is the address of a block of 64-bit words, of which the first counts the work items taken and the second the
words that follow, `worker` the number of the thread, and the other arguments are those words. Every worker takes items
until none is left, so that a slow core delays a call by one item at most.

Which worker takes which item is a matter of chance, and how many workers there are too: no number of a result may
depend on it. What several items add to is added up in a fixed order, by one worker or by another call.
"""

from __future__ import annotations

from array import array
from collections.abc import Callable
from inspect import signature
from struct import pack
from typing import ClassVar

from accel.cpu.runtime.code import Code
from accel.cpu.runtime.team import THREADS, run
from accel.cpu.simd import MOST_WORDS
from reference.checks import require


class Kernel:
    """A function (task, worker, …) that is compiled, or loaded from disk, when it is first called."""

    known: ClassVar[list[Kernel]] = []

    def __init__(self, function: Callable) -> None:
        self.name = f"{function.__module__.removeprefix('accel.cpu.')}.{function.__name__.lstrip('_')}"
        self.arguments = tuple(signature(function).parameters)[2:]
        require(len(self.arguments) <= MOST_WORDS, f"{self.name}: got more than {MOST_WORDS} arguments")
        self._code = Code(function, 2 + len(self.arguments))
        self._address = 0
        self._form = ""
        self.known.append(self)

    @property
    def address(self) -> int:
        """Where its machine code stands; compiles on first use."""
        if not self._address:
            self._address = self._code.address
        return self._address

    def is_kept(self) -> bool:
        """Whether its machine code is loaded, or lies on disk."""
        return self._address != 0 or self._code.is_kept()

    def __call__(self, *arguments: int | float, workers: int | None = None) -> None:
        """Run on `workers` threads (default: all). Integers and floats become the words of the task, in order.

        TypeError unless there are as many as the kernel has names for: a word too few would shift all after it.
        """
        if len(arguments) != len(self.arguments):
            raise TypeError(f"{self.name}: got {len(arguments)} arguments, wanted {', '.join(self.arguments)}")
        form = self._form or self._format(arguments)
        task = array("q", pack(form, 0, len(arguments), *arguments))
        run(self.address, task.buffer_info()[0], THREADS if workers is None else workers)

    def _format(self, arguments: tuple[int | float, ...]) -> str:
        """How `struct` lays the arguments out; the same at every call of one kernel."""
        self._form = "qq" + "".join("d" if isinstance(a, float) else "q" for a in arguments)
        return self._form


def kernel(function: Callable) -> Kernel:
    """Decorator: a kernel of this package."""
    return Kernel(function)
