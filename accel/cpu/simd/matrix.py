"""The matrix unit: sums of 16 × 16 float32 from tiles of 16 rows of 32 bfloat16, eight tiles in all.

A float32 is the exact sum of three bfloat16, its pieces, so a product of two is the sum of nine products of pieces,
of which the six largest leave an error of 2⁻²⁴: what a float32 multiplication leaves. That is six times the work at
sixteen times the speed. Where one factor is stored in 16 bits, both are usually rounded to one bfloat16, and that is
all the work. Where that is not exact enough (attention/blocks.py says where), the stored one has one piece (bfloat16)
or two (float16), and the other two. Sums are kept in float32. Numbers below 2⁻¹²⁶, as pieces or sums, count as zero.

A block of A (32 rows) and of B (32 columns) share four sums. Both lie in memory tile by tile: A by steps of 32 in the
depth, in each its pieces, in each two tiles of 16 rows; B alike, its tiles holding 16 pairs of depths by 16 columns.

The unit works by itself, so a product leaves the core's vector units free for a chore, a little at every step: turning
the scores of another block into weights (`soften`), or cutting what will be multiplied next into pieces, as it lies
(`pack`) or turned around (`turn`).
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from llvmlite import ir

from accel.cpu.simd.emit import at, call_llvm, fetch, machine_function, number, plus, repeat
from accel.cpu.simd.kinds import I8, I16, I64, VECTOR, VOID, WORD
from accel.cpu.simd.later import compiled_as
from accel.cpu.simd.machine import MATRIX
from accel.cpu.simd.tile import emit_transpose
from accel.cpu.simd.vectors import (
    BF16,
    F16,
    F32,
    Q8,
    ROUNDED,
    emit_exp2,
    emit_load,
    emit_load_bytes,
    emit_pair,
    emit_rest,
    emit_rounded_pair,
    emit_scale,
    emit_woven,
)

TILE = 1024  # bytes
LEAD, TURN_LEAD = 64, 4  # units of packing and of turning from the fetching of what they read to their work
# The forms of product that meet each chore: scores, anything, weights times values. What a chore makes is for a product
# from the same storage, in as many pieces as that has.
_FORMS = {
    "soften": (F32, F16, BF16),
    "pack": (F32, F16, BF16, ROUNDED + F16, ROUNDED + BF16, ROUNDED + Q8),
    "turn": (F32, F16, ROUNDED + BF16),
}
_OTHERS = {"soften": 3, "pack": 1, "turn": 2}  # arguments that a chore needs besides its units
_NOTHING = ir.VoidType()

# Which piece of A, the stored side, meets which of B: each pair shares a side with the one before it, so that only the
# other is loaded.
_MEETINGS = {
    F32: [(0, 2), (0, 1), (1, 1), (1, 0), (2, 0), (0, 0)],
    F16: [(0, 1), (0, 0), (1, 0)],
    BF16: [(0, 1), (0, 0)],
}
# Units of a chore after each product of two tiles: enough to be done in time, and evenly, since a core looks ahead some
# hundred instructions only. A unit of turning is large, and done once in a step.
_PORTIONS = {("soften", F32): (1, 0, 1, 0), ("pack", F32): (1, 0, 1, 0), "soften": (1, 1, 1, 1), "pack": (2, 2, 2, 2)}


def _tile_number(n: int) -> ir.Constant:
    return ir.Constant(I8, n)


def _load_tile(b: ir.IRBuilder, n: int, address: ir.Value, row: ir.Value) -> None:
    call_llvm(b, "llvm.x86.tileloadd64", _NOTHING, _tile_number(n), at(b, address, I8), row)


def _product(form: int, vectors: int, chore: str) -> Any:
    """A block of 32 rows and 16 · vectors columns: C = A·B if `fresh`, else C += A·B, over `steps` of 32 in the depth.

    Meanwhile units of the chore are done, from `unit` on, as far as `units`; what else they need are the other
    arguments. Returns the first unit that is left.
    """
    meetings = _MEETINGS.get(form, [(0, 0)])
    left_pieces, right_pieces = (1 + max(meeting[side] for meeting in meetings) for side in (0, 1))
    squares = [(i, j) for i in range(2) for j in range(vectors)]
    portions = _PORTIONS.get((chore, form)) or _PORTIONS.get(chore) or (0, 0, 0, 0)

    def build(b, fresh, left, right, c, c_row, steps, unit, units, *others):
        if not MATRIX:  # never called then, but compiled
            return number(0)
        places = {(i, j): plus(b, plus(b, c, 16 * i, c_row), 64 * j) for i, j in squares}
        with b.if_else(b.icmp_signed("!=", fresh, number(0))) as (new, old):
            with new:
                for i, j in squares:
                    call_llvm(b, "llvm.x86.tilezero", _NOTHING, _tile_number(2 * i + j))
            with old:
                for i, j in squares:
                    _load_tile(b, 2 * i + j, places[i, j], c_row)

        def step(values):
            a, other, unit = values
            if chore == "turn":
                unit = _if_left(b, unit, units, partial(_CHORES[chore], b, form, unit, *others))
            held_a = held_b = None
            for piece_a, piece_b in meetings:
                if piece_a != held_a:
                    for i in range(2):
                        _load_tile(b, 4 + i, plus(b, a, TILE * (2 * piece_a + i)), number(64))
                if piece_b != held_b:
                    for j in range(vectors):
                        _load_tile(b, 6 + j, plus(b, other, TILE * (2 * piece_b + j)), number(64))
                held_a, held_b = piece_a, piece_b
                for (i, j), portion in zip(squares, portions, strict=False):
                    tiles = (_tile_number(n) for n in (2 * i + j, 4 + i, 6 + j))
                    call_llvm(b, "llvm.x86.tdpbf16ps", _NOTHING, *tiles)
                    for _ in range(portion):
                        unit = _if_left(b, unit, units, partial(_CHORES[chore], b, form, unit, *others))
            return [plus(b, a, 2 * TILE * left_pieces), plus(b, other, 2 * TILE * right_pieces), unit]

        _, _, unit = repeat(b, steps, [left, right, unit], step)
        for i, j in squares:
            call_llvm(b, "llvm.x86.tilestored64", _NOTHING, _tile_number(2 * i + j), at(b, places[i, j], I8), c_row)
        return unit

    return machine_function(WORD, *[WORD] * (8 + _OTHERS[chore]))(build)


def _if_left(b: ir.IRBuilder, unit: ir.Value, units: ir.Value, work: Callable[[], None]) -> ir.Value:
    """Work if there is a unit left; returns the next one."""
    before = b.block
    with b.if_then(b.icmp_signed("<", unit, units)):
        work()
        following, inside = plus(b, unit, 1), b.block
    value = b.phi(I64)
    value.add_incoming(unit, before)
    value.add_incoming(following, inside)
    return value


def emit_soften(
    b: ir.IRBuilder, form: int, unit: ir.Value, scores: ir.Value, weights: ir.Value, state: ir.Value
) -> None:
    """A unit of the softmax: rows r and r + 16 of a step of 32 rows of scores become weights 2^(x - peak), packed as
    the right side of a product of this form, and are added to the columns' sums.

    Rows of `scores` hold two vectors, `state` two of peaks and two of sums. Both are computed, also where a block has
    columns for one alone.
    """
    pieces = _stored_pieces(form)
    r, step = b.and_(unit, number(15)), b.ashr(unit, number(4))
    row = b.add(scores, b.add(b.mul(step, number(32 * 128)), b.mul(r, number(128))))
    out = b.add(weights, b.add(b.mul(step, number(2 * TILE * pieces)), b.mul(r, number(64))))
    for vector in range(2):
        place = 64 * vector
        peak, sums = (b.load(at(b, state, VECTOR, 128 * n + place), align=4) for n in range(2))
        each_row = (b.load(at(b, row, VECTOR, down + place), align=4) for down in (0, 16 * 128))
        x, y = (emit_exp2(b, b.fsub(score, peak), rough=form == BF16) for score in each_row)
        b.store(b.fadd(sums, b.fadd(x, y)), at(b, state, VECTOR, 128 + place), align=4)
        _store_pieces(b, x, y, plus(b, out, TILE * vector), pieces)


def emit_pack(b: ir.IRBuilder, form: int, unit: ir.Value, entries: ir.Value) -> None:
    """A unit of packing: of the three addresses of an entry, a vector of stored numbers at the first and one at the
    second go in pieces to the third. What the entry LEAD further needs is fetched; the first LEAD units do only
    that."""
    for address in _entry(b, entries, unit)[:2]:
        fetch(b, address, write=False)
    with b.if_then(b.icmp_signed(">=", unit, number(LEAD))):
        one, other, out = _entry(b, entries, unit, -LEAD)
        if form % ROUNDED == BF16:  # as it is stored
            x, y = (b.load(at(b, place, ir.VectorType(I16, 16)), align=2) for place in (one, other))
            b.store(emit_woven(b, x, y), at(b, out, VECTOR), align=4)
        else:
            x, y = _halves(b, form % ROUNDED, one, other)
            _store_pieces(b, x, y, out, _stored_pieces(form))


def _halves(b: ir.IRBuilder, kind: int, one: ir.Value, other: ir.Value) -> list[ir.Value]:
    """The stored numbers at two places as float32. Of 8 bits they are the halves of a group, its scale before them."""
    if kind != Q8:
        return [emit_load(b, kind, place) for place in (one, other)]
    scale = emit_scale(b, plus(b, one, -2))
    return [b.fmul(emit_load_bytes(b, place), scale) for place in (one, other)]


def emit_turn(b: ir.IRBuilder, form: int, unit: ir.Value, entries: ir.Value, square: ir.Value) -> None:
    """A unit of packing what must be turned around: of the three words of an entry, the first is where the addresses of
    32 rows stand, and the second an offset into them; the 16 numbers there of every row go in pieces to the third, a
    row for each of the 16. `square` is room for them. Fetched ahead as in `emit_pack`."""
    rows, offset, _ = _entry(b, entries, unit)
    for i in range(32):
        fetch(b, b.add(b.load(at(b, rows, I64, 8 * i), align=8), offset), write=False)
    with b.if_then(b.icmp_signed(">=", unit, number(TURN_LEAD))):
        rows, offset, out = _entry(b, entries, unit, -TURN_LEAD)
        kind = form % ROUNDED
        for half in range(2):
            emit_transpose(b, plus(b, rows, 128 * half), offset, plus(b, square, 64 * half), number(128), kind)
        for i in range(16):
            x, y = (b.load(at(b, square, VECTOR, 128 * i + 64 * half), align=4) for half in range(2))
            _store_pieces(b, x, y, plus(b, out, 64 * i), _stored_pieces(form))


def _stored_pieces(form: int) -> int:
    """Pieces of a stored number."""
    return {F32: 3, F16: 2}.get(form, 1)


def _entry(b: ir.IRBuilder, entries: ir.Value, unit: ir.Value, shift: int = 0) -> list[ir.Value]:
    """The three words of the entry that stands `shift` after a unit's own."""
    entry = b.add(entries, b.mul(unit, number(24)))
    return [b.load(at(b, entry, I64, 8 * i + 24 * shift), align=8) for i in range(3)]


