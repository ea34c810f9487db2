"""The passes that Numba takes over a function of a kernel: those that such functions need, and each once.

Numba's own list serves all of Python that it knows: closures, generators, contexts, parallel loops. After each of its
passes it also works out anew where variables live, and keeps a record. That took a quarter of the time.
"""

from __future__ import annotations

from typing import Any

from numba.core.compiler import CompilerBase
from numba.core.compiler_machinery import PassManager
from numba.core.typed_passes import (
    NativeLowering,
    NoPythonBackend,
    NopythonTypeInference,
    PreLowerStripPhis,
)
from numba.core.untyped_passes import (
    FixupArgs,
    GenericRewrites,
    IRProcessing,
    ReconstructSSA,
    TranslateByteCode,
)

_PASSES = (
    TranslateByteCode, FixupArgs, IRProcessing, GenericRewrites, ReconstructSSA, NopythonTypeInference,
    PreLowerStripPhis, NativeLowering, NoPythonBackend,
)  # fmt: skip


class _Passes(PassManager):
    """Passes that follow one another, with nothing between them."""

    def _runPass(self, index: int, one: Any, state: Any) -> None:  # noqa: N802  (Numba's name)
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
