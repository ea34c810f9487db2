"""LLVM for this machine: the processor that code is for, the name of a kernel in its code, and how it is loaded."""

from __future__ import annotations

from typing import Any

from accel.cpu.simd.machine import MACHINE, ready_llvm

SYMBOL = "kernel"

llvm: Any = ready_llvm()


def target_machine() -> Any:
    """LLVM's code generator for the processor that kernels are compiled for, as code is loaded in this process."""
    relocation = "static" if MACHINE.system.startswith(("x86", "i686")) else "default"
    return llvm.Target.from_triple(MACHINE.system).create_target_machine(
        cpu=MACHINE.name, features=MACHINE.features, opt=3, reloc=relocation, codemodel="jitdefault", jit=True
    )


def loaded(code: bytes) -> int:
    """The address at which an object file's function stands from now on."""
    engine = llvm.create_mcjit_compiler(llvm.parse_assembly(""), target_machine())
    engine.add_object_file(llvm.ObjectFileRef.from_data(code))
    engine.finalize_object()
    _engines.append(engine)
    return int(engine.get_function_address(SYMBOL))


_engines: list[Any] = []  # each of the functions loaded lives in one
