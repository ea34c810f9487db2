"""Numbers of 16 bits, and powers of two.

Kernels see float16 as int16 and bfloat16 as uint16; `wide` makes float32 of whatever an array holds, and `narrow` puts
a float32 into the form that an array holds, rounded to the nearest, ties to even:

    bfloat16 is the upper half of a float32:      s eeeeeeee mmmmmmm | mmmmmmmmmmmmmmmm
    narrow adds half of the last place kept (one less where that place is even) and cuts; NaN stays NaN

They compile for every device, and run in the simulator as NumPy.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from accel.cuda.ptx.simulator import SIMULATED

if SIMULATED:
    import ml_dtypes

    FORMS = {np.dtype(np.int16): np.dtype(np.float16), np.dtype(np.uint16): np.dtype(ml_dtypes.bfloat16)}

    def wide(x: Any) -> np.float32:
        """A stored number as float32."""
        form = FORMS.get(x.dtype)
        return np.float32(x if form is None else x.view(form))

    def narrow(like: Any, x: Any) -> Any:
        """A float32 in the form that the array `like` holds."""
        form = FORMS.get(like.dtype)
        return np.float32(x) if form is None else np.float32(x).astype(form).view(like.dtype)

    def ordered(x: Any) -> Any:
        """A float32 as a whole number of 32 bits in the same order; -0 and 0 are one."""
        found = int(np.float32(x + np.float32(0)).view(np.uint32))
        return np.uint32(found ^ 0xFFFFFFFF if found & 0x80000000 else found | 0x80000000)

    def upper(x: Any, shift: Any) -> Any:
        """The bits of a whole number of 32 bits from bit `shift` on."""
        return np.uint32(int(x) >> int(shift))

else:
    from llvmlite import ir
    from numba import types
    from numba.cuda.extending import intrinsic

    from accel.cuda.ptx.emit import F32, I16, I32, assembly

    @intrinsic
    def wide(typing: Any, x: Any) -> Any:
        """A stored number as float32."""

        def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            (value,) = arguments
            if x == types.uint16:
                return builder.bitcast(builder.shl(builder.zext(value, I32), ir.Constant(I32, 16)), F32)
            if x == types.int16:
                return assembly(builder, F32, [value], "cvt.f32.f16 $0, $1;", "=f,h", pure=True)
            return value if x == types.float32 else builder.fptrunc(value, F32)

        return types.float32(x), generate

    @intrinsic
    def narrow(typing: Any, like: Any, x: Any) -> Any:
        """A float32 in the form that the array `like` holds."""
        form = like.dtype

        def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            value = arguments[1]
            if form == types.int16:
                return assembly(builder, I16, [value], "cvt.rn.f16.f32 $0, $1;", "=h,f", pure=True)
            if form != types.uint16:
                return value if form == types.float32 else builder.fpext(value, ir.DoubleType())
            bits, sixteen = builder.bitcast(value, I32), ir.Constant(I32, 16)
            odd = builder.and_(builder.lshr(bits, sixteen), ir.Constant(I32, 1))
            rounded = builder.add(builder.add(bits, ir.Constant(I32, 0x7FFF)), odd)
            kept = builder.select(builder.fcmp_unordered("uno", value, value), ir.Constant(I32, 0x7FC00000), rounded)
            return builder.trunc(builder.lshr(kept, sixteen), I16)

        return form(like, types.float32), generate

    @intrinsic
    def ordered(typing: Any, x: Any) -> Any:
        """A float32 as a whole number of 32 bits in the same order; -0 and 0 are one."""

        def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            found = builder.bitcast(builder.fadd(arguments[0], ir.Constant(F32, 0.0)), I32)  # -0 + 0 = 0
            sign = builder.ashr(found, ir.Constant(I32, 31))
            return builder.xor(found, builder.or_(sign, ir.Constant(I32, -(2**31))))

        return types.uint32(types.float32), generate

    @intrinsic
    def upper(typing: Any, x: Any, shift: Any) -> Any:
        """The bits of a whole number of 32 bits from bit `shift` on."""

        def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            return builder.lshr(*arguments)

        return types.uint32(types.uint32, types.uint32), generate

    @intrinsic
    def exp2(typing: Any, x: Any) -> Any:
        """2^x to about 2 units in the last place: ex2.approx.ftz.f32, one instruction."""

        def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            return assembly(builder, F32, arguments, "ex2.approx.ftz.f32 $0, $1;", "=f,f", pure=True)

        return types.float32(types.float32), generate

    @intrinsic
    def larger(typing: Any, a: Any, b: Any) -> Any:
        """The larger of two float32, or the one that is a number."""

        def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            return assembly(builder, F32, arguments, "max.f32 $0, $1, $2;", "=f,f,f", pure=True)

        return types.float32(types.float32, types.float32), generate

    @intrinsic
    def reciprocal(typing: Any, x: Any) -> Any:
        """1/x to 1 unit in the last place, one instruction; exact division would be a call."""

        def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            return assembly(builder, F32, arguments, "rcp.approx.ftz.f32 $0, $1;", "=f,f", pure=True)

        return types.float32(types.float32), generate
