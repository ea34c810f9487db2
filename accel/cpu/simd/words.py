"""Machine words in kernels: tasks, addresses, atomics, and arrays at addresses."""

from __future__ import annotations

import sys
from typing import Any

from llvmlite import ir

from accel.cpu.simd.emit import at, call_llvm, machine_function, number
from accel.cpu.simd.kinds import FLOAT, I8, I16, I32, I64, REAL, VOID, WORD, Pointer
from accel.cpu.simd.machine import MACHINE

MOST_WORDS = 40  # of a task
_HAS_POSIX = sys.platform != "win32"  # elsewhere waiting is looking


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
    if MACHINE.system.startswith("x86_64"):
        call_llvm(b, "llvm.x86.sse2.pause", ir.VoidType())
    return b.load_atomic(at(b, address, I64), "seq_cst", 8)


@machine_function(VOID, WORD, WORD, WORD)
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


def _pointer(stored: ir.Type) -> Any:
    @machine_function(Pointer(stored), WORD)
    def build(b, address):
        return b.inttoptr(address, stored.as_pointer())

    return build


words_at, doubles_at, floats_at = _pointer(I64), _pointer(ir.DoubleType()), _pointer(FLOAT)
bits_at, halves_at, bytes_at = _pointer(I32), _pointer(I16), _pointer(I8)


@machine_function(VOID)
def let_others_run(b):
    """Offer this core to threads that wait for one; returns at once where there are none."""
    if _HAS_POSIX:
        call_llvm(b, "sched_yield", I32)


@machine_function(VOID, WORD)
def sleep(b, microseconds):
    """Let the core go for so long."""
    if _HAS_POSIX:
        call_llvm(b, "usleep", I32, b.trunc(microseconds, I32))
