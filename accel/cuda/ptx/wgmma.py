"""wgmma (compute capability 9.0a): a product by the four warps of a warpgroup together, 64 rows at a time.

    acc (64, n) float32  =  or  +=   A (64, 16·steps) · B (16·steps, n)        A, B bfloat16 or float16

A lies in shared memory or in registers, B in shared memory. The products run on after the call: nothing may touch
their registers until `wait` has returned, which is why it takes them as arguments.

Registers. Thread t of the warpgroup, with warp w = t // 32 and lane l = t % 32, holds of acc

    acc[4i], acc[4i + 1]          row 16w + l//4         columns 8i + 2(l%4), the next        i = 0 … n/8 - 1
    acc[4i + 2], acc[4i + 3]      row 16w + l//4 + 8     the same columns

and of A in registers, pairs of 16-bit numbers in a word, the same rows in words 0, 2 and 1, 3:

    a[4s], a[4s + 1]              columns 16s + 2(l%4), the next; rows l//4 and l//4 + 8      s = 0 … steps - 1
    a[4s + 2], a[4s + 3]          the columns 8 further

so that the accumulator of one product, packed pair by pair, is the A of the next.

Shared memory. All operands use the 128-byte swizzle: panels of 64 columns, rows of 128 bytes one after the other, in
which the 16-byte chunk c of row r lies at c xor (r mod 8); panels start at multiples of 1,024 bytes. A matrix whose
rows run along the sum (keys in q·kᵀ) is K-major, one whose columns do (values) is MN-major and is transposed on the
way. `describe` makes the 64-bit word that an instruction finds its operand by.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from llvmlite import ir
from numba import types
from numba.cuda.extending import intrinsic

from accel.cuda.ptx.emit import F32, assembly, places, product_from_registers

SWIZZLE_128 = 1 << 62


def describe(leading: int, stride: int) -> np.int64:
    """All of a descriptor but its address: bytes between panels (MN-major) and between groups of 8 rows."""
    return np.int64(SWIZZLE_128 | (leading >> 4) << 16 | (stride >> 4) << 32)


def row_major(rows: int, columns: int) -> tuple[np.int64, list[int]]:
    """K-major operand of panels of so many rows: the descriptor, and by how much it advances to each step of 16
    columns, in units of 16 bytes."""
    return describe(16, 1024), [(s // 4) * rows * 8 + (s % 4) * 2 for s in range(columns // 16)]


def column_major(rows: int) -> tuple[np.int64, list[int]]:
    """MN-major operand of panels of so many rows, which are the steps of the sum: as `row_major`."""
    return describe(rows * 128, 1024), [s * 128 for s in range(rows // 16)]


def _listed(first: int, count: int) -> str:
    return ", ".join(f"${first + i}" for i in range(count))


def from_shared(n: int, a_steps: list[int], b_steps: list[int], form: str) -> Any:
    """The intrinsic (acc, a, b): acc = A·Bᵀ with A (64, K) and B (n, K) K-major in shared memory, by descriptors."""
    count = n // 2
    shape = f"wgmma.mma_async.sync.aligned.m64n{n}k16.f32.{form}.{form}"
    lines = ["{ .reg .b64 a, b; .reg .pred none, all; setp.ne.b32 none, 0, 0; setp.eq.b32 all, 0, 0;"]
    lines.append("wgmma.fence.sync.aligned;")
    for s, (a_step, b_step) in enumerate(zip(a_steps, b_steps, strict=True)):
        lines.append(f"add.s64 a, ${count}, {a_step}; add.s64 b, ${count + 1}, {b_step};")
        lines.append(f"{shape} {{{_listed(0, count)}}}, a, b, {'all' if s else 'none'}, 1, 1, 0, 0;")
    text = "\n".join([*lines, "wgmma.commit_group.sync.aligned; }"])
    constraints = ",".join(["=f"] * count + ["l", "l", "~{memory}"])

    @intrinsic
    def product(typing: Any, acc: Any, a: Any, b: Any) -> Any:
        def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            result = assembly(builder, ir.LiteralStructType([F32] * count), arguments[1:], text, constraints)
            for i, place in enumerate(places(context, builder, signature.args[0], arguments[0], count)):
                builder.store(builder.extract_value(result, i), place)
            return context.get_dummy_value()

        return types.void(acc, types.int64, types.int64), generate

    return product


def onto_shared(n: int, a_steps: list[int], b_steps: list[int], form: str, *, turned: bool = False) -> Any:
    """The intrinsic (acc, a, b): acc += A·B with A (64, K) K-major in shared memory, and B (n, K) K-major or, if
    `turned`, (K, n) MN-major, by descriptors."""
    count = n // 2
    shape = f"wgmma.mma_async.sync.aligned.m64n{n}k16.f32.{form}.{form}"
    lines = ["{ .reg .b64 a, b; .reg .pred all; setp.eq.b32 all, 0, 0; wgmma.fence.sync.aligned;"]
    for a_step, b_step in zip(a_steps, b_steps, strict=True):
        lines.append(f"add.s64 a, ${2 * count}, {a_step}; add.s64 b, ${2 * count + 1}, {b_step};")
        lines.append(f"{shape} {{{_listed(0, count)}}}, a, b, all, 1, 1, 0, {int(turned)};")
    text = "\n".join([*lines, "wgmma.commit_group.sync.aligned; }"])
    constraints = ",".join(["=f"] * count + [str(i) for i in range(count)] + ["l", "l", "~{memory}"])

    @intrinsic
    def product(typing: Any, acc: Any, a: Any, b: Any) -> Any:
        def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            sums = places(context, builder, signature.args[0], arguments[0], count)
            held = [builder.load(place) for place in sums]
            kind = ir.LiteralStructType([F32] * count)
            result = assembly(builder, kind, [*held, *arguments[1:]], text, constraints)
            for i, place in enumerate(sums):
                builder.store(builder.extract_value(result, i), place)
            return context.get_dummy_value()

        return types.void(acc, types.int64, types.int64), generate

    return product


def from_registers(n: int, b_steps: list[int], form: str) -> Any:
    """The intrinsic (acc, a, b): acc += A·B with A (64, K) in registers and B (K, n) MN-major in shared memory."""
    count, words = n // 2, 4 * len(b_steps)
    shape = f"wgmma.mma_async.sync.aligned.m64n{n}k16.f32.{form}.{form}"
    where = 2 * count + words  # the descriptor's operand: results, the same as arguments, a's words, and then it
    lines = ["{ .reg .b64 b; .reg .pred all; setp.eq.b32 all, 0, 0; wgmma.fence.sync.aligned;"]
    for s, step in enumerate(b_steps):
        lines.append(f"add.s64 b, ${where}, {step};")
        lines.append(f"{shape} {{{_listed(0, count)}}}, {{{_listed(2 * count + 4 * s, 4)}}}, b, all, 1, 1, 1;")
    text = "\n".join([*lines, "wgmma.commit_group.sync.aligned; }"])
    constraints = ",".join(["=f"] * count + [str(i) for i in range(count)] + ["r"] * words + ["l", "~{memory}"])

    return product_from_registers(count, words, types.int64, text, constraints)


def wait(pending: int, *counts: int) -> Any:
    """The intrinsic (array, …) that returns when at most `pending` of the products asked for are not done. Arrays of
    these counts of registers (float32 or words) are theirs: from here on they may be used again."""
    total = sum(counts)
    text = f"wgmma.wait_group.sync.aligned {pending};"

    def emit(context: Any, builder: Any, kinds: Any, arrays: Any) -> Any:
        held = [
            place
            for kind, array, count in zip(kinds, arrays, counts, strict=True)
            for place in places(context, builder, kind, array, count)
        ]
        values = [builder.load(place) for place in held]
        letters = ["=f" if value.type == F32 else "=r" for value in values]
        constraints = ",".join([*letters, *(str(i) for i in range(total)), "~{memory}"])
        result = assembly(builder, ir.LiteralStructType([v.type for v in values]), values, text, constraints)
        for i, place in enumerate(held):
            builder.store(builder.extract_value(result, i), place)
        return context.get_dummy_value()

    if len(counts) == 1:

        @intrinsic
        def wait_one(typing: Any, a: Any) -> Any:
            def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
                return emit(context, builder, signature.args, arguments)

            return types.void(a), generate

        return wait_one

    @intrinsic
    def wait_two(typing: Any, a: Any, b: Any) -> Any:
        def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            return emit(context, builder, signature.args, arguments)

        return types.void(a, b), generate

    return wait_two
