"""The standard streams as they are: closed, full, or in an encoding that has no emoji; and the text that comes through
them or from a file."""

from __future__ import annotations

import codecs
import errno
import io
import logging
import os
import stat
import sys
import warnings
from contextlib import suppress
from pathlib import Path
from typing import Any, NoReturn

from thresher.cli import words, wrap

log = logging.getLogger(__name__)


class _Closed(io.TextIOBase):
    """In place of a standard stream that is closed: to use it is an error that names it."""

    def __init__(self, name: str) -> None:
        self._name = name

    def _refuse(self, *_: Any) -> NoReturn:
        raise OSError(f"{self._name}: it is closed, wanted it open")

    read = readline = write = _refuse

    @property
    def buffer(self) -> Any:
        """Bytes are refused as well."""
        return self


def prepare() -> None:
    """Make the standard streams safe to use, whatever this process was started with."""
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # or a file that is opened later would take the number, and the output
    sys.stdin = sys.stdin or _Closed("standard input")
    sys.stdout = sys.stdout or _Closed("standard output")
    sys.stderr = sys.stderr or open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115 (open as long as the process)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # what it cannot encode is shown as an escape
    warnings.showwarning = lambda message, *_: tell(words.plain(str(message)))


def describe(error: OSError) -> str:
    """What an error of the system says. The one that names no file is a standard stream's, unless memory ran out."""
    nameless = error.errno not in (None, errno.ENOMEM) and error.filename is None
    return f"standard input or output: {error.strerror}" if nameless else str(error)


def tell(message: str) -> None:
    """One line on standard error."""
    with suppress(OSError):  # a full disk takes no complaints either
        wrap.note(f"thresher: {' '.join(message.split())}")


def complain(error: Exception) -> None:
    """Tell a mistake; what is logged at the level debug has its trace."""
    log.debug("where it came from", exc_info=error)
    if isinstance(error, OSError):
        tell(words.plain(describe(error)))
    elif isinstance(error, MemoryError):
        tell(f"this machine has not enough memory ({error})")
    else:
        tell(words.plain(str(error)))


def finish() -> None:
    """Write out what is buffered; where that fails, OSError, and nothing is left that would fail again at exit."""
    try:
        sys.stdout.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        raise


def shows_everything() -> bool:
    """Whether standard output takes any character."""
    return codecs.lookup(sys.stdout.encoding or "ascii").name.startswith("utf")


def read(file: Path) -> str:
    """A whole text, from standard input for "-"; with line ends and a byte-order mark of any system."""
    if str(file) == "-":
        return _decode("standard input", sys.stdin.buffer.read())
    return _decode(str(file), file.read_bytes())


def ask() -> str | None:
    """The next line of standard input, None at its end."""
    line = sys.stdin.buffer.readline()
    return _decode("standard input", line).strip() if line else None


def piped() -> bool:
    """Whether standard input is a pipe or a file, from which text comes without being asked for."""
    with suppress(OSError, ValueError, AttributeError):
        mode = os.fstat(sys.stdin.fileno()).st_mode
        return stat.S_ISFIFO(mode) or stat.S_ISREG(mode)
    return False


def _decode(name: str, data: bytes) -> str:
    encoding = "utf-16" if data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)) else "utf-8-sig"
    try:
        text = data.decode(encoding)
    except UnicodeDecodeError as error:
        raise ValueError(f"{name}: not UTF-8 text ({error.reason} at byte {error.start})") from None
    return text.replace("\r\n", "\n").replace("\r", "\n")
