"""Which registers the machine has: what the shapes of tiles are fitted to.

Asked of LLVM for the CPU that Numba compiles for (NUMBA_CPU_NAME, if set): 32 registers of 16 float32 on AVX-512, 16 of
8 on AVX2, 32 of 4 on NEON, 16 of 4 wherever else. Some processors multiply pairs of bfloat16 in those registers
(AVX512-BF16), and some have a matrix unit for them beside (AMX: eight tiles of 16 rows of 64 bytes), which the system
lets a process use when asked. LLVM's library is large: on Linux what it says is kept, and found again by what
/proc/cpuinfo says of the processor.
"""

from __future__ import annotations

import ctypes
import hashlib
import json
import os
import platform
import sys
from contextlib import suppress
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

from accel.cpu.simd import kept


class Machine(NamedTuple):
    """The processor that kernels are compiled for, as LLVM knows it, and its registers."""

    system: str
    name: str
    features: str
    lanes: int
    registers: int
    rounds: bool


def _machine() -> Machine:
    """What was kept for this processor, or what LLVM says."""
    processor = _processor()
    if not processor:
        return _asked()
    paths = [folder / f"{hashlib.sha256(processor.encode()).hexdigest()[:16]}.machine" for folder in kept.folders()]
    for path in paths:
        if (data := kept.read(path)) is not None:
            return Machine(*json.loads(data))
    machine = _asked()
    for path in paths:
        with suppress(OSError):
            kept.write(path, json.dumps(machine).encode())
            break
    return machine


def _processor() -> str:
    """All that LLVM's answer and this file's reading of it depend on; nothing where that is not known."""
    with suppress(OSError):
        first = Path("/proc/cpuinfo").read_text().partition("\n\n")[0]
        known = [line for line in first.splitlines() if not line.startswith(("processor", "cpu MHz", "bogomips"))]
        wanted = [os.environ.get(name) for name in ("NUMBA_CPU_NAME", "NUMBA_CPU_FEATURES")]
        if any(line.startswith("flags") for line in known):
            return repr((known, wanted, version("llvmlite"), Path(__file__).read_text()))
    return ""


def ready_llvm() -> Any:
    """LLVM, ready for this machine."""
    import llvmlite.binding as llvm

    llvm.initialize_native_target()
    llvm.initialize_native_asmprinter()
    return llvm


def _asked() -> Machine:
    """What LLVM says."""
    llvm = ready_llvm()
    name, features = os.environ.get("NUMBA_CPU_NAME"), os.environ.get("NUMBA_CPU_FEATURES")
    if name is None:
        name, features = llvm.get_host_cpu_name(), features or llvm.get_host_cpu_features().flatten()
    features = features or ""
    lanes, registers = _registers(name, features)
    rounds = lanes == 16 and _rounds(name, features)
    return Machine(llvm.get_process_triple(), name, features, lanes, registers, rounds)


def _compiled(name: str, features: str, work: str, stored: str) -> str:
    """What LLVM makes of 16 float32 on which some work is done, its result %y being stored as another kind."""
    llvm = ready_llvm()
    source = (
        f"define void @f(ptr %p) {{\n %x = load <16 x float>, ptr %p\n {work}\n store <16 x {stored}> %y, ptr %p\n"
        " ret void\n}"
    )
    machine = llvm.Target.from_default_triple().create_target_machine(cpu=name, features=features)
    text: str = machine.emit_assembly(llvm.parse_assembly(source))
    return text


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
    return 4, 32 if platform.machine() in ("aarch64", "arm64", "ARM64") else 16


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


MACHINE = _machine()
LANES, REGISTERS = MACHINE.lanes, MACHINE.registers
MATRIX = MACHINE.rounds and _matrix_unit(MACHINE.features)
# Whether products of bfloat16 are faster than of float32. In Intel's registers they take twice as long (measured).
PAIRS = MATRIX or (MACHINE.rounds and MACHINE.name.startswith("znver"))
VECTORS = 4 if REGISTERS == 32 else 2  # columns of a register tile, in registers
ROWS = 6 if REGISTERS == 32 or LANES == 8 else 4  # rows of it: ROWS · VECTORS sums, VECTORS of B, one of A
HALF = LANES > 4 or REGISTERS == 32  # converts float16 by itself: AVX2 and later, NEON
