"""The commands about kernels: `warmup`."""

from __future__ import annotations

import sys
from types import ModuleType

from thresher.cli import options, show


def warmup(backend: options.Backend = "auto") -> None:
    """Compile all kernels ahead; they are kept on disk."""
    import accel

    count = compile_kernels(accel.backend(backend))
    print(f"{count} kernels are compiled." if count else "The reference compiles nothing.", file=sys.stderr)


def compile_kernels(backend: ModuleType) -> int:
    """Compile what is not on disk yet, with a bar: no first call is a silent wait. Returns how many there are."""
    if not hasattr(backend, "warmup"):
        return 0
    with show.kernel_progress() as progress:
        count: int = backend.warmup(progress)
    return count
