"""The arguments of a call: every array in them, in lists and dataclasses too, found, named and converted."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import fields, is_dataclass, replace
from inspect import signature
from typing import Any

import numpy as np

import reference


def exact(x: np.ndarray) -> np.ndarray:
    """The same numbers in float64 or int64."""
    kind = x.dtype.kind
    return x if kind == "b" else x.astype(np.int64 if kind in "iu" else np.float64)


def convert(value: Any, to: Callable[[np.ndarray], Any]) -> Any:
    """An argument with every array in it converted; numbers, names and None stay."""
    if isinstance(value, np.ndarray):
        return to(value)
    if isinstance(value, dict):
        return {name: convert(one, to) for name, one in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(convert(one, to) for one in value)
    if is_dataclass(value) and not isinstance(value, type):
        return replace(value, **{f.name: convert(getattr(value, f.name), to) for f in fields(value)})
    backends_own = hasattr(value, "shape") and hasattr(value, "dtype") and not isinstance(value, np.generic)
    return to(value) if backends_own else value


def leaves(name: str, value: Any) -> Iterator[tuple[str, np.ndarray]]:
    """Every array in an argument, with the way to it, in the order in which `convert` meets them."""
    if isinstance(value, np.ndarray):
        yield name, value
    elif isinstance(value, dict):
        for key, one in value.items():
            yield from leaves(f"{name}.{key}".lstrip("."), one)
    elif isinstance(value, (list, tuple)):
        for n, one in enumerate(value):
            yield from leaves(f"{name}[{n}]", one)
    elif is_dataclass(value) and not isinstance(value, type):
        for f in fields(value):
            yield from leaves(f"{name}.{f.name}", getattr(value, f.name))


def by_name(function: str, arguments: tuple[Any, ...], options: dict[str, Any]) -> dict[str, Any]:
    """The arguments of a call under the names that the reference gives them."""
    names = list(signature(getattr(reference, function)).parameters)
    return {**dict(zip(names, arguments, strict=False)), **options}
