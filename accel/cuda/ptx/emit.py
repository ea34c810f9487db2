"""How a wrapped instruction is made: inline assembly in the LLVM code that numba.cuda generates.

An assembly text names its operands $0, $1, …: results first, then arguments. Constraints say where each lives: "=r"
a 32-bit register for a result, "r" for an argument, "l" 64 bits, "f" float32, "h" 16 bits, a number the register of
that result. Unless an instruction is `pure`, it has an effect that LLVM does not see (memory, order): it may neither
move nor go.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from llvmlite import ir
from numba import types
from numba.cuda.extending import intrinsic

I16, I32, I64, F32, VOID = ir.IntType(16), ir.IntType(32), ir.IntType(64), ir.FloatType(), ir.VoidType()


def assembly(
    builder: Any, result: Any, arguments: Sequence[Any], text: str, constraints: str, *, pure: bool = False
) -> Any:
    """Call `text` as an instruction with these LLVM values."""
    kind = ir.FunctionType(result, [a.type for a in arguments])
    return builder.call(ir.InlineAsm(kind, text, constraints, side_effect=not pure), arguments)


def places(context: Any, builder: Any, kind: Any, array: Any, count: int) -> list[Any]:
    """Where the first `count` numbers of a local array stand: they become registers if all indices are constants."""
    data = context.make_array(kind)(context, builder, value=array).data
    return [builder.gep(data, [ir.Constant(I64, i)]) for i in range(count)]


def product_from_registers(count: int, words: int, address: Any, text: str, constraints: str) -> Any:
    """The intrinsic (acc, a, b): acc += A·B as `text` computes it, with `count` sums and `words` words of A in local
    arrays and B at an address of that type."""

    @intrinsic
    def product(typing: Any, acc: Any, a: Any, b: Any) -> Any:
        def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            sums = places(context, builder, signature.args[0], arguments[0], count)
            given = places(context, builder, signature.args[1], arguments[1], words)
            values = [builder.load(place) for place in [*sums, *given]] + [arguments[2]]
            result = assembly(builder, ir.LiteralStructType([F32] * count), values, text, constraints)
            for i, place in enumerate(sums):
                builder.store(builder.extract_value(result, i), place)
            return context.get_dummy_value()

        return types.void(acc, a, address), generate

    return product


def effect(text: str, *kinds: Any) -> Any:
    """The intrinsic for an instruction without a result, of at most two arguments of these types, 32 bits each."""
    constraints = ",".join(["r"] * len(kinds) + ["~{memory}"])
    if not kinds:

        @intrinsic
        def alone(typing: Any) -> Any:
            def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
                assembly(builder, VOID, [], text, constraints)
                return context.get_dummy_value()

            return types.void(), generate

        return alone
    if len(kinds) == 1:

        @intrinsic
        def one(typing: Any, a: Any) -> Any:
            def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
                assembly(builder, VOID, arguments, text, constraints)
                return context.get_dummy_value()

            return types.void(*kinds), generate

        return one

    @intrinsic
    def two(typing: Any, a: Any, b: Any) -> Any:
        def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            assembly(builder, VOID, arguments, text, constraints)
            return context.get_dummy_value()

        return types.void(*kinds), generate

    return two
