"""How a kernel is compiled, by Numba: with all that it calls, once.

Left to itself Numba makes machine code of every function, with wrappers for Python and C, then again of that function
inside each of its callers, and all this anew for every constant among the arguments. A kernel consists of dozens of
small functions that nobody else calls. So here a function stays as it was written until its kernel is complete: then
all that the kernel reaches is linked, optimised and turned into machine code in one go. That halves the work.

The other half is what Numba does in Python. Each function takes few passes (simd/passes.py); what a call of Numba's own
functions gives is worked out once for the same arguments.

Only who must compile imports this: see code.py.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import llvmlite.binding as llvm
from llvmlite import ir
from numba import types
from numba.core.ccallback import _CFuncCompiler  # type: ignore[attr-defined]
from numba.core.codegen import JITCodeLibrary
from numba.core.compiler_lock import global_compiler_lock
from numba.core.dispatcher import _FunctionCompiler  # type: ignore[attr-defined]
from numba.core.registry import cpu_target
from numba.core.targetconfig import ConfigStack
from numba.core.types.functions import BaseFunction

import accel.cpu.simd.typed  # noqa: F401  (tells Numba what this package's functions are)
from accel.cpu.runtime import image
from accel.cpu.runtime.target import SYMBOL, target_machine
from accel.cpu.simd.passes import Compiler
from reference.checks import require

# Kernels own no memory, so that nothing needs to be counted.
_NO_COUNTING = "".join(
    f"define void @NRT_{name}(ptr %p) alwaysinline {{ ret void }}\n" for name in ("incref", "decref")
)


class _Part(JITCodeLibrary):
    """The code of one function, and which others it calls."""

    def add_linking_library(self, library: Any) -> None:
        self._linking_libraries.append(library)  # as it is: Numba would finish it first

    def _optimize_functions(self, module: Any) -> None:
        """Nothing: all is optimised when the kernel is complete."""

    def _optimize_final_module(self) -> None:
        """Once: Numba does it twice, because it drops what counts references in between."""
        options = llvm.create_pipeline_tuning_options(speed_level=2)
        builder = llvm.create_pass_builder(target_machine(), options)
        builder.getModulePassManager().run(self._final_module, builder)

    def object_file(self) -> bytes:
        """Machine code of this and all that it reaches. It shows one symbol."""
        whole = self._final_module
        whole.link_in(llvm.parse_assembly(_NO_COUNTING), preserve=True)
        for library in self._reached():
            unfinished = isinstance(library, _Part) and not library._finalized
            module = library.as_written() if unfinished else library._get_module_for_linking()
            whole.link_in(module, preserve=True)
        self._optimize_final_module()
        for function in whole.functions:
            if function.is_declaration:
                found = function.name.startswith("llvm.") or llvm.address_of_symbol(function.name)
                require(found, f"{self.name}: calls {function.name}, which no process has that runs without Numba")
            elif function.name != SYMBOL:
                function.linkage = "internal"
        whole.verify()
        return target_machine().emit_object(whole)

    def as_written(self) -> Any:
        """A module that others link, where it may be found in several of them."""
        module = self._final_module.clone()
        for function in module.functions:
            if not function.is_declaration and function.linkage == llvm.Linkage.external:
                function.linkage = "linkonce_odr"
        return module

    def _reached(self) -> list[Any]:
        """All that this calls and what those call, each once."""
        reached: dict[Any, None] = {}
        waiting = list(self._linking_libraries)
        while waiting:
            library = waiting.pop()
            if library not in reached:
                reached[library] = None
                waiting += library._linking_libraries
        return list(reached)


def compile_code(function: Callable, words: int) -> bytes:
    """The function as code that can be loaded: it takes so many words, and returns nothing."""
    options = {"nopython": True, "error_model": "numpy"}
    with _parts():
        compiler = _CFuncCompiler(function, cpu_target, options, {}, pipeline_class=Compiler)
        code: bytes = compiler.compile((types.int64,) * words, types.void).library.object_file()
    return image.image_of(code, SYMBOL) if image.IMAGES else code


@contextmanager
def _parts() -> Iterator[None]:
    """While it lasts, whatever Numba compiles is a part of the kernel that it is compiled for."""
    with global_compiler_lock, ExitStack() as until_the_end:
        context: Any = cpu_target.target_context
        context.refresh()
        fold, call_type = _FunctionCompiler.fold_argument_types, BaseFunction.get_call_type

        def wrap_kernel(library: Any, descriptor: Any, *_: Any) -> None:
            if ConfigStack().top().no_compile:  # Numba's word for what is given a wrapper before it is compiled
                _add_door(context, library, descriptor)

        def fold_constants(self: Any, args: Any, kws: Any) -> Any:
            signature, types_of = fold(self, args, kws)
            ours = self.py_func.__module__.startswith("accel.cpu.")
            return signature, tuple(map(_plain, types_of)) if ours else types_of

        def known_call_type(self: Any, context: Any, args: Any, kws: Any) -> Any:
            known = vars(self).setdefault("_known", {})
            given = args, tuple(kws.items())
            if given not in known:
                known[given] = call_type(self, context, args, kws)
            return known[given]

        for owner, name, value in (
            (context, "create_cfunc_wrapper", wrap_kernel),
            (context, "create_cpython_wrapper", lambda *_, **__: None),
            (context, "get_executable", lambda *_: {}.popitem),  # of each its own, and if Python calls it, it raises
            (context.codegen(), "_library_class", _Part),
            (_FunctionCompiler, "fold_argument_types", fold_constants),
            (BaseFunction, "get_call_type", known_call_type),
        ):
            until_the_end.enter_context(_changed(owner, name, value))
        yield


@contextmanager
def _changed(owner: Any, name: str, value: Any) -> Iterator[None]:
    """While it lasts, an object or a class has this attribute."""
    own = {name: vars(owner)[name]} if name in vars(owner) else {}
    setattr(owner, name, value)
    try:
        yield
    finally:
        delattr(owner, name)
        for before in own.values():
            setattr(owner, name, before)


def _plain(kind: Any) -> Any:
    """The type that a function is compiled for when it gets this one: it knows no constants, and truth is a word."""
    kind = types.unliteral(kind)
    return types.int64 if kind == types.boolean else kind


def _add_door(context: Any, library: Any, descriptor: Any) -> None:
    """How others call a kernel: with its words alone. What it returns to Numba, whether it raised, nobody reads: none
    does."""
    module, convention = context.create_module(SYMBOL), context.call_conv
    kind = convention.get_function_type(descriptor.restype, descriptor.argtypes)
    inner = ir.Function(module, kind, descriptor.llvm_func_name)
    words = [context.get_value_type(argument) for argument in descriptor.argtypes]
    door = ir.Function(module, ir.FunctionType(ir.VoidType(), words), SYMBOL)
    builder = ir.IRBuilder(door.append_basic_block())
    convention.call_function(builder, inner, descriptor.restype, descriptor.argtypes, door.args, attrs=("noinline",))
    builder.ret_void()
    library.add_ir_module(module)
