"""What compiling and loading have to agree on: the processor that code is for, and the name of a kernel in its code."""

from __future__ import annotations

from typing import Any

import llvmlite.binding as llvm

from accel.cpu.simd.machine import target

SYMBOL = "kernel"


def target_machine() -> Any:
    """LLVM's code generator for the processor that kernels are compiled for, as code is loaded in this process."""
    name, features = target()
    relocation = "static" if llvm.get_process_triple().startswith(("x86", "i686")) else "default"
    return llvm.Target.from_triple(llvm.get_process_triple()).create_target_machine(
        cpu=name, features=features, opt=3, reloc=relocation, codemodel="jitdefault", jit=True
    )
