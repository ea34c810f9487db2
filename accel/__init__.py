"""The kernel contract, fast: `accel.cpu` in Numba, `accel.cuda` in numba.cuda. `backend` finds a backend by name, and
loads it only then."""

import ctypes
import os
import sys
from importlib import import_module
from types import ModuleType

BACKENDS = ("reference", "cpu", "cuda", "auto")


def backend(name: str, nbytes: int = 0) -> ModuleType:
    """The module that computes: "reference", "cpu", "cuda", or "auto", the GPU where there is one with `nbytes` free,
    else the processor. ValueError for another name, and for "cuda" where no GPU can be used, with what would help."""
    if name not in BACKENDS:
        raise ValueError(f"backend: got {name!r}, wanted one of {', '.join(BACKENDS)}")
    if name == "cuda":
        try:
            return _opened()
        except (ImportError, RuntimeError) as error:
            raise ValueError(f"backend: got 'cuda': {_reason(error)}") from None
    if name == "auto":
        return _opened() if _free() > nbytes else import_module("accel.cpu")
    return import_module("reference" if name == "reference" else "accel.cpu")


def gpu() -> str:
    """The GPU that "cuda" would use, its compute capability and memory; or in one line why there is none."""
    try:
        return str(_opened().device_name())
    except (ImportError, RuntimeError) as error:
        return f"none ({_reason(error)})"


def _opened() -> ModuleType:
    """`accel.cuda`, once its device is open."""
    if os.environ.get("NUMBA_ENABLE_CUDASIM") == "1":  # kernels are interpreted: no device is there, nor wanted
        return import_module("accel.cuda")
    name = "nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1"
    try:
        ctypes.CDLL(name)
    except OSError:  # so that nothing is loaded that could do nothing
        raise RuntimeError("found no NVIDIA driver on this machine; backend='cpu' needs none") from None
    found = import_module("accel.cuda")
    found.device_name()
    return found


def _free() -> int:
    """Bytes free on the GPU, 0 without one."""
    try:
        return int(_opened().free_memory())
    except (ImportError, RuntimeError):
        return 0


def _reason(error: Exception) -> str:
    if isinstance(error, ImportError):
        return f"{error}; install what it needs with: pip install 'thresher[cuda]'"
    return str(error).removeprefix("cuda: ")
