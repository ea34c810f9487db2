"""Functions that kernels are made of, without Numba.

A program that finds all its kernels on disk compiles nothing. Numba alone takes a second to load, and with its compiler
100 MB. So what stands in this package for a function of a kernel is a `Later`: it knows how to become what Numba
understands, and becomes it when a kernel that calls it is compiled (typed.py).
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property, lru_cache, update_wrapper
from importlib import import_module
from typing import Any


class Later:
    """A function that kernels call.

    Python may call it too, where it is arithmetic on numbers: how large a buffer must be, which every layer asks anew.
    """

    def __init__(self, function: Callable, make: Callable[[], Any]) -> None:
        self._known, self._make = lru_cache(maxsize=256, typed=True)(function), make
        update_wrapper(self, function)

    def __call__(self, *arguments: Any) -> Any:
        """From Python: as it was written."""
        return self._known(*arguments)

    @cached_property
    def made(self) -> Any:
        """What Numba knows it as."""
        return self._make()


def njit(function: Any = None, **options: Any) -> Any:
    """Decorator: a function that kernels call, and Python too."""
    if function is None:
        return lambda function: njit(function, **options)
    return Later(function, lambda: _made(function, options))


def _made(function: Callable, options: dict[str, Any]) -> Any:
    from numba import njit

    from accel.cpu.simd.passes import Compiler

    return njit(function, pipeline_class=Compiler, **options)


def compiled_as(name: str, function: Callable) -> Any:
    """A function that was made by another, compiled under a name of its own.

    Inside a kernel functions are told apart by name: two made from the same lines would be taken for each other.
    """
    function.__name__ = function.__qualname__ = name
    return njit(function)


def _of_numba(module: str, name: str) -> Any:
    """A function of Numba's own."""

    def missing(*_: Any) -> Any:
        raise TypeError(f"{name}: only a kernel can call it")

    missing.__name__ = missing.__qualname__ = name
    return Later(missing, lambda: getattr(import_module(module), name))


carray = _of_numba("numba", "carray")
to_fixed_tuple = _of_numba("numba.np.unsafe.ndarray", "to_fixed_tuple")
