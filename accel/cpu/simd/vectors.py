"""Arithmetic on `Vector`, a value of LANES float32 in one register, so that a kernel written in Python says exactly
which registers it uses. No fast-math flag: the rounding trick in `exp2` and the infinities of masks depend on it.

A kind says how numbers are stored in memory; they are widened where they are loaded.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from llvmlite import ir

from accel.cpu.simd.emit import at, call_llvm, each, fetch, fused, machine_function, spread
from accel.cpu.simd.kinds import FLOAT, I16, I32, I64, INTS, REAL, SHORTS, VECTOR, VOID, WORD, Vector
from accel.cpu.simd.machine import HALF, LANES, PAIRS

F32, F16, BF16, Q8 = 0, 1, 2, 3  # kinds; Q8 is groups of GROUP bytes along a row: a float16 scale, and 32 numbers
GROUP = 34
ROUNDED = 4  # a product's form is the kind of its stored side, plus this where both sides are rounded to bfloat16
LOG2E = math.log2(math.e)  # kernels take powers of two: e^x = 2^(x · LOG2E)


def _mask(b: ir.IRBuilder, count: ir.Value) -> ir.Value:
    """True in the lanes below `count`."""
    return b.icmp_signed("<", ir.Constant(INTS, list(range(LANES))), spread(b, b.trunc(count, I32), INTS))


def _widened_half(b: ir.IRBuilder, raw: ir.Value) -> ir.Value:
    """float16 as float32: by the machine, or where it cannot, by moving exponent and fraction and scaling by 2¹¹²."""
    if HALF:
        return b.fpext(b.bitcast(raw, ir.VectorType(ir.HalfType(), LANES)), VECTOR)
    bits = b.zext(raw, INTS)
    magnitude = b.shl(b.and_(bits, each(INTS, 0x7FFF)), each(INTS, 13))
    scaled = b.bitcast(b.fmul(b.bitcast(magnitude, VECTOR), each(VECTOR, 2.0**112)), INTS)
    special = b.icmp_unsigned(">=", magnitude, each(INTS, 0x0F800000))  # infinity or NaN
    scaled = b.select(special, b.or_(magnitude, each(INTS, 0x7F800000)), scaled)
    return b.bitcast(b.or_(scaled, b.shl(b.and_(bits, each(INTS, 0x8000)), each(INTS, 16))), VECTOR)


def emit_scale(b: ir.IRBuilder, address: ir.Value) -> ir.Value:
    """The float16 at an address in every lane."""
    stored = b.load(at(b, address, I16), align=1)
    kind = ir.VectorType(I16, LANES)
    return _widened_half(b, spread(b, stored, kind))


def emit_load_bytes(b: ir.IRBuilder, address: ir.Value) -> ir.Value:
    """LANES signed bytes as float32."""
    return b.sitofp(b.load(at(b, address, ir.VectorType(ir.IntType(8), LANES)), align=1), VECTOR)


def _widened(b: ir.IRBuilder, kind: int, raw: ir.Value) -> ir.Value:
    """LANES stored numbers as float32."""
    if kind == BF16:  # the upper half of a float32
        return b.bitcast(b.shl(b.zext(raw, INTS), each(INTS, 16)), VECTOR)
    return _widened_half(b, raw) if kind == F16 else raw


def emit_load(b: ir.IRBuilder, kind: int, address: ir.Value) -> ir.Value:
    """LANES stored numbers from an address on, as float32."""
    stored = ir.VectorType(I16 if kind else FLOAT, LANES)
    return _widened(b, kind, b.load(at(b, address, stored), align=2 if kind else 4))


def _loader(kind: int, masked: bool) -> Any:
    """load(address): LANES numbers widened to float32; masked, load(address, count): `count` of them, then zeros."""

    def whole(b, address):
        return emit_load(b, kind, address)

    def some(b, address, count):
        stored = ir.VectorType(I16 if kind else FLOAT, LANES)
        name, align = f"llvm.masked.load.v{LANES}{'i16' if kind else 'f32'}.p0", ir.Constant(I32, 2 if kind else 4)
        arguments = at(b, address, stored), align, _mask(b, count), ir.Constant(stored, None)
        return _widened(b, kind, call_llvm(b, name, stored, *arguments))

    return machine_function(Vector, WORD, WORD)(some) if masked else machine_function(Vector, WORD)(whole)


scale_at, load_bytes = (machine_function(Vector, WORD)(emit) for emit in (emit_scale, emit_load_bytes))
load, load_f16, load_bf16 = (_loader(kind, masked=False) for kind in (F32, F16, BF16))
load_some, load_some_f16, load_some_bf16 = (_loader(kind, masked=True) for kind in (F32, F16, BF16))


@machine_function(VOID, WORD, Vector)
def store(b, address, x):
    """Write LANES numbers."""
    b.store(x, at(b, address, VECTOR), align=4)


@machine_function(VOID, WORD, WORD, Vector)
def store_some(b, address, count, x):
    """Write the first `count` lanes."""
    void, pointer = ir.VoidType(), at(b, address, VECTOR)
    call_llvm(b, f"llvm.masked.store.v{LANES}f32.p0", void, x, pointer, ir.Constant(I32, 4), _mask(b, count))


def _narrowed(b: ir.IRBuilder, kind: int, x: ir.Value) -> ir.Value:
    """LANES float32 as stored numbers of 16 bits, rounded to the nearest, ties to even."""
    if kind == F16:
        return b.bitcast(b.fptrunc(x, ir.VectorType(ir.HalfType(), LANES)), ir.VectorType(I16, LANES))
    bits = b.bitcast(x, INTS)
    odd = b.and_(b.lshr(bits, each(INTS, 16)), each(INTS, 1))
    rounded = b.lshr(b.add(bits, b.add(odd, each(INTS, 0x7FFF))), each(INTS, 16))
    rounded = b.select(b.fcmp_unordered("!=", x, x), each(INTS, 0x7FC0), rounded)  # NaN
    return b.trunc(rounded, ir.VectorType(I16, LANES))


def _storer(kind: int, masked: bool) -> Any:
    """store(address, x): LANES numbers narrowed to 16 bits; masked, store(address, count, x): the first `count`."""

    def whole(b, address, x):
        b.store(_narrowed(b, kind, x), at(b, address, ir.VectorType(I16, LANES)), align=2)

    def some(b, address, count, x):
        stored, pointer = _narrowed(b, kind, x), at(b, address, ir.VectorType(I16, LANES))
        name, align = f"llvm.masked.store.v{LANES}i16.p0", ir.Constant(I32, 2)
        call_llvm(b, name, ir.VoidType(), stored, pointer, align, _mask(b, count))

    words = (WORD, WORD) if masked else (WORD,)
    return machine_function(VOID, *words, Vector)(some if masked else whole)


store_f16, store_bf16 = (_storer(kind, masked=False) for kind in (F16, BF16))
store_some_f16, store_some_bf16 = (_storer(kind, masked=True) for kind in (F16, BF16))


@machine_function(VOID, WORD)
def prefetch(b, address):
    """Ask for the line of memory at an address, which need not be valid."""
    fetch(b, address, write=False)


@machine_function(Vector, REAL)
def splat(b, x):
    """One number in every lane."""
    return spread(b, x, VECTOR)


@machine_function(Vector, Vector, Vector, Vector)
def fma(b, x, y, z):
    """x·y + z, rounded once where the machine can."""
    return fused(b, x, y, z)


@machine_function(Vector, Vector, Vector)
def larger(b, x, y):
    """The larger of two, lane by lane; x where y is NaN."""
    return b.select(b.fcmp_ordered(">", y, x), y, x)


@machine_function(Vector, Vector, Vector)
def smaller(b, x, y):
    """The smaller of two, lane by lane; x where y is NaN or x is."""
    return b.select(b.fcmp_ordered("<", y, x), y, x)


@machine_function(Vector, Vector, WORD, WORD)
def only(b, x, start, stop):
    """The lanes start ≤ i < stop, and minus infinity in all others."""
    lanes = ir.Constant(INTS, list(range(LANES)))
    after = b.icmp_signed(">=", lanes, spread(b, b.trunc(start, I32), INTS))
    return b.select(b.and_(after, _mask(b, stop)), x, each(VECTOR, float("-inf")))


# Coefficients of polynomials for 2^x, the highest power first: minimax fits on [-½, ½]. Their relative errors are 2e-7
# after rounding, and 8e-5: a 26th of what a rounding to bfloat16 may leave.
_FINE = (
    0.001327646685461481, 0.00967554129344994, 0.05550713289391176, 0.24022119724860685, 0.6931469670550304,
    1.0000000716543693,
)  # fmt: skip
_ROUGH = 0.05517166358202527, 0.24261112177786687, 0.6932609864717527, 0.9999280735905546


def emit_exp2(b: ir.IRBuilder, x: ir.Value, *, rough: bool = False) -> ir.Value:
    """2^x for x < 128.5: n = round(x) by adding 1.5·2²³, a polynomial in x - n, times 2^n. `rough` where the result is
    rounded to bfloat16.

    127 more is added, so that the sum's lowest bits are the exponent of 2^n, ready to be shifted to their place; for
    x ≤ -126.5 they are 0, and so is the result. NaN stays NaN, since no comparison holds for it.
    """
    low, magic = each(VECTOR, -127.0), each(VECTOR, 12582912.0 + 127)
    x = b.select(b.fcmp_ordered("<", x, low), low, x)
    shifted = b.fadd(x, magic)
    rest = b.fsub(x, b.fsub(shifted, magic))
    first, *others = _ROUGH if rough else _FINE
    y = each(VECTOR, first)
    for coefficient in others:
        y = fused(b, y, rest, each(VECTOR, coefficient))
    return b.fmul(y, b.bitcast(b.shl(b.bitcast(shifted, INTS), each(INTS, 23)), VECTOR))


exp2 = machine_function(Vector, Vector)(emit_exp2)


def _folded(combine: Callable) -> Any:
    """All lanes combined into one number, half against half."""

    def build(b, x):
        width = LANES
        while width > 1:
            width //= 2
            kind = ir.VectorType(I32, width)
            low, high = (ir.Constant(kind, list(range(start, start + width))) for start in (0, width))
            x = combine(b, b.shuffle_vector(x, x, low), b.shuffle_vector(x, x, high))
        return b.extract_element(x, ir.Constant(I32, 0))

    return machine_function(REAL, Vector)(build)


total = _folded(lambda b, x, y: b.fadd(x, y))
highest = _folded(lambda b, x, y: b.select(b.fcmp_ordered(">", y, x), y, x))


def emit_store_totals(b: ir.IRBuilder, address: ir.Value, *vectors: ir.Value) -> None:
    """Write the totals of 2, 4 or 8 vectors next to each other. Halves are added as in `total`, of all vectors at once,
    so that the sums are the same."""
    parts, width = list(vectors), LANES
    while width > 1:
        width //= 2
        count = sum(part.type.count for part in parts[:2])
        low = [start + i for start in range(0, count, 2 * width) for i in range(width)]
        kind = ir.VectorType(I32, len(low))
        lows, highs = ir.Constant(kind, low), ir.Constant(kind, [n + width for n in low])
        parts = [
            b.fadd(b.shuffle_vector(x, y, lows), b.shuffle_vector(x, y, highs))
            for x, y in zip(parts[::2], parts[1::2] or parts, strict=True)
        ]
    for n, part in enumerate(parts):
        b.store(part, at(b, address, part.type, 4 * n * part.type.count), align=4)


store_totals = machine_function(VOID, WORD, *[Vector] * 8)(emit_store_totals)


@machine_function(WORD, Vector, REAL)
def any_above(b, x, limit):
    """1 if a lane exceeds the limit, which NaN does not, else 0."""
    over = b.fcmp_ordered(">", x, spread(b, limit, VECTOR))
    return b.zext(b.icmp_unsigned("!=", b.bitcast(over, ir.IntType(LANES)), ir.Constant(ir.IntType(LANES), 0)), I64)


@machine_function(Vector, Vector, REAL, Vector, Vector)
def where_above(b, x, limit, y, z):
    """y in the lanes where x exceeds the limit, z in all others."""
    return b.select(b.fcmp_ordered(">", x, spread(b, limit, VECTOR)), y, z)


@machine_function(Vector, Vector, Vector)
def where_seen(b, x, y):
    """y in the lanes where x is not minus infinity, 0 in all others."""
    return b.select(b.fcmp_unordered("!=", x, each(VECTOR, float("-inf"))), y, each(VECTOR, 0.0))


@machine_function(Vector, Vector, Vector)
def with_rest(b, x, rest):
    """x + rest, or x where the rest is NaN: that of an infinite sum is."""
    return b.select(b.fcmp_ordered("ord", rest, rest), b.fadd(x, rest), x)


@machine_function(Vector, Vector, Vector, Vector, REAL)
def within(b, x, lows, highs, i):
    """The lanes with low ≤ i < high, and minus infinity in all others."""
    i = spread(b, i, VECTOR)
    inside = b.and_(b.fcmp_ordered("<=", lows, i), b.fcmp_ordered("<", i, highs))
    return b.select(inside, x, each(VECTOR, float("-inf")))


def emit_pair(b: ir.IRBuilder, x: ir.Value, y: ir.Value) -> ir.Value:
    """The upper halves of two floats, which are bfloat16, in each lane: of x in the lower half, of y in the upper."""
    low = b.lshr(b.bitcast(x, INTS), each(INTS, 16))
    return b.bitcast(b.or_(low, b.and_(b.bitcast(y, INTS), each(INTS, 0xFFFF0000))), VECTOR)


def emit_rounded_pair(b: ir.IRBuilder, x: ir.Value, y: ir.Value) -> ir.Value:
    """As `emit_pair`, of two floats rounded to the nearest bfloat16, ties to even. For machines with PAIRS."""
    kind = ir.VectorType(I16, 2 * LANES)
    shorts = b.bitcast(emit_rounded_run(b, x, y), kind)
    return emit_woven(b, shorts, shorts)


def emit_woven(b: ir.IRBuilder, x: ir.Value, y: ir.Value) -> ir.Value:
    """Numbers i and LANES + i of those of 16 bits that x and y hold together, in lane i."""
    order = ir.Constant(ir.VectorType(I32, 2 * LANES), [n for i in range(LANES) for n in (i, LANES + i)])
    return b.bitcast(b.shuffle_vector(x, y, order), VECTOR)


def emit_rounded_run(b: ir.IRBuilder, x: ir.Value, y: ir.Value) -> ir.Value:
    """The floats of x and after them those of y, rounded to the nearest bfloat16: two in a lane."""
    if not PAIRS:  # never called then, but compiled
        return x
    return b.bitcast(call_llvm(b, "llvm.x86.avx512bf16.cvtne2ps2bf16.512", SHORTS, y, x), VECTOR)


def emit_rest(b: ir.IRBuilder, x: ir.Value) -> ir.Value:
    """A float less its upper half: exact, so that three bfloat16 hold every bit of a float32."""
    return b.fsub(x, b.bitcast(b.and_(b.bitcast(x, INTS), each(INTS, 0xFFFF0000)), VECTOR))


pair, rest = machine_function(Vector, Vector, Vector)(emit_pair), machine_function(Vector, Vector)(emit_rest)
rounded_pair, rounded_run = (
    machine_function(Vector, Vector, Vector)(emit) for emit in (emit_rounded_pair, emit_rounded_run)
)
