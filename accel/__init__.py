"""The kernel contract, fast: `accel.cpu` in Numba, `accel.cuda` in numba.cuda. `backend` finds a backend by name, and
loads it only then."""

from importlib import import_module
from types import ModuleType

BACKENDS = {"reference": "reference", "cpu": "accel.cpu", "cuda": "accel.cuda", "auto": "accel.cpu"}


def backend(name: str) -> ModuleType:
    """The module that computes: "reference", "cpu", "cuda", or "auto" for the fastest here. ValueError for another
    name."""
    if name not in BACKENDS:
        raise ValueError(f"backend: got {name!r}, wanted one of {', '.join(BACKENDS)}")
    return import_module(BACKENDS[name])
