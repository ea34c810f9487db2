"""The passes that Numba takes over a function of a kernel: those that such functions need, each once.

Numba's own list serves all of Python that it knows: closures, contexts, loops in parallel, branches that a constant
decides. After most of those passes it works out anew where variables live, and writes a record. Then it adds code that
counts references, although kernels own no memory. Together that took a third of its time.
"""

from __future__ import annotations

from typing import Any

from numba.core.compiler import CompilerBase
from numba.core.compiler_machinery import PassManager, register_pass
from numba.core.lowering import Lower
from numba.core.typed_passes import BaseNativeLowering, NoPythonBackend, NopythonTypeInference, PreLowerStripPhis
from numba.core.untyped_passes import FixupArgs, GenericRewrites, IRProcessing, ReconstructSSA, TranslateByteCode


class _Lower(Lower):
    """Statements as LLVM code. The passes end no variable's life, so that no reference is dropped either."""

    def incref(self, kind: Any, value: Any) -> None:
        """Nothing."""

    decref = incref


@register_pass(mutates_CFG=True, analysis_only=False)
class _Lowering(BaseNativeLowering):
    _name = "lowering"  # type: ignore[assignment]
    lowering_class = _Lower


_PASSES = (
    TranslateByteCode, FixupArgs, IRProcessing, GenericRewrites, ReconstructSSA, NopythonTypeInference,
    PreLowerStripPhis, _Lowering, NoPythonBackend,
)  # fmt: skip


class _Passes(PassManager):
    """Passes that follow one another, with nothing between them."""

    def _runPass(self, index: int, one: Any, state: Any) -> None:
        one.run_pass(state)


class Compiler(CompilerBase):
    """How Numba compiles a function of a kernel."""

    def define_pipelines(self) -> list[PassManager]:
        """The one list of passes."""
        passes = _Passes("kernel")
        for one in _PASSES:
            passes.add_pass(one, one.name())
        passes.finalize()
        return [passes]
