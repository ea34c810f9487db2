"""Explicit vectors and atomics for Numba: the one file that speaks to the machine.

`Vector` is a value of LANES numbers in one register, so that a kernel written in Python says exactly which registers it
uses. The register tile is the heart of every product here: ROWS rows and up to PANEL columns of
C (+)= A·B stay in registers while the depth runs, each step broadcasting one number of A per row against a row of B.
LLVM translates any vector width to any machine; only LANES and the tile's shape are fitted to the registers of the CPU
that Numba compiles for (NUMBA_CPU_NAME, if set): 32 registers of 16 on AVX-512, 16 of 8 on AVX2, 32 of 4 on NEON, and
16 of 4 wherever else. No fast-math flag is used: the rounding trick in `exp2` and the infinities of masks depend on it.

Memory is named by address, so that one compiled kernel serves views of any stride; a kind says how numbers are stored.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from functools import wraps
from typing import Any

import llvmlite.binding as llvm
from llvmlite import ir
from numba import config, njit, types
from numba.core.datamodel import models
from numba.extending import intrinsic, overload, register_model

F32, F16, BF16 = 0, 1, 2  # kinds: how a number is stored


def _machine() -> tuple[int, int]:
    """Lanes of float32 in a register, and how many registers, asked of LLVM by compiling one vector addition."""
    llvm.initialize_native_target()
    llvm.initialize_native_asmprinter()
    settings: Any = config
    name, features = settings.CPU_NAME, settings.CPU_FEATURES or ""
    if name is None:
        name, features = llvm.get_host_cpu_name(), settings.CPU_FEATURES or llvm.get_host_cpu_features().flatten()
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


LANES, REGISTERS = _machine()
VECTORS = 4 if REGISTERS == 32 else 2  # columns of a tile, in registers
ROWS = 6 if REGISTERS == 32 or LANES == 8 else 4  # rows of a tile: ROWS · VECTORS sums, VECTORS of B, one of A
PANEL = VECTORS * LANES  # columns of a tile, in numbers
HALF = LANES > 4 or REGISTERS == 32  # converts float16 by itself: AVX2 and later, NEON

_f32, _i16, _i32, _i64 = ir.FloatType(), ir.IntType(16), ir.IntType(32), ir.IntType(64)
_vector, _ints = ir.VectorType(_f32, LANES), ir.VectorType(_i32, LANES)


class VectorType(types.Type):
    """Numba's type of one register of LANES float32."""

    def __init__(self) -> None:
        super().__init__(name=f"float32x{LANES}")


Vector = VectorType()


@register_model(VectorType)
class _VectorModel(models.PrimitiveModel):
    def __init__(self, manager: Any, kind: VectorType) -> None:
        super().__init__(manager, kind, _vector)


def _machine_function(result: Any, *arguments: Any) -> Callable:
    """Turn build(builder, *values), which emits LLVM code, into a function that kernels call with these types."""

    def wrap(build: Callable) -> Any:
        @wraps(build)
        def typing(context: Any, *given: Any) -> Any:
            def codegen(context: Any, builder: Any, signature: Any, values: Any) -> Any:
                value = build(builder, *values)
                return context.get_dummy_value() if value is None else value

            return result(*arguments), codegen

        return intrinsic(typing)

    return wrap


def _each(kind: ir.VectorType, value: Any) -> ir.Constant:
    return ir.Constant(kind, [value] * LANES)


def _at(b: ir.IRBuilder, address: ir.Value, kind: ir.Type, offset: int = 0) -> ir.Value:
    """Pointer to the value `offset` bytes after an address."""
    return b.inttoptr(b.add(address, ir.Constant(_i64, offset)), kind.as_pointer())


def _spread(b: ir.IRBuilder, x: ir.Value, kind: ir.VectorType) -> ir.Value:
    """One number in every lane."""
    one = b.insert_element(ir.Constant(kind, ir.Undefined), x, ir.Constant(_i32, 0))
    return b.shuffle_vector(one, one, _each(_ints, 0))


def _call(b: ir.IRBuilder, name: str, result: ir.Type, *arguments: ir.Value) -> ir.Value:
    """An LLVM intrinsic by its full name."""
    declared = b.module.globals.get(name)
    return b.call(
        declared or ir.Function(b.module, ir.FunctionType(result, [a.type for a in arguments]), name), arguments
    )


