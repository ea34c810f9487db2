"""The kernel contract on torch tensors: `reference`'s names, arguments and meaning, tensors in and out.

    from thresher.torch import attention, keydiff_scores
    out = attention(q, k, v, q_positions, k_positions)   # (H, T, D)

Tensors on the processor go through `accel.cpu`, tensors on an NVIDIA GPU through `accel.cuda`, both without a copy.
Results lie where the arguments lie. There is no gradient: a tensor that wants one raises ValueError.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields, is_dataclass, replace
from functools import wraps
from types import ModuleType
from typing import Any

import ml_dtypes
import numpy as np
import torch

import accel
import reference
from reference.backend import FUNCTIONS
from reference.checks import require


def backend_for(*tensors: torch.Tensor) -> ModuleType:
    """The backend where the tensors lie: `accel.cpu`, also for none, or `accel.cuda`. ValueError for any other place,
    or several."""
    places = {tensor.device.type for tensor in tensors} or {"cpu"}
    known = len(places) == 1 and places <= {"cpu", "cuda"}
    require(known, f"tensors: got some on {', '.join(sorted(places))}, wanted all on cpu or all on cuda")
    return accel.backend(places.pop())


def to_array(tensor: torch.Tensor) -> Any:
    """The tensor as its backend's array, which shares its memory."""
    wants = tensor.requires_grad and torch.is_grad_enabled()
    require(not wants, "tensor: got one that requires a gradient, wanted none: use torch.no_grad()")
    tensor = tensor.detach()
    if tensor.device.type == "cuda":
        return backend_for(tensor).to_backend(tensor)
    if tensor.dtype == torch.bfloat16:  # NumPy has no such type of its own
        return tensor.view(torch.uint16).numpy().view(ml_dtypes.bfloat16)
    return tensor.numpy()


def to_tensor(array: Any) -> torch.Tensor:
    """A backend's array as a tensor that shares its memory."""
    if not isinstance(array, np.ndarray):
        return torch.from_dlpack(array)
    array = np.require(array, requirements=("W",))
    if array.dtype == ml_dtypes.bfloat16:
        return torch.from_numpy(array.view(np.uint16)).view(torch.bfloat16)
    return torch.from_numpy(array)


def _arrays(x: Any) -> Any:
    """An argument with arrays for its tensors, those of a predictor, a compensator or a list of experts too."""
    if isinstance(x, torch.Tensor):
        return to_array(x)
    if isinstance(x, list | tuple):
        return type(x)(map(_arrays, x))
    return replace(x, **{name: to_array(t) for name, t in _fields(x).items()}) if _fields(x) else x


def _tensors(x: Any) -> list[torch.Tensor]:
    """The tensors of an argument."""
    if isinstance(x, list | tuple):
        return [tensor for part in x for tensor in _tensors(part)]
    return [x] if isinstance(x, torch.Tensor) else list(_fields(x).values())


def _fields(x: Any) -> dict[str, torch.Tensor]:
    """The tensors that an object is made of."""
    held = {f.name: getattr(x, f.name) for f in fields(x)} if is_dataclass(x) else {}
    return {name: value for name, value in held.items() if isinstance(value, torch.Tensor)}


def _on_tensors(name: str) -> Callable[..., Any]:
    @wraps(getattr(reference, name))
    def function(*args: Any, **named: Any) -> Any:
        meant = getattr(backend_for(*_tensors([*args, *named.values()])), name)
        found = meant(*map(_arrays, args), **{key: _arrays(x) for key, x in named.items()})
        return tuple(map(to_tensor, found)) if isinstance(found, tuple) else to_tensor(found)

    function.__module__ = __name__
    return function


globals().update({name: _on_tensors(name) for name in FUNCTIONS})
__all__ = ["backend_for", "to_array", "to_tensor", *FUNCTIONS]
