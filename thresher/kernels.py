"""Kernels are compiled before a model answers, once for a machine, and whoever waits sees how far it is."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

from reference import Policy

_WIDTH = 30  # characters of the bar


def compile_kernels(backend: Any, policy: Policy | None = None) -> int:
    """Compile what a model needs under a policy, or everything, as far as it is not on disk. Returns how many kernels
    there are, none where the backend compiles nothing ahead; one that compiles for what it is called with names each
    kernel when it does."""
    if hasattr(backend, "tell_compiling") and sys.stderr.isatty():
        backend.tell_compiling(_line)
    if not hasattr(backend, "warmup"):
        return 0
    progress = _bar() if sys.stderr.isatty() else None
    count: int = backend.warmup(progress) if policy is None else backend.warmup(progress, policy)
    return count


def _line(name: str) -> None:
    """Which kernel is being compiled, on standard error, in a line that is wiped for the name ""."""
    told = f"Compiling, once for this machine: {name}" if name else ""
    print(f"\r\x1b[K{told}", end="", file=sys.stderr, flush=True)


def _bar() -> Callable[[str, int, int], None]:
    """A bar on standard error, in a line that is wiped at the end. It shows nothing while nothing is compiled."""
    shown = False

    def update(name: str, done: int, total: int) -> None:
        nonlocal shown
        if done < total:
            filled = _WIDTH * done // total
            bar = f"[{'#' * filled}{'.' * (_WIDTH - filled)}]"
            sys.stderr.write(f"\r\x1b[KCompiling, once for this machine {bar} {done}/{total} {name}")
            shown = True
        elif shown:
            sys.stderr.write("\r\x1b[K")
        sys.stderr.flush()

    return update