def _fma(b: ir.IRBuilder, x: ir.Value, y: ir.Value, z: ir.Value) -> ir.Value:
    return _call(b, f"llvm.fmuladd.v{LANES}f32", _vector, x, y, z)


def _prefetch(b: ir.IRBuilder, address: ir.Value, *, write: bool) -> None:
    """Ask for a line of memory that will soon be read or written."""
    pointer = _at(b, address, ir.IntType(8))
    how = ir.Constant(_i32, int(write)), ir.Constant(_i32, 2), ir.Constant(_i32, 1)
    _call(b, "llvm.prefetch.p0", ir.VoidType(), pointer, *how)


def _mask(b: ir.IRBuilder, count: ir.Value) -> ir.Value:
    """True in the lanes below `count`."""
    return b.icmp_signed("<", ir.Constant(_ints, list(range(LANES))), _spread(b, b.trunc(count, _i32), _ints))


def _widened_half(b: ir.IRBuilder, raw: ir.Value) -> ir.Value:
    """float16 as float32: by the machine, or where it cannot, by moving exponent and fraction and scaling by 2¹¹²."""
    if HALF:
        return b.fpext(b.bitcast(raw, ir.VectorType(ir.HalfType(), LANES)), _vector)
    bits = b.zext(raw, _ints)
    magnitude = b.shl(b.and_(bits, _each(_ints, 0x7FFF)), _each(_ints, 13))
    scaled = b.bitcast(b.fmul(b.bitcast(magnitude, _vector), _each(_vector, 2.0**112)), _ints)
    special = b.icmp_unsigned(">=", magnitude, _each(_ints, 0x0F800000))  # infinity or NaN
    scaled = b.select(special, b.or_(magnitude, _each(_ints, 0x7F800000)), scaled)
    return b.bitcast(b.or_(scaled, b.shl(b.and_(bits, _each(_ints, 0x8000)), _each(_ints, 16))), _vector)


def _loader(kind: int, masked: bool) -> Any:
    """load(address): LANES numbers widened to float32; masked, load(address, count): `count` of them, then zeros."""
    stored = ir.VectorType(_i16 if kind else _f32, LANES)

    def widened(b: ir.IRBuilder, raw: ir.Value) -> ir.Value:
        if kind == BF16:  # the upper half of a float32
            return b.bitcast(b.shl(b.zext(raw, _ints), _each(_ints, 16)), _vector)
        return _widened_half(b, raw) if kind == F16 else raw

    def whole(b, address):
        return widened(b, b.load(_at(b, address, stored), align=2 if kind else 4))

    def some(b, address, count):
        name, align = f"llvm.masked.load.v{LANES}{'i16' if kind else 'f32'}.p0", ir.Constant(_i32, 2 if kind else 4)
        arguments = _at(b, address, stored), align, _mask(b, count), ir.Constant(stored, None)
        return widened(b, _call(b, name, stored, *arguments))

    return _machine_function(Vector, _word, _word)(some) if masked else _machine_function(Vector, _word)(whole)


_word, _real = types.int64, types.float32
load, load_f16, load_bf16 = (_loader(kind, masked=False) for kind in (F32, F16, BF16))
load_some, load_some_f16, load_some_bf16 = (_loader(kind, masked=True) for kind in (F32, F16, BF16))


@_machine_function(types.void, _word, Vector)
def store(b, address, x):
    """Write LANES numbers."""
    b.store(x, _at(b, address, _vector), align=4)


@_machine_function(types.void, _word, _word, Vector)
def store_some(b, address, count, x):
    """Write the first `count` lanes."""
    void, pointer = ir.VoidType(), _at(b, address, _vector)
    _call(b, f"llvm.masked.store.v{LANES}f32.p0", void, x, pointer, ir.Constant(_i32, 4), _mask(b, count))


@_machine_function(types.void, _word)
def prefetch(b, address):
    """Ask for the line of memory at an address, which need not be valid."""
    _prefetch(b, address, write=False)


@_machine_function(Vector, _real)
def splat(b, x):
    """One number in every lane."""
    return _spread(b, x, _vector)


