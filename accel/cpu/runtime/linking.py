"""How a kernel is put together: what it calls is compiled with it, once.

Left to itself Numba makes machine code of every function, with wrappers for Python and C, then again of that function
inside each of its callers, and all this anew for every constant among the arguments. A kernel consists of dozens of
small functions that nobody else calls. So here a function stays as it was written until its kernel is complete: then
all that the kernel reaches is linked, optimised and turned into machine code in one go. That halves the work.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import llvmlite.binding as llvm
from numba import types
from numba.core.codegen import JITCodeLibrary
from numba.core.compiler_lock import global_compiler_lock
from numba.core.dispatcher import _FunctionCompiler  # type: ignore[attr-defined]
from numba.core.registry import cpu_target
from numba.core.targetconfig import ConfigStack


class _Part(JITCodeLibrary):
    """The code of one function, and which others it calls. With all that it reaches it becomes machine code when
    somebody asks for its address: nobody does but for a kernel."""

    def add_linking_library(self, library: Any) -> None:
        self._linking_libraries.append(library)  # as it is: Numba would finish it first

    def finalize(self) -> None:
        self._raise_if_finalized()
        self._codegen._check_llvm_bugs()
        for library in self._reached():
            self._reload_init.update(library._reload_init)
            unfinished = isinstance(library, _Part) and not library._finalized
            module = library.as_written() if unfinished else library._get_module_for_linking()
            self._final_module.link_in(module, preserve=True)
        self._optimize_final_module()
        self._final_module.verify()
        self._finalize_final_module()

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


@contextmanager
def linked_at_once() -> Iterator[None]:
    """While it lasts, whatever Numba compiles is a part of the kernel that it is compiled for."""
    with global_compiler_lock:
        context: Any = cpu_target.target_context
        codegen, compiler = context.codegen(), _FunctionCompiler
        wrap, fold = context.create_cfunc_wrapper, compiler.fold_argument_types

        def wrap_kernel(*arguments: Any) -> None:
            if ConfigStack().top().no_compile:  # Numba's word for what is given a wrapper before it is compiled
                wrap(*arguments)

        def fold_constants(self: Any, args: Any, kws: Any) -> Any:
            signature, types_of = fold(self, args, kws)
            ours = self.py_func.__module__.startswith("accel.cpu.")
            return signature, tuple(map(types.unliteral, types_of)) if ours else types_of

        changed: dict[str, Any] = {
            "create_cfunc_wrapper": wrap_kernel,
            "create_cpython_wrapper": lambda *_, **__: None,
            "get_executable": lambda *_: {}.popitem,  # of each its own, and if Python calls it, it raises
        }
        vars(context).update(changed)
        codegen._library_class, compiler.fold_argument_types = _Part, fold_constants
        try:
            yield
        finally:
            compiler.fold_argument_types = fold
            del codegen._library_class
            for name in changed:
                del vars(context)[name]
