"""Kernels as images: code that runs wherever it stands, without LLVM."""

from __future__ import annotations

import struct
from ctypes import CFUNCTYPE, c_int64
from pathlib import Path
from typing import Any

import llvmlite.binding as llvm
import numpy as np
import pytest

from accel.cpu.runtime import image
from accel.cpu.runtime.image import image_of, loaded
from accel.cpu.runtime.target import target_machine

pytestmark = pytest.mark.skipif(not image.IMAGES, reason="this system's kernels are loaded by LLVM")

# Writes 40 + 2.5 and, from a table of constants, x²; and calls a function of its own, and one of the system's.
SOURCE = """
@table = internal constant [4 x i64] [i64 0, i64 1, i64 4, i64 9]
declare ptr @memset(ptr, i32, i64)
define internal double @sum(double %x) noinline { %y = fadd double %x, 2.5  ret double %y }
define void @kernel(i64 %at, i64 %x) {
  %p = inttoptr i64 %at to ptr
  %q = getelementptr i64, ptr %p, i64 1
  %r = getelementptr i64, ptr %p, i64 2
  %y = call double @sum(double 40.0)
  store double %y, ptr %p
  %from = getelementptr [4 x i64], ptr @table, i64 0, i64 %x
  %z = load i64, ptr %from
  store i64 %z, ptr %q
  %w = call ptr @memset(ptr %r, i32 1, i64 8)
  ret void
}
"""


def machine(kind: str) -> Any:
    """As kernels are compiled, or with addresses that are relative throughout."""
    if kind == "kernels":
        return target_machine()
    target = llvm.Target.from_triple(llvm.get_process_triple())
    return target.create_target_machine(reloc="pic", codemodel="small")


def compiled(source: str, kind: str = "kernels") -> bytes:
    code: bytes = machine(kind).emit_object(llvm.parse_assembly(source))
    return code


@pytest.mark.parametrize("kind", ["kernels", "relative"])
def test_an_image_runs_wherever_it_stands(kind: str) -> None:
    source = SOURCE if kind == "kernels" else SOURCE.replace("%w = call ptr @memset(ptr %r, i32 1, i64 8)", "")
    made = image_of(compiled(source, kind), "kernel")
    addresses = [loaded(made) for _ in range(3)]
    assert len(set(addresses)) == 3
    for address in addresses:
        for x in range(4):
            memory = np.zeros(3, np.int64)
            CFUNCTYPE(None, c_int64, c_int64)(address)(memory.ctypes.data, x)
            assert memory[:1].view(np.float64).tolist() == [42.5]
            assert memory[1:].tolist() == [x * x, 0x0101010101010101 if kind == "kernels" else 0]


def test_nobody_can_write_where_code_runs() -> None:
    address = loaded(image_of(compiled(SOURCE), "kernel"))
    for line in Path("/proc/self/maps").read_text().splitlines():
        start, stop = (int(word, 16) for word in line.split()[0].split("-"))
        if start <= address < stop:
            assert line.split()[1] == "r-xp"
            return
    raise AssertionError("no such memory")


def test_what_an_image_cannot_hold_is_refused() -> None:
    variable = "@far = external global i64\ndefine void @kernel() { store i64 1, ptr @far ret void }"
    with pytest.raises(ValueError, match="kernel: got far, wanted a function of C"):
        image_of(compiled(variable, "relative"), "kernel")
    for here in ("common global i64 0", "global i64 0", "global i64 7"):
        source = f"@here = {here}\ndefine void @kernel() {{ store i64 1, ptr @here ret void }}"
        with pytest.raises(ValueError, match=r"kernel: got .*, wanted a function of C"):
            image_of(compiled(source), "kernel")
    code = bytearray(compiled(SOURCE))
    (start,), (count,) = struct.unpack_from("<Q", code, 40), struct.unpack_from("<H", code, 60)
    for n in range(count):
        kind, at = struct.unpack_from("<4xI16xQ", code, start + 64 * n)
        if kind == 4:
            code[at + 8] = 250  # the kind of the section's first relocation
    with pytest.raises(ValueError, match="kernel: got relocation 250, wanted 1, 2, 4 or 24 of x86-64"):
        image_of(bytes(code), "kernel")
