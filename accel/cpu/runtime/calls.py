"""Kernel calls that are listed once and run again and again, without Python between them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from accel.cpu.runtime.arrays import address
from accel.cpu.runtime.kernels import Kernel
from accel.cpu.runtime.team import THREADS, run_each
from accel.cpu.simd import MOST_WORDS

Call = Callable[..., Any]  # (kernel, *arguments, workers=…): makes a call, or notes it


def at_once(kernel: Kernel, *arguments: int | float, workers: int = THREADS) -> None:
    """Make a call, as `Calls.add` notes it."""
    kernel(*arguments, workers=workers)


class Calls:
    """A list of kernel calls: their words, and the arrays that those point to."""

    def __init__(self) -> None:
        self._kernels: list[Kernel] = []
        self._rows: list[list[int]] = []
        self._workers: list[int] = []
        self._held: list[Any] = []

    def hold(self, array: Any) -> Any:
        """Keep an array for as long as the calls; returns it."""
        self._held.append(array)
        return array

    def add(self, kernel: Kernel, *arguments: int | float, workers: int = THREADS) -> int:
        """Note a call; returns its number. Integers and floats become words, as in `Kernel.__call__`."""
        words = [int(np.float64(a).view(np.int64)) if isinstance(a, float) else int(a) for a in arguments]
        if len(words) != len(kernel.arguments):
            raise TypeError(f"{kernel.name}: got {len(words)} arguments, wanted {', '.join(kernel.arguments)}")
        self._rows.append([0, len(words), *words, *[0] * (MOST_WORDS - len(words))])
        self._workers.append(workers)
        self._kernels.append(kernel)
        return len(self._rows) - 1

    def finish(self) -> None:
        """No more calls follow: lay them out as compiled code reads them."""
        self._words = np.array(self._rows, np.int64)
        base, step = address(self._words), self._words.strides[0]
        listed = [
            (kernel.address, base + n * step, workers)
            for n, (kernel, workers) in enumerate(zip(self._kernels, self._workers, strict=True))
        ]
        self._list = np.array(listed, np.int64)

    def get(self, numbers: Sequence[int], name: str) -> np.ndarray:
        """An argument by its name, in the calls of these numbers, all of one kernel."""
        return self._words[numbers, 2 + self._kernels[numbers[0]].arguments.index(name)]

    def set(self, numbers: Sequence[int], **values: Any) -> None:
        """Change arguments by their names, in the calls of these numbers, all of one kernel."""
        names = self._kernels[numbers[0]].arguments
        for name, value in values.items():
            self._words[numbers, 2 + names.index(name)] = value

    def leave_out(self, numbers: Sequence[int], wanted: Sequence[bool]) -> None:
        """Leave each of these calls out, or let it in again."""
        self._list[numbers, 0] = [
            0 if out else self._kernels[n].address for n, out in zip(numbers, wanted, strict=True)
        ]

    def run(self) -> None:
        """All calls, one after another, in one step: an interrupt comes before or after it."""
        run_each(address(self._list), len(self._list))

    def have_run(self) -> bool:
        """Whether they have, since this was last asked: the last one's items were taken."""
        taken, self._words[-1, 0] = bool(self._words[-1, 0]), 0
        return taken
