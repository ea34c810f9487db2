"""The register tile, the heart of every product on vectors, and the transposition of a square of lanes.

ROWS rows and up to VECTORS registers of columns of C (+)= A·B stay in registers while the depth runs, each step
broadcasting one number of A per row, or a pair of them, against a row of B. LLVM translates any vector width to any
machine; only the tile's shape is fitted to its registers.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from llvmlite import ir

from accel.cpu.simd.emit import at, each, fetch, fused, machine_function, number, paired, plus, repeat, spread
from accel.cpu.simd.kinds import FLOAT, I64, INTS, VECTOR, VOID, WORD
from accel.cpu.simd.later import compiled_as, njit
from accel.cpu.simd.machine import LANES, PAIRS, ROWS, VECTORS
from accel.cpu.simd.vectors import BF16, F16, F32, emit_load, emit_store_totals

TALL = 4 * VECTORS  # rows of the tile that is one vector wide: enough sums in flight to hide the latency
BROAD = 8  # vectors of the tile that is one row high


def _tile(columns: int, height: int, product: Callable) -> Any:
    """A tile of `height` rows and columns·LANES columns: C = A·B if `fresh`, else C += A·B.

    Arguments are addresses, the bytes from row to row (and for A from step to step), and the depth (at least 1) in
    steps: of one number, or of two where `product` is `paired`.
    """

    def build(b, fresh, a, a_row, a_step, other, other_row, c, c_row, depth):
        places = [plus(b, plus(b, c, r, c_row), 4 * LANES * j) for r in range(height) for j in range(columns)]
        for place in places:  # C is needed at the end: fetch it meanwhile
            fetch(b, place, write=True)

        def step(values):
            line, first, *sums = values
            across = [b.load(at(b, line, VECTOR, 4 * LANES * j), align=4) for j in range(columns)]
            down = [b.load(at(b, plus(b, first, r, a_row), FLOAT), align=4) for r in range(height)]
            grown = [
                product(b, spread(b, x, VECTOR), y, sums[r * columns + j])
                for r, x in enumerate(down)
                for j, y in enumerate(across)
            ]
            return [b.add(line, other_row), b.add(first, a_step), *grown]

        _, _, *sums = repeat(b, depth, [other, a, *[each(VECTOR, 0.0)] * len(places)], step)
        with b.if_else(b.icmp_signed("!=", fresh, number(0))) as (new, old):
            with new:
                for place, total in zip(places, sums, strict=True):
                    b.store(total, at(b, place, VECTOR), align=4)
            with old:
                for place, total in zip(places, sums, strict=True):
                    pointer = at(b, place, VECTOR)
                    b.store(b.fadd(b.load(pointer, align=4), total), pointer, align=4)

    return machine_function(VOID, *[WORD] * 9)(build)


def _tiles(height: int, product: Callable) -> Any:
    """One function of a height for all widths: its first argument is how many vectors wide, 1 to VECTORS."""
    widths = [_tile(columns, height, product) for columns in range(1, VECTORS + 1)]
    one, two, three, widest = widths[0], widths[1], widths[-2], widths[-1]

    def tile(vectors, fresh, a, a_row, a_step, b, b_row, c, c_row, depth):
        if vectors == VECTORS:
            widest(fresh, a, a_row, a_step, b, b_row, c, c_row, depth)
        elif vectors == 1:
            one(fresh, a, a_row, a_step, b, b_row, c, c_row, depth)
        elif vectors == 2:
            two(fresh, a, a_row, a_step, b, b_row, c, c_row, depth)
        else:
            three(fresh, a, a_row, a_step, b, b_row, c, c_row, depth)

    return compiled_as(f"{product.__name__}_tile_of_{height}_rows", tile)


def _strips(product: Callable) -> Callable:
    """The product for any number of rows: whole tiles, then tiles of two rows and of one."""
    high, two_rows, one_row = (_tiles(height, product) for height in (ROWS, 2, 1))

    def multiply(vectors, rows, fresh, a, a_row, a_step, b, b_row, c, c_row, depth):
        r = 0
        while r < rows:
            at, to = a + r * a_row, c + r * c_row
            if rows - r >= ROWS:
                high(vectors, fresh, at, a_row, a_step, b, b_row, to, c_row, depth)
                r += ROWS
            elif rows - r >= 2:
                two_rows(vectors, fresh, at, a_row, a_step, b, b_row, to, c_row, depth)
                r += 2
            else:
                one_row(vectors, fresh, at, a_row, a_step, b, b_row, to, c_row, depth)
                r += 1

    return compiled_as(f"{product.__name__}_tile_rows", multiply)


# (vectors, rows, fresh, a, bytes from row to row and from step to step of a, b, bytes from row to row of b, c, …,
# depth): C (rows × vectors·LANES) = A·B if `fresh`, else C += A·B. `pair_rows`: each step is two depths, in bfloat16
tile_rows = _strips(fused)
pair_rows = _strips(paired) if PAIRS else tile_rows


broad_tile = _tile(BROAD, 1, fused)  # its arguments are those of `_tile`: for a few rows


def _scores_of(kind: int) -> Any:
    """Products of 3 float32 rows and the 4 stored rows whose addresses stand at `lines`, written row by row. Each
    stored row is widened once for all three. The depth is in whole vectors."""

    def build(b, lines, rows, row, out, out_row, depth):
        keys = [b.load(at(b, lines, I64, 8 * n), align=8) for n in range(4)]

        def step(values):
            stored, wide, *sums = values
            across = [emit_load(b, kind, b.add(key, stored)) for key in keys]
            down = [b.load(at(b, b.add(plus(b, rows, r, row), wide), VECTOR), align=4) for r in range(3)]
            grown = [fused(b, x, y, sums[4 * r + n]) for r, y in enumerate(down) for n, x in enumerate(across)]
            return [plus(b, stored, LANES * (4 if kind == F32 else 2)), plus(b, wide, 4 * LANES), *grown]

        _, _, *sums = repeat(b, depth, [number(0), number(0), *[each(VECTOR, 0.0)] * 12], step)
        for r in range(3):
            emit_store_totals(b, plus(b, out, r, out_row), *sums[4 * r : 4 * r + 4])

    return machine_function(VOID, *[WORD] * 6)(build)


_of_f32, _of_f16, _of_bf16 = (_scores_of(kind) for kind in (F32, F16, BF16))


@njit
def score_tile(kind, lines, rows, row, out, out_row, depth):
    """As `_scores_of`, for any kind."""
    if kind == F32:
        _of_f32(lines, rows, row, out, out_row, depth)
    elif kind == F16:
        _of_f16(lines, rows, row, out, out_row, depth)
    else:
        _of_bf16(lines, rows, row, out, out_row, depth)


@machine_function(VOID, *[WORD] * 8)
def tall_tile(b, a, a_row, other, other_row, c, c_row, depth, ahead):
    """TALL rows and one vector of columns, C = A·B; meanwhile a line per step is fetched from `ahead` on."""

    def step(values):
        first, line, coming, *sums = values
        across = b.load(at(b, line, VECTOR), align=4)
        fetch(b, coming, write=False)
        down = [b.load(at(b, plus(b, first, r, a_row), FLOAT), align=4) for r in range(TALL)]
        grown = [fused(b, spread(b, x, VECTOR), across, y) for x, y in zip(down, sums, strict=True)]
        return [plus(b, first, 4), b.add(line, other_row), plus(b, coming, 64), *grown]

    _, _, _, *sums = repeat(b, depth, [a, other, ahead, *[each(VECTOR, 0.0)] * TALL], step)
    for r, total in enumerate(sums):
        b.store(total, at(b, plus(b, c, r, c_row), VECTOR), align=4)


def emit_transpose(
    b: ir.IRBuilder, rows: ir.Value, offset: ir.Value, out: ir.Value, out_row: ir.Value, kind: int = F32
) -> None:
    """LANES × LANES stored numbers turned around: those `offset` bytes into each of the rows whose addresses stand at
    `rows` become columns at `out`, whose rows are `out_row` bytes apart. Halves swap, then quarters, down to single
    lanes."""
    lines = []
    for r in range(LANES):
        address = b.load(at(b, rows, I64, 8 * r), align=8)
        lines.append(emit_load(b, kind, b.add(address, offset)))
    width = LANES // 2
    while width:
        low = ir.Constant(INTS, [i + LANES - width if i & width else i for i in range(LANES)])
        high = ir.Constant(INTS, [i + LANES if i & width else i + width for i in range(LANES)])
        for r in (r for r in range(LANES) if not r & width):
            x, y = lines[r], lines[r + width]
            lines[r], lines[r + width] = b.shuffle_vector(x, y, low), b.shuffle_vector(x, y, high)
        width //= 2
    for r, line in enumerate(lines):
        b.store(line, at(b, plus(b, out, r, out_row), VECTOR), align=4)


transpose = machine_function(VOID, WORD, WORD, WORD, WORD)(emit_transpose)  # of float32
