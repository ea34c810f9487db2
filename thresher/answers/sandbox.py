"""Runs a program that a model wrote, in a process that can neither read, write, connect nor start anything.

The process gets the program on standard input, and no environment. Its time and its memory are limited by the system
(POSIX: Linux, and macOS, whose memory limit is loose); what may stand in a program says `sandbox_child`.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from importlib.util import find_spec
from pathlib import Path

from reference.checks import require

SECONDS, MEMORY = 5.0, 512 << 20  # bytes, the interpreter's own included
OUTPUT = 1 << 16  # bytes that may be written, and a file's size at most
CHILD = Path(__file__).with_name("sandbox_child.py")


class ProgramError(ValueError):
    """Why a program came to nothing, in one line."""


def run(program: str, *, seconds: float = SECONDS, memory: int = MEMORY) -> str:
    """What the program prints. ProgramError, in one line, where it is not allowed, fails, or exceeds its limits.

    seconds: of the clock, and of the processor rounded up. memory: bytes of its address space. OSError where the system
    has no such limits.
    """
    require(seconds > 0, f"seconds: got {seconds}, wanted more than 0")
    require(memory >= 64 << 20, f"memory: got {memory}, wanted at least 64 MiB, which Python itself needs")
    if find_spec("resource") is None:
        raise OSError("program: this system cannot limit a process, wanted Linux or macOS")
    limits = int(seconds) + 1, memory, OUTPUT
    with tempfile.TemporaryFile() as out:  # no pipe: a program cannot fill the parent's memory
        try:
            done = subprocess.run(
                [sys.executable, "-I", "-S", "-B", str(CHILD), *map(str, limits)],
                input=program.encode("utf-8", errors="replace"),
                stdout=out,
                stderr=subprocess.DEVNULL,
                timeout=seconds,
                env={},
                cwd="/",
                check=False,
            )
        except subprocess.TimeoutExpired:
            raise ProgramError(f"program: ran longer than {seconds:g} seconds, and was stopped") from None
        out.seek(0)
        text = out.read(OUTPUT).decode("utf-8", errors="replace")
    if done.returncode < 0:
        raise ProgramError(f"program: was stopped by signal {-done.returncode}")
    if done.returncode:
        raise ProgramError(f"program: {' '.join(text.split()) or 'failed without a word'}")
    return text