@_machine_function(Vector, Vector, Vector, Vector)
def fma(b, x, y, z):
    """x·y + z, rounded once where the machine can."""
    return _fma(b, x, y, z)


@_machine_function(Vector, Vector, Vector)
def larger(b, x, y):
    """The larger of two, lane by lane; x where y is NaN."""
    return b.select(b.fcmp_ordered(">", y, x), y, x)


@_machine_function(Vector, Vector, Vector)
def smaller(b, x, y):
    """The smaller of two, lane by lane; x where y is NaN or x is."""
    return b.select(b.fcmp_ordered("<", y, x), y, x)


@_machine_function(Vector, Vector, _word, _word)
def only(b, x, start, stop):
    """The lanes start ≤ i < stop, and minus infinity in all others."""
    lanes = ir.Constant(_ints, list(range(LANES)))
    after = b.icmp_signed(">=", lanes, _spread(b, b.trunc(start, _i32), _ints))
    return b.select(b.and_(after, _mask(b, stop)), x, _each(_vector, float("-inf")))


@_machine_function(Vector, Vector)
def exp2(b, x):
    """2^x for x < 128.5: n = round(x) by adding 1.5·2²³, a polynomial of degree 5 in x - n, times 2^n.

    127 more is added, so that the sum's lowest bits are the exponent of 2^n, ready to be shifted to their place; for
    x ≤ -126.5 they are 0, and so is the result. The coefficients are a minimax fit on [-½, ½], with a relative error of
    2e-7 after rounding. NaN stays NaN, since no comparison holds for it.
    """
    low, magic = _each(_vector, -127.0), _each(_vector, 12582912.0 + 127)
    x = b.select(b.fcmp_ordered("<", x, low), low, x)
    shifted = b.fadd(x, magic)
    rest = b.fsub(x, b.fsub(shifted, magic))
    y = _each(_vector, 0.001327646685461481)
    for coefficient in (
        0.00967554129344994,
        0.05550713289391176,
        0.24022119724860685,
        0.6931469670550304,
        1.0000000716543693,
    ):
        y = _fma(b, y, rest, _each(_vector, coefficient))
    return b.fmul(y, b.bitcast(b.shl(b.bitcast(shifted, _ints), _each(_ints, 23)), _vector))


def _folded(combine: Callable) -> Any:
    """All lanes combined into one number, half against half."""

    def build(b, x):
        width = LANES
        while width > 1:
            width //= 2
            kind = ir.VectorType(_i32, width)
            low, high = (ir.Constant(kind, list(range(start, start + width))) for start in (0, width))
            x = combine(b, b.shuffle_vector(x, x, low), b.shuffle_vector(x, x, high))
        return b.extract_element(x, ir.Constant(_i32, 0))

    return _machine_function(_real, Vector)(build)


total = _folded(lambda b, x, y: b.fadd(x, y))
highest = _folded(lambda b, x, y: b.select(b.fcmp_ordered(">", y, x), y, x))


def _operator(symbol: Callable, emit: str) -> None:
    """Make x + y and its like work on vectors inside kernels."""

    @_machine_function(Vector, Vector, Vector)
    def combined(b, x, y):
        return getattr(b, emit)(x, y)

    def applied(x: Any, y: Any) -> Any:
        return combined(x, y)

    applied.__name__ = applied.__qualname__ = f"vector_{emit}"  # see compiled_as

    @overload(symbol, strict=False)
    def lanewise(x: Any, y: Any) -> Any:
        return applied if isinstance(x, VectorType) and isinstance(y, VectorType) else None


for _symbol, _emit in (
    (operator.add, "fadd"),
    (operator.sub, "fsub"),
    (operator.mul, "fmul"),
    (operator.truediv, "fdiv"),
):
    _operator(_symbol, _emit)


