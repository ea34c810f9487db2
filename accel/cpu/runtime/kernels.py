"""Compiled kernels: how a Python function becomes machine code, and how it is kept on disk.

A kernel is a Python function of (task, worker, …): `task` is the address of a block of 64-bit words, of which the first
counts the work items taken and the second the words that follow, `worker` the number of the thread, and the other
arguments are those words. Every worker takes items until none is left, so that a slow core delays a call by one item at
most.
"""

from __future__ import annotations

import hashlib
from array import array
from collections.abc import Callable
from inspect import signature
from pathlib import Path
from struct import pack
from typing import Any, ClassVar

from numba import types
from numba.core.caching import FunctionCache
from numba.core.ccallback import CFunc

from accel.cpu.runtime.team import THREADS, run
from accel.cpu.simd import LANES, MATRIX, MOST_WORDS, REGISTERS
from reference.checks import require


def _stamp() -> str:
    """Changes with any source file of this package: a kernel's code lies in several of them, and so do tile sizes."""
    digest = hashlib.sha256(f"{LANES} {REGISTERS} {MATRIX}".encode())
    for path in sorted(Path(__file__).parents[1].rglob("*.py")):
        digest.update(path.read_bytes())
    return digest.hexdigest()


class _PackageCache(FunctionCache):
    """Numba's cache on disk, which is out of date when any file of this package changed, not only the kernel's own."""

    stamp = _stamp()

    def __init__(self, function: Callable) -> None:
        super().__init__(function)
        self._cache_file._source_stamp = self.stamp


class Kernel:
    """A function (task, worker, …) that is compiled, or loaded from disk, when it is first called."""

    known: ClassVar[list[Kernel]] = []

    def __init__(self, function: Callable) -> None:
        self.name = f"{function.__module__.removeprefix('accel.cpu.')}.{function.__name__.lstrip('_')}"
        self.arguments = tuple(signature(function).parameters)[2:]
        require(len(self.arguments) <= MOST_WORDS, f"{self.name}: got more than {MOST_WORDS} arguments")
        words = (types.int64,) * (2 + len(self.arguments))
        code: Any = CFunc(function, (words, types.void), locals={}, options={"nopython": True, "error_model": "numpy"})
        code._cache = _PackageCache(function)
        self._code = code
        self._address = 0
        self._form = ""
        self.known.append(self)

    @property
    def address(self) -> int:
        """Where its machine code stands; compiles on first use."""
        if not self._address:
            self._code.compile()
            self._address = self._code.address
        return self._address

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


def warmup(progress: Callable[[str, int, int], None] | None = None) -> int:
    """Compile every kernel, or load it from disk; returns how many. `progress` gets (name, number from 0, of how many)
    before each, and ("", n, n) at the end."""
    for n, known in enumerate(Kernel.known):
        if progress is not None:
            progress(known.name, n, len(Kernel.known))
        known.address  # noqa: B018
    if progress is not None:
        progress("", len(Kernel.known), len(Kernel.known))
    return len(Kernel.known)


def kernel(function: Callable) -> Kernel:
    """Decorator: a kernel of this package."""
    return Kernel(function)
