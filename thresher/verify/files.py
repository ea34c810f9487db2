"""Kernels from a file or a name, and cases in files: what failed can be looked at with NumPy, and replayed."""

from __future__ import annotations

import json
import sys
import zipfile
from collections.abc import Callable
from dataclasses import fields, is_dataclass
from importlib import import_module, util
from pathlib import Path
from types import ModuleType
from typing import Any

import ml_dtypes
import numpy as np

import accel
import reference
from reference.checks import require
from thresher.verify.arguments import by_name, leaves
from thresher.verify.drawing import Case
from thresher.verify.layouts import Layout, layout_of, place

ABOUT = "case.json"  # of a saved case: everything but the numbers


def find_module(name: str) -> ModuleType:
    """A backend by its name, a Python file by its path, or any module by its dotted name, looked for in the current
    directory too. ValueError where there is none, or where it cannot be imported."""
    if name in accel.BACKENDS:
        return accel.backend(name)
    here = str(Path.cwd())
    if here not in sys.path:
        sys.path.insert(0, here)
    try:
        return _from_path(Path(name)) if name.endswith(".py") else import_module(name)
    except Exception as error:
        known = ", ".join(accel.BACKENDS)
        told = f"{type(error).__name__}: {error}"
        raise ValueError(
            f"backend: got {name!r}, wanted one of {known}, a .py file or a module that can be imported ({told})"
        ) from None


def _from_path(path: Path) -> ModuleType:
    spec = util.spec_from_file_location(path.stem, path)
    if spec is None or spec.loader is None or not path.is_file():
        raise FileNotFoundError("no such file")
    module = util.module_from_spec(spec)
    sys.path.insert(0, str(path.parent.resolve()))  # what it imports from beside itself
    sys.modules[path.stem] = module
    spec.loader.exec_module(module)
    return module


def save_case(path: Path, function: str, case: Case) -> None:
    """Write a case to an .npz file: every array under its argument's name (bfloat16 as its bits, uint16), and how it
    lies in memory; other arguments as JSON."""
    arrays, layouts = {}, {}
    for name, x in leaves("", by_name(function, case.arguments, case.options)):
        wide = x.dtype != ml_dtypes.bfloat16
        arrays[name], layouts[name] = x if wide else x.view(np.uint16), [x.dtype.name, *layout_of(x)]
    about = {
        "function": function,
        "drawn": repr(case),
        "layouts": layouts,
        "arguments": _outline(case.arguments),
        "options": _outline(case.options),
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    np.savez(path, **{ABOUT: np.array(json.dumps(about)), **arrays})  # type: ignore[arg-type]


def load_case(path: Path) -> tuple[str, Case]:
    """The function and the case that a file holds. ValueError, naming the file, for one that holds none."""
    try:
        with np.load(path, allow_pickle=False) as file:
            require(ABOUT in file, f"got no {ABOUT} in it")
            about = json.loads(str(file[ABOUT]))
            arrays = iter([_laid_out(file[name], *layout) for name, layout in about["layouts"].items()])
        function = about["function"]
        arguments, options = (_filled(about[part], arrays) for part in ("arguments", "options"))
    except (OSError, ValueError, KeyError, TypeError, EOFError, StopIteration, zipfile.BadZipFile) as error:
        raise ValueError(f"{path}: wanted a case that `thresher verify --save` wrote: {error}") from None
    return function, Case({"file": f"{path.name}, drawn from {about['drawn']}"}, tuple(arguments), options)


def _laid_out(x: np.ndarray, dtype: str, strides: list[int], offset: int, writeable: bool) -> np.ndarray:
    x = x.view(ml_dtypes.bfloat16) if dtype == "bfloat16" else x
    require(x.dtype.name == dtype, f"got an array of {x.dtype}, wanted {dtype}")
    return place(x, Layout(tuple(strides), offset, writeable))[0]


def _outline(value: Any) -> Any:
    """An argument as JSON, in which "array" stands for each array, in order."""
    if isinstance(value, np.ndarray):
        return {"array": None}
    if isinstance(value, dict):
        return {"dict": {name: _outline(one) for name, one in value.items()}}
    if isinstance(value, (list, tuple)):
        return {type(value).__name__: [_outline(one) for one in value]}
    if is_dataclass(value):
        return {
            "dataclass": type(value).__name__,
            "fields": {f.name: _outline(getattr(value, f.name)) for f in fields(value)},
        }
    return value.item() if isinstance(value, np.generic) else value


def _filled(value: Any, arrays: Any) -> Any:
    """The argument that `_outline` told of, with its arrays."""
    if not isinstance(value, dict):
        return value
    if "array" in value:
        return next(arrays)
    if "dataclass" in value:
        return getattr(reference, value["dataclass"])(**{n: _filled(one, arrays) for n, one in value["fields"].items()})
    if "dict" in value:
        return {name: _filled(one, arrays) for name, one in value["dict"].items()}
    kind: Callable[[list[Any]], Any] = tuple if "tuple" in value else list
    return kind([_filled(one, arrays) for one in value[kind.__name__]])
