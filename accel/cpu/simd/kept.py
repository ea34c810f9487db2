"""Files that are kept from one start to the next: where they lie, and how they are read and written.

A file is written whole or not at all, and begins with a checksum: one that is damaged counts as none.
"""

from __future__ import annotations

import os
import sys
import uuid
import zlib
from contextlib import suppress
from pathlib import Path

PACKAGE = Path(__file__).parents[1]
_CHECK = 4  # bytes of a checksum


def folders() -> list[Path]:
    """Where files may lie, the first choice first: $NUMBA_CACHE_DIR and nowhere else, if it is set; or beside this
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


def read(path: Path) -> bytes | None:
    """What was written to a file, or None where there is none that is whole."""
    with suppress(OSError):
        data = path.read_bytes()
        if data[:_CHECK] == _checksum(data[_CHECK:]):
            with suppress(OSError):
                os.utime(path)  # still in use
            return data[_CHECK:]
    return None


def write(path: Path, data: bytes) -> None:
    """Write a file that others see whole or not at all; the folder is made."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f"{path.name}.{uuid.uuid4().hex[:8]}")
    try:
        part.write_bytes(_checksum(data) + data)
        part.replace(path)
    except BaseException:  # an interrupt too
        with suppress(OSError):
            part.unlink()
        raise


def _checksum(data: bytes) -> bytes:
    return zlib.crc32(data).to_bytes(_CHECK, "little")
