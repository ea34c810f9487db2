"""What compiling a kernel does to Numba, and what a kernel's functions get and give."""

from __future__ import annotations

from ctypes import CFUNCTYPE, c_int64
from typing import Any

import numba
import numpy as np
import pytest
from numba.core import dispatcher
from numba.core.registry import cpu_target
from numba.core.types.functions import BaseFunction

from accel.cpu.runtime import code, compiling
from accel.cpu.simd import carray, njit, words_at


def run(function: Any, words: np.ndarray) -> list[int]:
    """What a compiled function of an address leaves in the words that stand there."""
    address = code.load(compiling.compile_code(function, 1))
    CFUNCTYPE(None, c_int64)(address)(words.ctypes.data)
    return words.tolist()


def ours(function: Any) -> Any:
    """A function of a kernel, as if it stood in the package."""
    function.__module__ = "accel.cpu.nothing"
    return njit(function)


@ours
def _chosen(yes, x):
    if yes:
        return x
    return -x


@ours
def _first_two(at):
    words = carray(words_at(at), 4)
    return words[:2]


def _truths(at):
    words = carray(words_at(at), 4)
    words[0] = _chosen(words[0] > 1, 5) + (10 if not _chosen(words[1], 0) else 0)
    words[1] = _chosen(words[1] > 1, 7)
    words[2] = _chosen(True, 2) + _chosen(0, 3)


def _views(at):
    x = 3
    for n in range(2):
        x = _first_two(at)[n] if n else 40
        _first_two(at)[n] += x
    carray(words_at(at), 4)[3] = max(1, x) + min(2, x, 9)


def _names_nothing(at):
    carray(words_at(at), 1)[0] = missing  # type: ignore[name-defined]  # noqa: F821


def test_a_truth_value_is_a_word() -> None:
    assert run(_truths, np.array([2, 1, 0, 0])) == [15, -7, -1, 0]
    assert run(_truths, np.array([1, 2, 0, 0])) == [5, 7, -1, 0]
    (kind,) = _chosen.made.signatures
    assert kind == (numba.int64, numba.int64)


def test_views_of_memory_go_in_and_out_of_functions() -> None:
    assert run(_views, np.array([1, 2, 0, 0])) == [41, 4, 0, 4]


@numba.njit
def _quotient(x: int, y: int) -> float:
    return x / y


@numba.njit
def _smaller(x: int, y: int, yes: bool) -> tuple[np.ndarray, bool]:
    return np.full(3, min(x, y))[1:], not yes


@pytest.mark.parametrize("function", [_views, _names_nothing], ids=["compiled", "refused"])
def test_numba_is_afterwards_as_it_was(function: Any) -> None:
    context = cpu_target.target_context
    before = [dict(vars(x)) for x in (context.codegen(), dispatcher._FunctionCompiler, BaseFunction)]
    own = set(vars(context))
    if function is _names_nothing:
        with pytest.raises(numba.TypingError, match="missing"):
            compiling.compile_code(function, 1)
    else:
        compiling.compile_code(function, 1)
    assert [dict(vars(x)) for x in (context.codegen(), dispatcher._FunctionCompiler, BaseFunction)] == before
    assert set(vars(context)) == own
    for each in (_quotient, _smaller):
        each.recompile()
    with pytest.raises(ZeroDivisionError):  # kernels divide as NumPy does
        _quotient(1, 0)
    array, no = _smaller(5, 4, True)
    assert (array.tolist(), no) == ([4, 4], False)
