"""How LLVM code gets into kernels: functions that emit it, and the few pieces that all of them use.

Memory is named by address, so that one compiled kernel serves views of any stride.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from llvmlite import ir

from accel.cpu.simd.kinds import I8, I32, I64, INTS, SHORTS, VECTOR
from accel.cpu.simd.later import Later
from accel.cpu.simd.machine import LANES


def machine_function(result: Any, *arguments: Any) -> Callable:
    """Turn build(builder, *values), which emits LLVM code, into a function that kernels call with these types."""

    def wrap(build: Callable) -> Any:
        def make() -> Any:
            from accel.cpu.simd.typed import intrinsic_of

            return intrinsic_of(build, result, arguments)

        return Later(build, make)

    return wrap


def number(value: int) -> ir.Constant:
    """A constant word."""
    return ir.Constant(I64, value)


def plus(b: ir.IRBuilder, address: ir.Value, count: int, size: ir.Value | None = None) -> ir.Value:
    """address + count · size, or address + count."""
    return b.add(address, number(count) if size is None else b.mul(size, number(count)))


def each(kind: ir.VectorType, value: Any) -> ir.Constant:
    """One constant in every lane."""
    return ir.Constant(kind, [value] * LANES)


def at(b: ir.IRBuilder, address: ir.Value, kind: ir.Type, offset: int = 0) -> ir.Value:
    """Pointer to the value `offset` bytes after an address."""
    return b.inttoptr(plus(b, address, offset), kind.as_pointer())


def spread(b: ir.IRBuilder, x: ir.Value, kind: ir.VectorType) -> ir.Value:
    """One number in every lane."""
    one = b.insert_element(ir.Constant(kind, ir.Undefined), x, ir.Constant(I32, 0))
    return b.shuffle_vector(one, one, each(INTS, 0))


def call_llvm(b: ir.IRBuilder, name: str, result: ir.Type, *arguments: ir.Value) -> ir.Value:
    """An LLVM intrinsic by its full name."""
    declared = b.module.globals.get(name)
    return b.call(
        declared or ir.Function(b.module, ir.FunctionType(result, [a.type for a in arguments]), name), arguments
    )


def fused(b: ir.IRBuilder, x: ir.Value, y: ir.Value, z: ir.Value) -> ir.Value:
    """x·y + z, rounded once where the machine can."""
    return call_llvm(b, f"llvm.fmuladd.v{LANES}f32", VECTOR, x, y, z)


def paired(b: ir.IRBuilder, x: ir.Value, y: ir.Value, z: ir.Value) -> ir.Value:
    """x·y + z, where every lane of x and y holds two bfloat16, whose products are added. For machines with PAIRS."""
    x, y = b.bitcast(x, SHORTS), b.bitcast(y, SHORTS)
    return call_llvm(b, "llvm.x86.avx512bf16.dpbf16ps.512", VECTOR, z, x, y)


def fetch(b: ir.IRBuilder, address: ir.Value, *, write: bool) -> None:
    """Ask for a line of memory that will soon be read or written."""
    pointer = at(b, address, I8)
    how = ir.Constant(I32, int(write)), ir.Constant(I32, 2), ir.Constant(I32, 1)
    call_llvm(b, "llvm.prefetch.p0", ir.VoidType(), pointer, *how)


def repeat(b: ir.IRBuilder, times: ir.Value, carried: list, body: Callable) -> list:
    """A loop of at least one pass: values = body(values), from (first value, …); returns those after the last pass."""
    before, loop, done = b.block, b.append_basic_block("loop"), b.append_basic_block("done")
    b.branch(loop)
    b.position_at_end(loop)
    step = b.phi(I64)
    values = [b.phi(first.type) for first in carried]
    grown = body(values)
    following = b.add(step, number(1))
    for phi, first, again in zip([step, *values], [number(0), *carried], [following, *grown], strict=True):
        phi.add_incoming(first, before)
        phi.add_incoming(again, b.block)
    b.cbranch(b.icmp_signed("<", following, times), loop, done)
    b.position_at_end(done)
    return grown
