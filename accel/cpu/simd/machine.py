"""Which registers the machine has: what the shapes of tiles are fitted to.

Asked of LLVM for the CPU that Numba compiles for (NUMBA_CPU_NAME, if set): 32 registers of 16 float32 on AVX-512, 16 of
8 on AVX2, 32 of 4 on NEON, 16 of 4 wherever else. Some processors multiply pairs of bfloat16 in those registers
(AVX512-BF16), and some have a matrix unit for them beside (AMX: eight tiles of 16 rows of 64 bytes), which the system
lets a process use when asked.
"""

from __future__ import annotations

import ctypes
import os
import sys

import llvmlite.binding as llvm

llvm.initialize_native_target()
llvm.initialize_native_asmprinter()


def target() -> tuple[str, str]:
    """Name and features of the processor that kernels are compiled for."""
    name, features = os.environ.get("NUMBA_CPU_NAME"), os.environ.get("NUMBA_CPU_FEATURES")
    if name is not None:
        return name, features or ""
    return llvm.get_host_cpu_name(), features or llvm.get_host_cpu_features().flatten()


def _compiled(name: str, features: str, work: str, stored: str) -> str:
    """What LLVM makes of 16 float32 on which some work is done, its result %y being stored as another kind."""
    source = (
        f"define void @f(ptr %p) {{\n %x = load <16 x float>, ptr %p\n {work}\n store <16 x {stored}> %y, ptr %p\n"
        " ret void\n}"
    )
    machine = llvm.Target.from_default_triple().create_target_machine(cpu=name, features=features)
    return machine.emit_assembly(llvm.parse_assembly(source))


def _registers(name: str, features: str) -> tuple[int, int]:
    """Lanes of float32 in a register, and how many registers: by the features, or where only the processor's name is
    given by compiling one vector addition, which needs 20 MB."""
    for feature, found in (("+avx512f", (16, 32)), ("+avx", (8, 16)), ("+neon", (4, 32))):
        if feature in features.split(","):
            return found
    text = _compiled(name, features, "%y = fadd <16 x float> %x, %x", "float")
    if "zmm" in text:
        return 16, 32
    if "ymm" in text:
        return 8, 16
    return 4, 32 if llvm.Target.from_default_triple().name.startswith(("aarch64", "arm64")) else 16


def _rounds(name: str, features: str) -> bool:
    """Whether registers of 16 float32 are rounded to bfloat16 in one instruction, and pairs of those multiplied."""
    if "avx512bf16" in features:
        return "+avx512bf16" in features.split(",")
    text = _compiled(name, features, "%y = fptrunc <16 x float> %x to <16 x bfloat>", "bfloat")
    return "vcvtneps2bf16" in text


def _matrix_unit(features: str) -> bool:
    """Whether there is a matrix unit for bfloat16 that this process may use. Linux grants it once, for all threads."""
    if not {"+amx-tile", "+amx-bf16"} <= set(features.split(",")) or sys.platform != "linux":
        return False
    arch_prctl, request_permission, tile_data = 158, 0x1023, 18
    return ctypes.CDLL(None).syscall(arch_prctl, request_permission, tile_data) == 0


LANES, REGISTERS = _registers(*target())
_ROUNDS = LANES == 16 and _rounds(*target())
MATRIX = _ROUNDS and _matrix_unit(target()[1])
# Whether products of bfloat16 are faster than of float32. In Intel's registers they take twice as long (measured).
PAIRS = MATRIX or (_ROUNDS and target()[0].startswith("znver"))
VECTORS = 4 if REGISTERS == 32 else 2  # columns of a register tile, in registers
ROWS = 6 if REGISTERS == 32 or LANES == 8 else 4  # rows of it: ROWS · VECTORS sums, VECTORS of B, one of A
HALF = LANES > 4 or REGISTERS == 32  # converts float16 by itself: AVX2 and later, NEON
