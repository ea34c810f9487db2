"""The door of the contract's functions: lists, and arrays of other libraries, become NumPy's there.

A function works on arrays of its own backend and finds in its first check that it was given something else. Only then
is anything converted, so that who brings the right arrays waits for nothing.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Any

import numpy as np

from reference.int8 import Int8


def takes_any_array(function: Callable[..., Any]) -> Callable[..., Any]:
    """The function, which also takes lists of numbers, and whatever offers DLPack or `__array__`, where it takes an
    array; without a copy where the other library allows. Raises ValueError for what is no array."""
    names = function.__code__.co_varnames[: function.__code__.co_argcount + function.__code__.co_kwonlyargcount]
    kinds = {name: str(function.__annotations__.get(name)) for name in names}
    arrays = {name for name, kind in kinds.items() if "ndarray" in kind or "Matrix" in kind}

    @wraps(function)
    def taken(*args: Any, **options: Any) -> Any:
        try:
            return function(*args, **options)
        except (AttributeError, TypeError):
            given = {**dict(zip(names, args, strict=False)), **options}
            found = {name: _as_array(name, x) if name in arrays else x for name, x in given.items()}
            if len(args) > len(names) or all(found[name] is given[name] for name in given):
                raise  # not a matter of arrays
        return function(**found)

    return taken


def _as_array(name: str, x: Any) -> Any:
    """`x` as a NumPy array, unless it is one, an int8 matrix or a number."""
    if x is None or isinstance(x, (np.ndarray, Int8, int, float)):
        return x
    try:
        if hasattr(x, "__dlpack__"):
            return np.from_dlpack(x)
        array = np.asarray(x)
    except (ValueError, TypeError, RuntimeError, BufferError) as error:
        raise ValueError(f"{name}: got a {type(x).__name__} ({error}), wanted an array") from None
    if array.dtype.kind not in "iufb" and array.dtype.name != "bfloat16":
        raise ValueError(f"{name}: got a {type(x).__name__} of {array.dtype}, wanted an array of numbers")
    return array
