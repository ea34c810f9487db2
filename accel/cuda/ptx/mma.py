"""mma.sync (compute capability 8.0): a product by one warp, which waits for it; operands come by ldmatrix.

    acc (16·M, n) float32  =  or  +=   A (16·M, K) · B (K, n)        A, B bfloat16 or float16

One instruction is m16n8k16: 16 rows, 8 columns, 16 terms of the sum. A product here is one block of assembly with all
of them, so that ptxas orders loads and products freely and no loop has to be unrolled.

Registers. Lane l holds of acc, for tile m of 16 rows and block i of 8 columns, at 4·(m·n/8 + i):

    acc[0], acc[1]      row 16m + l//4         columns 8i + 2(l%4), the next
    acc[2], acc[3]      row 16m + l//4 + 8     the same columns

            columns   0  1 | 2  3 | 4  5 | 6  7
    row 0           lane 0 |  1   |  2   |  3         as the warps of wgmma have it
    row 1           lane 4 |  5   |  6   |  7
    …

and of A in registers, pairs of 16-bit numbers in a word, for step s of 16 columns at 4·(m·K/16 + s):

    a[0], a[1]          columns 16s + 2(l%4), the next; rows l//4 and l//4 + 8
    a[2], a[3]          the columns 8 further

so that the accumulator of one product, packed pair by pair, is the A of the next.

Shared memory. As for wgmma: panels of 64 columns, rows of 128 bytes in which the 16-byte chunk c of row r lies at c xor
(r mod 8), panels at multiples of 1,024 bytes. ldmatrix fetches four 8 × 8 matrices, whose rows lanes 0 to 7, 8 to 15, …
point at; eight rows at once come from different banks.

    lane_rows       where a lane points, for A by rows and for values, and
    lane_columns    for keys: the same with the second and third matrix exchanged
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba import types
from numba.cuda.extending import intrinsic

from accel.cuda.ptx.emit import F32, assembly, places, product_from_registers

LOAD = "ldmatrix.sync.aligned.m8n8.x4.shared.b16"
LOAD_TURNED = "ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16"


def _pointer(order: str) -> Any:
    """The intrinsic (address of a row of 16 at a multiple of 8, lane): where a lane points for step 0."""
    row, chunk = {"rows": (8, 16), "columns": (16, 8)}[order]  # the lane's bit that is 8 rows, and that is a chunk

    @intrinsic
    def pointer(typing: Any, base: Any, lane: Any) -> Any:
        def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            i32 = ir.IntType(32)

            def number(x: int) -> Any:
                return ir.Constant(i32, x)

            address, lane = arguments
            low = builder.and_(lane, number(7))
            eight = builder.select(
                builder.icmp_unsigned("!=", builder.and_(lane, number(row)), number(0)), number(8), number(0)
            )
            side = builder.select(
                builder.icmp_unsigned("!=", builder.and_(lane, number(chunk)), number(0)), number(1), number(0)
            )
            lines = builder.shl(builder.add(low, eight), number(7))
            piece = builder.shl(builder.xor(low, side), number(4))
            return builder.add(address, builder.add(lines, piece))

        return types.uint32(types.uint32, types.uint32), generate

    return pointer


lane_rows, lane_columns = _pointer("rows"), _pointer("columns")


def _at(register: str, step: int, rows: int, line: int) -> tuple[str, str]:
    """Code that makes `u` the lane's pointer at the two chunks of a step, and the address: panels of `rows` rows, from
    row `line` on."""
    panel, chunk = divmod(2 * step, 8)
    return f"xor.b32 u, {register}, {chunk << 4};", f"[u + {panel * rows * 128 + line * 128}]"


def _listed(first: int, count: int) -> str:
    return ", ".join(f"${first + i}" for i in range(count))


def _step(
    b: str, step: int, n: int, b_rows: int, given: list[list[str]], form: str, turned: bool, onto: bool
) -> list[str]:
    """Code for 16 terms: every 16 columns of B are fetched once and multiplied by all tiles of A, whose words are
    `given`."""
    shape, lines = f"mma.sync.aligned.m16n8k16.row.col.f32.{form}.{form}.f32", []
    for j in range(-(-n // 16)):
        move, place = _at(b, j, b_rows, 16 * step) if turned else _at(b, step, b_rows, 16 * j)
        lines.append(f"{move} {LOAD_TURNED if turned else LOAD} {{v0, v1, v2, v3}}, {place};")
        for half in range(min(2, (n - 16 * j) // 8)):
            for m, words in enumerate(given):
                sums = _listed(4 * (m * n // 8 + 2 * j + half), 4)
                lines.append(
                    f"{shape} {{{sums}}}, {{{', '.join(words)}}}, {{v{2 * half}, v{2 * half + 1}}}, "
                    f"{{{sums if onto else 'z, z, z, z'}}};"
                )
    return lines


def from_shared(
    tiles: int, n: int, terms: int, a_rows: int, b_rows: int, form: str, *, turned: bool = False, onto: bool = False
) -> Any:
    """The intrinsic (acc, a, b): acc = A·Bᵀ, or with `onto` +=, A (16·tiles, terms) and B (n, terms), both by rows, in
    panels of so many rows. With `turned`, B is (terms, n) by rows instead, turned on the way, n a multiple of 16.
    a: `lane_rows` of the first row; b: `lane_columns` of the first row, or `lane_rows` if turned."""
    count = tiles * n // 2
    start = 2 * count if onto else count
    a = f"${start}"
    lines = [f"{{ .reg .b32 u, v<4>, w<{4 * tiles}>; .reg .f32 z; mov.f32 z, 0f00000000;"]
    for step in range(terms // 16):
        given = [[f"w{4 * m + i}" for i in range(4)] for m in range(tiles)]
        for m in range(tiles):
            move, place = _at(a, step, a_rows, 16 * m)
            lines.append(f"{move} {LOAD} {{{', '.join(given[m])}}}, {place};")
        lines += _step(f"${start + 1}", step, n, b_rows, given, form, turned, step > 0 or onto)
    text = "\n".join([*lines, "}"])
    before = [str(i) for i in range(count)] if onto else []
    constraints = ",".join(["=f"] * count + before + ["r", "r", "~{memory}"])

    @intrinsic
    def product(typing: Any, acc: Any, a: Any, b: Any) -> Any:
        def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            sums = places(context, builder, signature.args[0], arguments[0], count)
            held = [builder.load(place) for place in sums] if onto else []
            kind = ir.LiteralStructType([F32] * count)
            result = assembly(builder, kind, [*held, *arguments[1:]], text, constraints)
            for i, place in enumerate(sums):
                builder.store(builder.extract_value(result, i), place)
            return context.get_dummy_value()

        return types.void(acc, types.uint32, types.uint32), generate

    return product


def from_registers(tiles: int, n: int, terms: int, b_rows: int, form: str) -> Any:
    """The intrinsic (acc, a, b): acc += A·B, A (16·tiles, terms) in registers, B (terms, n) by rows in panels of so
    many rows, turned on the way. b: `lane_rows` of the first row. n is a multiple of 16."""
    count, words = tiles * n // 2, tiles * terms // 4
    lines = ["{ .reg .b32 u, v<4>;"]
    for step in range(terms // 16):
        own = [2 * count + 4 * (m * terms // 16 + step) for m in range(tiles)]
        given = [[f"${first + i}" for i in range(4)] for first in own]
        lines += _step(f"${2 * count + words}", step, n, b_rows, given, form, True, True)
    text = "\n".join([*lines, "}"])
    constraints = ",".join(["=f"] * count + [str(i) for i in range(count)] + ["r"] * (words + 1) + ["~{memory}"])

    return product_from_registers(count, words, types.uint32, text, constraints)
