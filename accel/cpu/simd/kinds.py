"""The kinds of value that functions of kernels take and return, as LLVM has them."""

from __future__ import annotations

from dataclasses import dataclass

from llvmlite import ir

from accel.cpu.simd.machine import LANES


class _BFloat(ir.Type):  # type: ignore[misc]
    """LLVM's bfloat16, which llvmlite has no name for."""

    def _to_string(self) -> str:
        return "bfloat"


FLOAT, I8, I16, I32, I64 = ir.FloatType(), ir.IntType(8), ir.IntType(16), ir.IntType(32), ir.IntType(64)
VECTOR, INTS = ir.VectorType(FLOAT, LANES), ir.VectorType(I32, LANES)
SHORTS = ir.VectorType(_BFloat(), 2 * LANES)  # bfloat16, two in the place of a float32
WORD, REAL, VOID, Vector = (
    I64,
    FLOAT,
    ir.VoidType(),
    VECTOR,
)  # what functions of kernels take and return: addresses and counts, numbers


@dataclass(frozen=True)
class Pointer:
    """An address whose values kernels index as arrays of this type, unsigned where they are shorter than words."""

    pointee: ir.Type
