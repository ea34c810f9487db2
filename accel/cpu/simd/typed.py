"""What this package's functions and vectors are to Numba. Only what compiles imports it."""

from __future__ import annotations

import operator
from collections.abc import Callable
from functools import wraps
from inspect import Parameter, Signature
from typing import Any, ClassVar

from llvmlite import ir
from numba import types
from numba.core.datamodel import models
from numba.core.registry import cpu_target
from numba.core.typing.templates import ConcreteTemplate, infer_global
from numba.core.typing.templates import signature as signed
from numba.extending import intrinsic, lower_builtin, register_model, typeof_impl

from accel.cpu.simd.kinds import FLOAT, I8, I16, I32, I64, VECTOR, VOID, Pointer, Vector
from accel.cpu.simd.later import Later
from accel.cpu.simd.machine import LANES


class VectorType(types.Type):
    """Numba's type of one register of LANES float32."""

    def __init__(self) -> None:
        super().__init__(name=f"float32x{LANES}")


@register_model(VectorType)
class _VectorModel(models.PrimitiveModel):
    def __init__(self, manager: Any, kind: VectorType) -> None:
        super().__init__(manager, kind, VECTOR)


_VECTOR = VectorType()
_TYPES = {
    VOID: types.void, I64: types.int64, FLOAT: types.float32, Vector: _VECTOR, ir.DoubleType(): types.float64,
    I32: types.uint32, I16: types.uint16, I8: types.uint8,
}  # fmt: skip


def of(kind: Any) -> Any:
    """Numba's type of a kind of value."""
    if isinstance(kind, Pointer):
        return types.CPointer(_TYPES[kind.pointee])
    return _TYPES[kind]


def intrinsic_of(build: Callable, result: Any, arguments: tuple[Any, ...]) -> Any:
    """The function that emits what build(builder, *values) does."""

    @wraps(build)
    def typing(context: Any, *given: Any) -> Any:
        def codegen(context: Any, builder: Any, signature: Any, values: Any) -> Any:
            value = build(builder, *values)
            return context.get_dummy_value() if value is None else value

        return of(result)(*map(of, arguments)), codegen

    names = ["context", *(f"argument_{n}" for n in range(len(arguments)))]  # Numba wants them named
    parameters = [Parameter(name, Parameter.POSITIONAL_OR_KEYWORD) for name in names]
    typing.__signature__ = Signature(parameters)  # type: ignore[attr-defined]
    return intrinsic(typing)


@typeof_impl.register(Later)
def _typeof(function: Later, _: Any) -> Any:
    context, is_new = cpu_target.typing_context, "made" not in vars(function)
    made = function.made
    if is_new:
        context.refresh()  # it must hear of what was just made
    return context.resolve_value_type(made)


def _operator(symbol: Callable, emit: str) -> None:
    """Make x + y and its like work on vectors inside kernels."""

    @infer_global(symbol)
    class Lanewise(ConcreteTemplate):
        cases: ClassVar = [signed(_VECTOR, _VECTOR, _VECTOR)]

    @lower_builtin(symbol, VectorType, VectorType)
    def combined(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        return getattr(builder, emit)(*values)


for _symbol, _emit in (
    (operator.add, "fadd"),
    (operator.sub, "fsub"),
    (operator.mul, "fmul"),
    (operator.truediv, "fdiv"),
):
    _operator(_symbol, _emit)
