"""Addresses, and loads and stores of 4, 8 and 16 bytes.

global addresses are 64-bit numbers, shared ones 32-bit numbers that count from the start of the block's own memory
four words:  16 bytes at a 16-byte boundary, the most that one thread moves at once
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba import types
from numba.cuda.extending import intrinsic

from accel.cuda.ptx.emit import F32, I32, I64, VOID, assembly

FOUR, PAIR, TWO = types.UniTuple(types.uint32, 4), types.UniTuple(types.uint32, 2), types.UniTuple(types.float32, 2)


@intrinsic
def shared_address(typing: Any, array: Any) -> Any:
    """Where a shared array begins."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        data = context.make_array(signature.args[0])(context, builder, value=arguments[0]).data
        text = "{ .reg .u64 t; cvta.to.shared.u64 t, $1; cvt.u32.u64 $0, t; }"
        return assembly(builder, I32, [builder.ptrtoint(data, I64)], text, "=r,l")

    return types.uint32(array), generate


def _load(result: Any, kind: Any, text: str, constraints: str) -> Any:
    @intrinsic
    def load(typing: Any, address: Any) -> Any:
        def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            return assembly(builder, kind, arguments, text, constraints)

        return result(types.int64), generate

    return load


load_word = _load(types.int32, I32, "ld.global.b32 $0, [$1];", "=r,l,~{memory}")
load_long = _load(types.int64, I64, "ld.global.b64 $0, [$1];", "=l,l,~{memory}")
load_real = _load(types.float32, F32, "ld.global.f32 $0, [$1];", "=f,l,~{memory}")


@intrinsic
def load_four(typing: Any, address: Any) -> Any:
    """Four words of global memory."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        kind = ir.LiteralStructType([I32] * 4)
        found = assembly(builder, kind, arguments, "ld.global.v4.b32 {$0,$1,$2,$3}, [$4];", "=r,=r,=r,=r,l,~{memory}")
        return context.make_tuple(builder, FOUR, [builder.extract_value(found, i) for i in range(4)])

    return FOUR(types.int64), generate


@intrinsic
def load_two(typing: Any, address: Any) -> Any:
    """Two words of global memory, at an 8-byte boundary."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        kind = ir.LiteralStructType([I32] * 2)
        found = assembly(builder, kind, arguments, "ld.global.v2.b32 {$0, $1}, [$2];", "=r,=r,l,~{memory}")
        return context.make_tuple(builder, PAIR, [builder.extract_value(found, i) for i in range(2)])

    return PAIR(types.int64), generate


def _store(kinds: tuple[Any, ...], text: str, constraints: str) -> Any:
    signature = types.void(*kinds)

    @intrinsic
    def store(typing: Any, address: Any, value: Any) -> Any:
        def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            assembly(builder, VOID, arguments, text, constraints)
            return context.get_dummy_value()

        return signature, generate

    return store


store_word = _store((types.int64, types.uint32), "st.global.b32 [$0], $1;", "l,r,~{memory}")
store_real = _store((types.int64, types.float32), "st.global.f32 [$0], $1;", "l,f,~{memory}")


@intrinsic
def store_pair(typing: Any, address: Any, first: Any, second: Any) -> Any:
    """Two float32 side by side, at an 8-byte boundary of global memory."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        assembly(builder, VOID, arguments, "st.global.v2.f32 [$0], {$1, $2};", "l,f,f,~{memory}")
        return context.get_dummy_value()

    return types.void(types.int64, types.float32, types.float32), generate


@intrinsic
def store_shared_four(typing: Any, address: Any, a: Any, b: Any, c: Any, d: Any) -> Any:
    """Four words to shared memory."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        assembly(builder, VOID, arguments, "st.shared.v4.b32 [$0], {$1,$2,$3,$4};", "r,r,r,r,r,~{memory}")
        return context.get_dummy_value()

    return types.void(types.uint32, *[types.uint32] * 4), generate


@intrinsic
def as_real(typing: Any, bits: Any) -> Any:
    """The float32 of these 32 bits."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.bitcast(arguments[0], F32)

    return types.float32(types.uint32), generate


@intrinsic
def store_four(typing: Any, address: Any, a: Any, b: Any, c: Any, d: Any) -> Any:
    """Four float32 to global memory."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        assembly(builder, VOID, arguments, "st.global.v4.f32 [$0], {$1,$2,$3,$4};", "l,f,f,f,f,~{memory}")
        return context.get_dummy_value()

    return types.void(types.int64, *[types.float32] * 4), generate


def _pack(name: str) -> Any:
    @intrinsic
    def pack(typing: Any, low: Any, high: Any) -> Any:
        def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            return assembly(builder, I32, arguments[::-1], f"cvt.rn.{name}x2.f32 $0, $1, $2;", "=r,f,f", pure=True)

        return types.uint32(types.float32, types.float32), generate

    return pack


pack_bf16, pack_f16 = _pack("bf16"), _pack("f16")  # two float32 as one word of two 16-bit numbers, the first lower


def _unpack(text: str) -> Any:
    @intrinsic
    def unpack(typing: Any, word: Any) -> Any:
        def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            kind = ir.LiteralStructType([F32] * 2)
            found = assembly(builder, kind, arguments, text, "=f,=f,r", pure=True)
            return context.make_tuple(builder, TWO, [builder.extract_value(found, i) for i in range(2)])

        return TWO(types.uint32), generate

    return unpack


# a word of two 16-bit numbers as two float32, the lower first
unpack_bf16 = _unpack("shl.b32 $0, $2, 16; and.b32 $1, $2, 0xffff0000;")
unpack_f16 = _unpack("{ .reg .b16 l, h; mov.b32 {l, h}, $2; cvt.f32.f16 $0, l; cvt.f32.f16 $1, h; }")


@intrinsic
def lane_again(typing: Any) -> Any:
    """The thread's place in its warp, asked for anew: what follows from it is not held in registers over a loop."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return assembly(builder, I32, [], "mov.u32 $0, %laneid;", "=r")

    return types.uint32(), generate