def _store_pieces(b: ir.IRBuilder, x: ir.Value, y: ir.Value, out: ir.Value, pieces: int) -> None:
    """The pieces of two vectors, pair by pair, in the tiles of one piece after another; a single piece is rounded."""
    if pieces == 1:
        b.store(emit_rounded_pair(b, x, y), at(b, out, VECTOR), align=4)
        return
    for piece in range(pieces):
        b.store(emit_pair(b, x, y), at(b, out, VECTOR, 2 * TILE * piece), align=4)
        x, y = emit_rest(b, x), emit_rest(b, y)


_CHORES = {"soften": emit_soften, "pack": emit_pack, "turn": emit_turn}


def _alone(emit: Any, form: int, others: int) -> Any:
    """A unit of a chore by itself."""

    def build(b, *arguments):
        if MATRIX:
            emit(b, form, *arguments)

    return machine_function(VOID, *[WORD] * (1 + others))(build)


def _choice(name: str, functions: dict[int, Any]) -> Any:
    """One function of a form and other arguments from those of each form; of a form that it does not have the last."""
    (form, first), *others = functions.items()
    if not others:
        return compiled_as(f"{name}_{form}", lambda form, *arguments: first(*arguments))
    rest = _choice(name, dict(others))

    def choose(given, *arguments):
        return first(*arguments) if given == form else rest(given, *arguments)

    return compiled_as(f"{name}_{form}", choose)