def _tile(columns: int, scaled: bool, height: int = ROWS, streamed: bool = False) -> Any:
    """A tile of `height` rows and columns·LANES columns: C = A·B, or with `scaled` C = diag(scale)·C + A·B.

    Arguments are addresses, the bytes from row to row, and the depth (at least 1). A is read along its rows, one number
    broadcast at a time; B row by row; the sums never leave their registers until the end.
    """

    def build(b, a, a_row, other, other_row, c, c_row, depth, scale):
        rows = [b.add(a, b.mul(a_row, ir.Constant(_i64, r))) for r in range(height)]
        for r in range(height if scaled else 0):  # C is needed at the end: fetch it meanwhile
            for j in range(columns):
                offset = b.add(b.mul(c_row, ir.Constant(_i64, r)), ir.Constant(_i64, 4 * LANES * j))
                _prefetch(b, b.add(c, offset), write=True)
        before, loop, done = b.block, b.append_basic_block("depth"), b.append_basic_block("done")
        b.branch(loop)
        b.position_at_end(loop)
        step, line = b.phi(_i64), b.phi(_i64)  # how deep, and the address of that row of B
        sums = [[b.phi(_vector) for _ in range(columns)] for _ in range(height)]
        across = [b.load(_at(b, line, _vector, 4 * LANES * j), align=4) for j in range(columns)]
        if streamed:  # as many lines as the depth is long, one per step, while the sums keep the core busy
            _prefetch(b, b.add(scale, b.shl(step, ir.Constant(_i64, 6))), write=False)
        grown = []
        for row, line_sums in zip(rows, sums, strict=True):
            x = b.load(_at(b, b.add(row, b.shl(step, ir.Constant(_i64, 2))), _f32), align=4)
            grown.append([_fma(b, _spread(b, x, _vector), y, z) for y, z in zip(across, line_sums, strict=True)])
        following = b.add(step, ir.Constant(_i64, 1))
        for phi, first, again in (
            (step, ir.Constant(_i64, 0), following),
            (line, other, b.add(line, other_row)),
            *(
                (s, _each(_vector, 0.0), g)
                for old, new in zip(sums, grown, strict=True)
                for s, g in zip(old, new, strict=True)
            ),
        ):
            phi.add_incoming(first, before)
            phi.add_incoming(again, loop)
        b.cbranch(b.icmp_signed("<", following, depth), loop, done)
        b.position_at_end(done)
        for r in range(height):
            row = b.add(c, b.mul(c_row, ir.Constant(_i64, r)))
            factor = _spread(b, b.load(_at(b, scale, _f32, 4 * r), align=4), _vector) if scaled else None
            for j, value in enumerate(grown[r]):
                place = _at(b, row, _vector, 4 * LANES * j)
                b.store(_fma(b, b.load(place, align=4), factor, value) if scaled else value, place, align=4)

    return _machine_function(types.void, *[_word] * 8)(build)


TALL = 4 * VECTORS  # rows of the tile that is one vector wide: enough sums in flight to hide the latency
set_tall = _tile(1, scaled=False, height=TALL, streamed=True)  # the last argument: what to fetch meanwhile


def compiled_as(name: str, function: Callable) -> Any:
    """A function that was made by another, compiled under a name of its own.

    Kernels on disk refer to what they call by name: two made from the same lines would be taken for each other.
    """
    function.__name__ = function.__qualname__ = name
    return njit(function)


def _tiles(scaled: bool, height: int) -> Any:
    """One function of a height for all widths: its first argument is how many vectors wide, 1 to VECTORS."""
    widths = [_tile(columns, scaled, height) for columns in range(1, VECTORS + 1)]
    one, two, three, widest = widths[0], widths[1], widths[-2], widths[-1]

    def tile(vectors, a, a_row, b, b_row, c, c_row, depth, scale):
        if vectors == VECTORS:
            widest(a, a_row, b, b_row, c, c_row, depth, scale)
        elif vectors == 1:
            one(a, a_row, b, b_row, c, c_row, depth, scale)
        elif vectors == 2:
            two(a, a_row, b, b_row, c, c_row, depth, scale)
        else:
            three(a, a_row, b, b_row, c, c_row, depth, scale)

    return compiled_as(f"{'add' if scaled else 'set'}_{height}_rows", tile)


def _strips(scaled: bool) -> Any:
    """The product for any number of rows: whole tiles, then tiles of two rows and of one."""
    high, pair, single = (_tiles(scaled, height) for height in (ROWS, 2, 1))

    def multiply(vectors, rows, a, a_row, b, b_row, c, c_row, depth, scale):
        r = 0
        while r < rows:
            if rows - r >= ROWS:
                high(vectors, a + r * a_row, a_row, b, b_row, c + r * c_row, c_row, depth, scale + 4 * r)
                r += ROWS
            elif rows - r >= 2:
                pair(vectors, a + r * a_row, a_row, b, b_row, c + r * c_row, c_row, depth, scale + 4 * r)
                r += 2
            else:
                single(vectors, a + r * a_row, a_row, b, b_row, c + r * c_row, c_row, depth, scale + 4 * r)
                r += 1

    return compiled_as(f"{'add' if scaled else 'set'}_rows", multiply)


