"""Machine words in kernels: tasks, addresses, atomics, and arrays at addresses."""

from __future__ import annotations

from typing import Any

import llvmlite.binding as llvm
from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from accel.cpu.simd.emit import FLOAT, I64, REAL, WORD, at, call_llvm, machine_function


@machine_function(WORD, WORD, WORD)
def fetch_add(b, address, n):
    """Add to the integer in memory, atomically; returns what it was."""
    return b.atomic_rmw("add", at(b, address, I64), n, "seq_cst")


@machine_function(WORD, WORD, WORD, WORD)
def swap_if(b, address, expected, new):
    """Write `new` if memory holds `expected`, atomically; returns 1 if it did, else 0."""
    pair = b.cmpxchg(at(b, address, I64), expected, new, "seq_cst", "seq_cst")
    return b.zext(b.extract_value(pair, 1), I64)


@machine_function(WORD, WORD)
def peek(b, address):
    """The integer in memory, read atomically, after a short rest for the core's other thread."""
    if llvm.get_default_triple().startswith("x86_64"):
        call_llvm(b, "llvm.x86.sse2.pause", ir.VoidType())
    return b.load_atomic(at(b, address, I64), "seq_cst", 8)


@machine_function(types.void, WORD, WORD, WORD)
def call(b, function, task, worker):
    """Call the kernel whose address is `function`."""
    kind = ir.FunctionType(ir.VoidType(), [I64, I64])
    b.call(b.inttoptr(function, kind.as_pointer()), [task, worker])


@machine_function(REAL, WORD)
def real(b, word):
    """The float64 whose bits an integer holds, as float32."""
    return b.fptrunc(b.bitcast(word, ir.DoubleType()), FLOAT)


@intrinsic(prefer_literal=True)
def unpack(context, address, count):
    """`count` integers that stand from an address on, as a tuple; `count` is a constant."""
    kind = types.UniTuple(WORD, count.literal_value)

    def codegen(context: Any, b: Any, signature: Any, values: Any) -> Any:
        words = [b.load(at(b, values[0], I64, 8 * i), align=8) for i in range(len(kind))]
        return context.make_tuple(b, kind, words)

    return kind(WORD, count), codegen


def _pointer(element: Any, stored: ir.Type) -> Any:
    @machine_function(types.CPointer(element), WORD)
    def build(b, address):
        return b.inttoptr(address, stored.as_pointer())

    return build


floats_at, doubles_at = _pointer(REAL, FLOAT), _pointer(types.float64, ir.DoubleType())
words_at = _pointer(WORD, I64)
bits_at, bytes_at = _pointer(types.uint32, ir.IntType(32)), _pointer(types.uint8, ir.IntType(8))
