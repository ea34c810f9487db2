"""Sums of two arrays, most of which a norm computes in its own launch."""

from __future__ import annotations

from functools import cached_property
from typing import Any

import numpy as np
from numba import cuda

from accel.cuda.ptx.numbers import wide
from accel.cuda.runtime.arrays import F32, Array, empty
from accel.cuda.runtime.kernels import blocks, kernel
from accel.cuda.runtime.pool import Block
from accel.cuda.runtime.reduce import THREADS
from accel.cuda.runtime.views import Later, plain
from reference import contract


class Sum(Later):
    """x + scale · y, both (T, E), as float32. Whoever asks for the numbers first has them computed; the norm that
    follows a residual computes them in its own launch."""

    dtype = F32

    def __init__(self, x: Array, y: Array, scale: float) -> None:
        self._x, self._y, self.scale, self.shape = x, y, scale, x.shape

    @cached_property
    def held(self) -> Array:
        """The numbers."""
        x, y, out = self._x, self._y, empty(self.shape, F32)
        if out.size:
            _add[(out.shape[0], blocks(out.shape[1], THREADS)), THREADS](x, y, self.scale, out)
        self._x = self._y = out
        return out

    def taken(self, held: Array) -> tuple[Array, Array] | None:
        """x and y for who will write x + scale · y to `held`; None where somebody has added them."""
        if "held" in self.__dict__:
            return None
        parts = self._x, self._y
        self._x = self._y = self.__dict__["held"] = held
        return parts

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, index: Any) -> Array:
        return self.held[index]

    def __getattr__(self, name: str) -> Any:
        """What else an array has."""
        return getattr(self.held, name)


def add(x: Any, y: Any, *, scale: float = 1.0) -> Any:
    """The residual: x + scale · y, both (T, E) -> (T, E) float32, computed by the norm that comes next or when it is
    read; at once where another library owns the numbers, which may change them until then."""
    contract.add(x, y, scale)
    parts = plain(x), plain(y)
    found = Sum(*parts, float(scale))
    return found if all(isinstance(part.memory, (Block, np.ndarray)) for part in parts) else found.held


@kernel
def _add(x, y, scale, out):
    t, i = cuda.blockIdx.x, cuda.blockIdx.y * cuda.blockDim.x + cuda.threadIdx.x
    if i < out.shape[1]:
        out[t, i] = wide(x[t, i]) + np.float32(scale) * wide(y[t, i])
