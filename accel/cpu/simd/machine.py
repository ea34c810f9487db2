"""Which registers the machine has: what the shapes of tiles are fitted to.

Asked of LLVM for the CPU that Numba compiles for (NUMBA_CPU_NAME, if set): 32 registers of 16 float32 on AVX-512, 16 of
8 on AVX2, 32 of 4 on NEON, 16 of 4 wherever else. Some processors have a matrix unit beside them (AMX: eight tiles of
16 rows of 64 bytes), which the system lets a process use when asked.
"""

from __future__ import annotations

import ctypes
import sys
from typing import Any

import llvmlite.binding as llvm
from numba import config

llvm.initialize_native_target()
llvm.initialize_native_asmprinter()


def _target() -> tuple[str, str]:
    """Name and features of the processor that Numba compiles for."""
    settings: Any = config
    if settings.CPU_NAME is not None:
        return settings.CPU_NAME, settings.CPU_FEATURES or ""
    return llvm.get_host_cpu_name(), settings.CPU_FEATURES or llvm.get_host_cpu_features().flatten()


def _registers(name: str, features: str) -> tuple[int, int]:
    """Lanes of float32 in a register, and how many registers, found by compiling one vector addition."""
    source = (
        "define void @f(<16 x float>* %p) {\n %x = load <16 x float>, <16 x float>* %p\n"
        " %y = fadd <16 x float> %x, %x\n store <16 x float> %y, <16 x float>* %p\n ret void\n}"
    )
    target = llvm.Target.from_default_triple()
    text = target.create_target_machine(cpu=name, features=features).emit_assembly(llvm.parse_assembly(source))
    if "zmm" in text:
        return 16, 32
    if "ymm" in text:
        return 8, 16
    return 4, 32 if target.name.startswith(("aarch64", "arm64")) else 16


def _matrix_unit(features: str) -> bool:
    """Whether there is a matrix unit for bfloat16 that this process may use. Linux grants it once, for all threads."""
    if not {"+amx-tile", "+amx-bf16"} <= set(features.split(",")) or sys.platform != "linux":
        return False
    arch_prctl, request_permission, tile_data = 158, 0x1023, 18
    return ctypes.CDLL(None).syscall(arch_prctl, request_permission, tile_data) == 0


LANES, REGISTERS = _registers(*_target())
MATRIX = LANES == 16 and _matrix_unit(_target()[1])
VECTORS = 4 if REGISTERS == 32 else 2  # columns of a register tile, in registers
ROWS = 6 if REGISTERS == 32 or LANES == 8 else 4  # rows of it: ROWS · VECTORS sums, VECTORS of B, one of A
HALF = LANES > 4 or REGISTERS == 32  # converts float16 by itself: AVX2 and later, NEON
