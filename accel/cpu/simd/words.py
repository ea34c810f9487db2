"""Machine words in kernels: tasks, addresses, atomics, and arrays at addresses."""

from __future__ import annotations

from typing import Any

import llvmlite.binding as llvm
from llvmlite import ir
from numba import types

from accel.cpu.simd.emit import FLOAT, I64, REAL, WORD, at, call_llvm, machine_function, number

MOST_WORDS = 40  # of a task


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
    """Call the kernel at an address: with its task, the worker, and the words of the task. The task's second word says
    how many there are, at most MOST_WORDS."""
    done = b.append_basic_block("called")
    choice = b.switch(b.load(at(b, task, I64, 8), align=8), done)
    for count in range(MOST_WORDS + 1):
        block = b.append_basic_block(f"words_{count}")
        choice.add_case(number(count), block)
        b.position_at_end(block)
        words = [b.load(at(b, task, I64, 16 + 8 * n), align=8) for n in range(count)]
        kind = ir.FunctionType(ir.VoidType(), [I64] * (2 + count))
        b.call(b.inttoptr(function, kind.as_pointer()), [task, worker, *words])
        b.branch(done)
    b.position_at_end(done)


@machine_function(REAL, WORD)
def real(b, word):
    """The float64 whose bits an integer holds, as float32."""
    return b.fptrunc(b.bitcast(word, ir.DoubleType()), FLOAT)


def _pointer(element: Any, stored: ir.Type) -> Any:
    @machine_function(types.CPointer(element), WORD)
    def build(b, address):
        return b.inttoptr(address, stored.as_pointer())

    return build


floats_at, doubles_at = _pointer(REAL, FLOAT), _pointer(types.float64, ir.DoubleType())
words_at = _pointer(WORD, I64)
bits_at, halves_at, bytes_at = (
    _pointer(element, ir.IntType(size)) for element, size in ((types.uint32, 32), (types.uint16, 16), (types.uint8, 8))
)
