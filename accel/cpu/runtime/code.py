"""Machine code: kept on disk, and loaded without the compiler.

Every function has a file of its own for each stamp: a hash of all that its code depends on, which stands in the file's
name. Machines that share a home, and versions of this package, so keep their code side by side. Where nothing can be
written code is compiled in memory, at every start.

What is kept needs nothing but the system's library of C, on Linux and x86-64 not even LLVM (image.py). Only where there
is none Numba is loaded, to compile it (compiling.py).
"""

from __future__ import annotations

import hashlib
import logging
import os
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from ctypes import CFUNCTYPE, c_int64
from importlib.metadata import version
from inspect import signature
from pathlib import Path
from tempfile import TemporaryFile
from typing import ClassVar

from accel.cpu.runtime import image
from accel.cpu.simd import kept
from accel.cpu.simd.kept import PACKAGE, folders
from accel.cpu.simd.machine import MACHINE, MATRIX

UNUSED = 90 * 86400  # seconds after which code of another stamp is deleted

# Held while code is compiled or loaded. A child cannot go on with what another thread was doing, so that a fork waits.
lock = threading.RLock()
if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=lock.acquire, after_in_parent=lock.release, after_in_child=lock.release)


def stamp() -> str:
    """A hash of this package's sources, the compiler, Python, and the machine that code is compiled for."""
    parts = sys.version_info[:2], version("numba"), version("llvmlite"), MACHINE, MATRIX
    digest = hashlib.sha256(repr(parts).encode())
    for path in sorted(PACKAGE.rglob("*.py")):
        digest.update(path.read_bytes())
    return digest.hexdigest()[:16]


class Code:
    """The machine code of a function of so many words."""

    stamp: ClassVar[str] = stamp()
    folders: ClassVar[list[Path]] = folders()
    told: ClassVar[bool] = False  # that nothing can be kept

    def __init__(self, function: Callable, words: int) -> None:
        self._function, self._words = function, words
        self.name = f"{function.__module__.removeprefix('accel.cpu.')}.{function.__name__}"
        self._is_ours = function.__module__.startswith("accel.cpu.")  # the stamp knows no other sources
        self._address = 0
        self.was_kept = False  # when it was loaded

    @property
    def address(self) -> int:
        """Where it stands; loaded from disk, or compiled, on first use."""
        if not self._address:
            with lock:
                code = self._read()
                self.was_kept = code is not None
                self._address = load(self._compiled() if code is None else code)
        return self._address

    def is_kept(self) -> bool:
        """Whether there is a file of it."""
        return self._is_ours and any((folder / self._file).is_file() for folder in self.folders)

    @property
    def _file(self) -> str:
        return f"{self.name}-{self.stamp}.code"

    def _compiled(self) -> bytes:
        from accel.cpu.runtime.compiling import compile_code

        code = compile_code(self._function, self._words)
        if self._is_ours:
            self._write(code)
        return code

    def _read(self) -> bytes | None:
        """The code, from the first folder that has it whole."""
        for folder in self.folders if self._is_ours else ():
            if (code := kept.read(folder / self._file)) is not None:
                return code
        return None

    def _write(self, code: bytes) -> None:
        """Write it to the first folder that takes it; says once where none does."""
        why = ""
        for folder in self.folders:
            try:
                kept.write(folder / self._file, code)
            except OSError as error:
                why += f" {folder} ({error.strerror});"
            else:
                self._tidy(folder)
                return
        if not Code.told:
            Code.told = True
            logging.getLogger("accel.cpu").warning(
                "compiled kernels cannot be kept, so every start compiles them anew:%s set NUMBA_CACHE_DIR to a folder "
                "that can be written", why,
            )  # fmt: skip

    def _tidy(self, folder: Path) -> None:
        """Delete this function's code of other stamps that nobody loaded for long. Who wanted it would compile it."""
        with suppress(OSError):
            for path in folder.glob(f"{self.name}-*.code"):
                if time.time() - path.stat().st_mtime > UNUSED:
                    path.unlink()


class compiled:
    """Decorator: a function of words that Python calls too, and that runs without the interpreter's lock."""

    def __init__(self, function: Callable) -> None:
        words = len(signature(function).parameters)
        self._code, self._kind = Code(function, words), CFUNCTYPE(None, *[c_int64] * words)
        self.name = self._code.name
        self._call: Callable | None = None

    @property
    def address(self) -> int:
        """Where its machine code stands; loaded, or compiled, on first use."""
        return self._code.address

    def is_kept(self) -> bool:
        """Whether its machine code lies on disk."""
        return self._code.is_kept()

    def __call__(self, *words: int) -> None:
        """Run it."""
        if self._call is None:
            self._call = self._kind(self.address)
        self._call(*words)


def can_keep() -> bool:
    """Whether code can be written anywhere: another process could not hand it over otherwise."""
    for folder in Code.folders:
        with suppress(OSError):
            folder.mkdir(parents=True, exist_ok=True)
            with TemporaryFile(dir=folder):
                return True
    return False


def load(code: bytes) -> int:
    """The address at which a function stands from now on."""
    if image.IMAGES:
        return image.loaded(code)
    from accel.cpu.runtime.target import loaded

    return loaded(code)
