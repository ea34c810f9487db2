"""The kernel contract, fast: `accel.cpu` in Numba. `backend` finds a backend by name, and loads it only then."""

from importlib import import_module
from importlib.util import find_spec
from types import ModuleType

BACKENDS = {"reference": "reference", "cpu": "accel.cpu"}


def backend(name: str) -> ModuleType:
    """The module that computes: "reference", "cpu", or "auto" for the fastest here. ValueError for another name."""
    if name == "auto":
        name = "cpu" if find_spec("accel.cpu.attention") else "reference"
    if name not in BACKENDS:
        raise ValueError(f"backend: got {name!r}, wanted one of {', '.join(BACKENDS)}, auto")
    return import_module(BACKENDS[name])
