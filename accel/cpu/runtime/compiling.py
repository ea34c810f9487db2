"""Compiled code, and how it is kept on disk.

Every function has a file of its own for each stamp: a hash of all that its code depends on, which stands in the file's
name. Machines that share a home, and versions of this package, so keep their code side by side. A file is written
whole or not at all, and begins with a checksum: one that is damaged counts as none. Where nothing can be written code
is compiled in memory, at every start.
"""

from __future__ import annotations

import hashlib
import logging
import os
import pickle
import sys
import time
import uuid
import zlib
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any, ClassVar

import llvmlite
import numba
from numba import config, njit, types
from numba.core.caching import NullCache
from numba.core.ccallback import CFunc
from numba.core.compiler import CompileResult
from numba.core.compiler_lock import global_compiler_lock
from numba.core.registry import cpu_target
from numba.core.serialize import dumps
from numba.misc.appdirs import AppDirs

from accel.cpu.runtime.linking import linked_at_once
from accel.cpu.simd import LANES, MATRIX, REGISTERS

PACKAGE = Path(__file__).parents[1]
UNUSED = 90 * 86400  # seconds after which code of another stamp is deleted
_CHECK = 4  # bytes of a checksum


def stamp() -> str:
    """A hash of this package's sources, the compiler, Python, and the machine that code is compiled for."""
    cpu_target.target_context.refresh()  # before the first kernel is asked for, since it takes a while
    machine = cpu_target.target_context.codegen().magic_tuple()  # system, processor, features
    parts = sys.version_info[:2], numba.__version__, llvmlite.__version__, machine, LANES, REGISTERS, MATRIX
    digest = hashlib.sha256(repr(parts).encode())
    for path in sorted(PACKAGE.rglob("*.py")):
        digest.update(path.read_bytes())
    return digest.hexdigest()[:16]


def folders() -> list[Path]:
    """Where code may lie, the first choice first: $NUMBA_CACHE_DIR and nowhere else, if it is set; or beside this
    package, where who installed it may have compiled for all; or in the user's cache."""
    settings: Any = config
    if settings.CACHE_DIR:
        return [Path(settings.CACHE_DIR) / "accel-cpu"]
    users = Path(AppDirs("numba", appauthor=False).user_cache_dir) / "accel-cpu"
    return [PACKAGE / "__pycache__", *([users] if users.is_absolute() else [])]  # "~/…" where nobody has a home


class _Kept(NullCache):
    """The code of one function on disk, as Numba's compilers ask for it."""

    stamp: ClassVar[str] = ""
    folders: ClassVar[list[Path]] = []
    told: ClassVar[bool] = False  # that nothing can be kept

    def __init__(self, function: Callable) -> None:
        self._name = f"{function.__module__.removeprefix('accel.cpu.')}.{function.__name__}"

    def is_there(self) -> bool:
        """Whether there is a file of its code."""
        return any((folder / f"{self._name}-{self.stamp}.code").is_file() for folder in self.folders)

    def load_overload(self, sig: Any, target_context: Any) -> CompileResult | None:
        """The code, from the first folder that has it whole."""
        target_context.refresh()
        for folder in self.folders:
            path = folder / f"{self._name}-{self.stamp}.code"
            with suppress(OSError):
                data = path.read_bytes()
                if data[:_CHECK] == _checksum(data[_CHECK:]):
                    with suppress(OSError):
                        os.utime(path)  # still in use
                    return CompileResult._rebuild(target_context, *pickle.loads(data[_CHECK:]))
        return None

    def save_overload(self, sig: Any, data: CompileResult) -> None:
        """Write it to the first folder that takes it; says once where none does."""
        code, why = dumps(data._reduce()), ""
        for folder in self.folders:
            try:
                folder.mkdir(parents=True, exist_ok=True)
                _write(folder / f"{self._name}-{self.stamp}.code", _checksum(code) + code)
            except OSError as error:
                why += f" {folder} ({error.strerror});"
            else:
                self._tidy(folder)
                return
        if not _Kept.told:
            _Kept.told = True
            logging.getLogger("accel.cpu").warning(
                "compiled kernels cannot be kept, so every start compiles them anew:%s set NUMBA_CACHE_DIR to a folder "
                "that can be written", why,
            )  # fmt: skip

    def _tidy(self, folder: Path) -> None:
        """Delete this function's code of other stamps that nobody loaded for long. Who wanted it would compile it."""
        with suppress(OSError):
            for path in folder.glob(f"{self._name}-*.code"):
                if time.time() - path.stat().st_mtime > UNUSED:
                    path.unlink()


_Kept.stamp, _Kept.folders = stamp(), folders()


def can_keep() -> bool:
    """Whether code can be written anywhere: another process could not hand it over otherwise."""
    for folder in _Kept.folders:
        with suppress(OSError):
            folder.mkdir(parents=True, exist_ok=True)
            with TemporaryFile(dir=folder):
                return True
    return False


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


class _Callback(CFunc):
    """Compiled in one go with all that it calls."""

    _cache: Any

    def is_kept(self) -> bool:
        """Whether its code lies on disk."""
        return isinstance(self._cache, _Kept) and self._cache.is_there()

    def _compile_uncached(self) -> CompileResult:
        with linked_at_once():
            whole: Any = super()._compile_uncached()  # type: ignore[misc]
            whole.library._ensure_finalized()
        return whole


def callback(function: Callable, words: int) -> Any:
    """A function of so many words that other code calls by its address."""
    signature = (types.int64,) * words, types.void
    code: Any = _Callback(function, signature, locals={}, options={"nopython": True, "error_model": "numpy"})
    return _kept(code, function)


def compiled(function: Callable) -> Any:
    """Decorator: a function of words that Python calls, and that runs without the interpreter's lock."""
    code: Any = njit(nogil=True, error_model="numpy")(function)
    return _kept(code, function)


def _kept(code: Any, function: Callable) -> Any:
    """Let code be kept on disk if it is this package's: the stamp knows no other sources."""
    if function.__module__.startswith("accel.cpu."):
        code._cache = _Kept(function)
    return code


if hasattr(os, "register_at_fork"):
    # A child cannot go on with what another thread was compiling, so that a fork waits until nobody compiles.
    release = global_compiler_lock.release
    os.register_at_fork(before=global_compiler_lock.acquire, after_in_parent=release, after_in_child=release)