# (vectors, rows, a, bytes from row to row of a, b, …, c, …, depth, scale): C = A·B, where `scale` is not read, and
# C = diag(scale)·C + A·B, where it is the address of a number per row; columns are `vectors` (1 to VECTORS) times LANES
set_rows, add_rows = _strips(scaled=False), _strips(scaled=True)


@_machine_function(types.void, _word, _word, _word, _word)
def transpose(b, rows, offset, out, out_row):
    """LANES × LANES numbers turned around: those `offset` bytes into each of the rows whose addresses stand at `rows`
    become columns at `out`, whose rows are `out_row` bytes apart. Halves swap, then quarters, down to single lanes."""
    lines = []
    for r in range(LANES):
        address = b.load(_at(b, rows, _i64, 8 * r), align=8)
        lines.append(b.load(_at(b, b.add(address, offset), _vector), align=4))
    width = LANES // 2
    while width:
        low = ir.Constant(_ints, [i + LANES - width if i & width else i for i in range(LANES)])
        high = ir.Constant(_ints, [i + LANES if i & width else i + width for i in range(LANES)])
        for r in (r for r in range(LANES) if not r & width):
            x, y = lines[r], lines[r + width]
            lines[r], lines[r + width] = b.shuffle_vector(x, y, low), b.shuffle_vector(x, y, high)
        width //= 2
    for r, line in enumerate(lines):
        b.store(line, _at(b, b.add(out, b.mul(out_row, ir.Constant(_i64, r))), _vector), align=4)


@_machine_function(_word, _word, _word)
def fetch_add(b, address, n):
    """Add to the integer in memory, atomically; returns what it was."""
    return b.atomic_rmw("add", _at(b, address, _i64), n, "seq_cst")


@_machine_function(_word, _word, _word, _word)
def swap_if(b, address, expected, new):
    """Write `new` if memory holds `expected`, atomically; returns 1 if it did, else 0."""
    pair = b.cmpxchg(_at(b, address, _i64), expected, new, "seq_cst", "seq_cst")
    return b.zext(b.extract_value(pair, 1), _i64)


@_machine_function(_word, _word)
def peek(b, address):
    """The integer in memory, read atomically, after a short rest for the core's other thread."""
    if llvm.get_default_triple().startswith("x86_64"):
        _call(b, "llvm.x86.sse2.pause", ir.VoidType())
    return b.load_atomic(_at(b, address, _i64), "seq_cst", 8)


@_machine_function(types.void, _word, _word, _word)
def call(b, function, task, worker):
    """Call the kernel whose address is `function`."""
    kind = ir.FunctionType(ir.VoidType(), [_i64, _i64])
    b.call(b.inttoptr(function, kind.as_pointer()), [task, worker])


@_machine_function(_real, _word)
def real(b, word):
    """The float64 whose bits an integer holds, as float32."""
    return b.fptrunc(b.bitcast(word, ir.DoubleType()), _f32)


@intrinsic(prefer_literal=True)
def unpack(context, address, count):
    """`count` integers that stand from an address on, as a tuple; `count` is a constant."""
    kind = types.UniTuple(_word, count.literal_value)

    def codegen(context: Any, b: Any, signature: Any, values: Any) -> Any:
        words = [b.load(_at(b, values[0], _i64, 8 * i), align=8) for i in range(len(kind))]
        return context.make_tuple(b, kind, words)

    return kind(_word, count), codegen


def _pointer(element: Any) -> Any:
    @_machine_function(types.CPointer(element), _word)
    def build(b, address):
        return b.inttoptr(address, ir.IntType(element.bitwidth).as_pointer() if element != _real else _f32.as_pointer())

    return build


floats_at, words_at, bits_at, bytes_at = (_pointer(kind) for kind in (_real, _word, types.uint32, types.uint8))