def _softening() -> Callable:
    unit_of = _choice("soften_unit", {form: _alone(emit_soften, form, 3) for form in _FORMS["soften"]})

    def soften_units(form, unit, units, scores, weights, state):
        for u in range(unit, units):
            unit_of(form, u, scores, weights, state)

    return compiled_as("soften_units", soften_units)


def _units(chore: str) -> Callable:
    """Units of packing or turning by themselves."""
    alone = {form: _alone(_CHORES[chore], form, _OTHERS[chore]) for form in _FORMS[chore]}
    unit_of = _choice(f"{chore}_unit", alone)

    def units_of_chore(form, unit, units, *others):
        for u in range(unit, units):
            unit_of(form, u, *others)

    return compiled_as(f"{chore}_units", units_of_chore)


def _products(chore: str) -> Callable:
    """One function for all forms and both widths."""
    wide, narrow = (
        _choice(f"product_and_{chore}_{vectors}", {form: _product(form, vectors, chore) for form in _FORMS[chore]})
        for vectors in (2, 1)
    )

    def product(vectors, form, *arguments):
        return wide(form, *arguments) if vectors == 2 else narrow(form, *arguments)

    return compiled_as(f"product_and_{chore}", product)


# (vectors, form, fresh, left, right, c, bytes from row to row of c, steps, unit, units, …) -> first unit that is left;
# `soften`: … is scores, weights, state; `pack`: … is entries; `turn`: … is entries, square
product_and_soften, product_and_pack, product_and_turn = (_products(chore) for chore in ("soften", "pack", "turn"))
soften_units = _softening()  # (form, unit, units, scores, weights, state)
pack_units, turn_units = _units("pack"), _units("turn")  # (form, unit, units, entries[, square])


@machine_function(VOID)
def open_tiles(b):
    """Give this thread's tiles 16 rows of 64 bytes each; does nothing where there is no matrix unit."""
    if not MATRIX:
        return
    palette, rows, widths = [1, *[0] * 15], [16] * 8 + [0] * 8, [64, 0] * 8 + [0] * 16
    kind = ir.ArrayType(I8, 64)
    name = "thresher.tiles"
    shape = b.module.globals.get(name)
    if shape is None:
        shape = ir.GlobalVariable(b.module, kind, name)
        shape.global_constant, shape.linkage = True, "internal"
        shape.initializer = ir.Constant(kind, bytearray([*palette, *widths, *rows]))
    call_llvm(b, "llvm.x86.ldtilecfg", _NOTHING, b.bitcast(shape, I8.as_pointer()))


@machine_function(VOID)
def close_tiles(b):
    """Let the system forget this thread's tiles."""
    if MATRIX:
        call_llvm(b, "llvm.x86.tilerelease", _NOTHING)
