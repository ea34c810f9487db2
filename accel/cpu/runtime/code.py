"""Machine code: kept on disk, and loaded without the compiler.

Every function has a file of its own for each stamp: a hash of all that its code depends on, which stands in the file's
name. Machines that share a home, and versions of this package, so keep their code side by side. A file is written
whole or not at all, and begins with a checksum: one that is damaged counts as none. Where nothing can be written code
is compiled in memory, at every start.

What is kept is an object file of LLVM with one symbol, which needs nothing but the system's library of C. Only where
there is none Numba is loaded, to compile it (compiling.py).
"""

from __future__ import annotations

import hashlib
import logging
import os
import sys
import threading
import time
import uuid
import zlib
from collections.abc import Callable
from contextlib import suppress
from ctypes import CFUNCTYPE, c_int64
from importlib.metadata import version
from inspect import signature
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any, ClassVar

import llvmlite.binding as llvm

from accel.cpu.runtime.target import SYMBOL, target_machine
from accel.cpu.simd.machine import LANES, MATRIX, REGISTERS, target

PACKAGE = Path(__file__).parents[1]
UNUSED = 90 * 86400  # seconds after which code of another stamp is deleted
_CHECK = 4  # bytes of a checksum

# Held while code is compiled or loaded. A child cannot go on with what another thread was doing, so that a fork waits.
lock = threading.RLock()
if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=lock.acquire, after_in_parent=lock.release, after_in_child=lock.release)


def stamp() -> str:
    """A hash of this package's sources, the compiler, Python, and the machine that code is compiled for."""
    machine = llvm.get_process_triple(), *target()
    parts = sys.version_info[:2], version("numba"), version("llvmlite"), machine, LANES, REGISTERS, MATRIX
    digest = hashlib.sha256(repr(parts).encode())
    for path in sorted(PACKAGE.rglob("*.py")):
        digest.update(path.read_bytes())
    return digest.hexdigest()[:16]


def folders() -> list[Path]:
    """Where code may lie, the first choice first: $NUMBA_CACHE_DIR and nowhere else, if it is set; or beside this
    package, where who installed it may have compiled for all; or in the user's cache."""
    if own := os.environ.get("NUMBA_CACHE_DIR"):
        return [Path(own) / "accel-cpu"]
    users = user_cache() / "numba" / "accel-cpu"
    return [PACKAGE / "__pycache__", *([users] if users.is_absolute() else [])]  # "~/…" where nobody has a home


def user_cache() -> Path:
    """Where the system wants a user's caches."""
    if sys.platform == "win32":
        return Path(os.environ.get("LOCALAPPDATA", "~/AppData/Local")).expanduser()
    if sys.platform == "darwin":
        return Path(os.path.expanduser("~/Library/Caches"))
    return Path(os.path.expanduser(os.environ.get("XDG_CACHE_HOME") or "~/.cache"))


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
        for path in [folder / self._file for folder in self.folders if self._is_ours]:
            with suppress(OSError):
                data = path.read_bytes()
                if data[:_CHECK] == _checksum(data[_CHECK:]):
                    with suppress(OSError):
                        os.utime(path)  # still in use
                    return data[_CHECK:]
        return None

    def _write(self, code: bytes) -> None:
        """Write it to the first folder that takes it; says once where none does."""
        why = ""
        for folder in self.folders:
            try:
                folder.mkdir(parents=True, exist_ok=True)
                _write(folder / self._file, _checksum(code) + code)
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
    """The address at which an object file's function stands from now on."""
    engine = llvm.create_mcjit_compiler(llvm.parse_assembly(""), target_machine())
    engine.add_object_file(llvm.ObjectFileRef.from_data(code))
    engine.finalize_object()
    _engines.append(engine)
    return engine.get_function_address(SYMBOL)


_engines: list[Any] = []  # each of the functions loaded lives in one


def _checksum(code: bytes) -> bytes:
    return zlib.crc32(code).to_bytes(_CHECK, "little")


def _write(path: Path, data: bytes) -> None:
    """Write a file that others see whole or not at all."""
    part = path.with_name(f"{path.name}.{uuid.uuid4().hex[:8]}")
    try:
        part.write_bytes(data)
        part.replace(path)
    except BaseException:  # an interrupt too
        with suppress(OSError):
            part.unlink()
        raise
