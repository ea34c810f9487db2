"""The commands about kernels: `warmup`, `verify`."""

from __future__ import annotations

import sys
from types import ModuleType
from typing import TYPE_CHECKING, Annotated

import typer

from thresher.cli import options, show

if TYPE_CHECKING:
    from thresher.verify import Result


def warmup(backend: options.Backend = "auto") -> None:
    """Compile all kernels ahead; they are kept on disk."""
    import accel

    count = compile_kernels(accel.backend(backend))
    print(f"{count} kernels are compiled." if count else "The reference compiles nothing.", file=sys.stderr)


def verify(
    backend: options.Backend = "auto",
    module: Annotated[
        str, typer.Option(metavar="NAME", help="Check this importable module instead, whatever it offers.")
    ] = "",
    function: Annotated[
        list[str] | None, typer.Option(metavar="NAME", help="Check this function alone; may be given again.")
    ] = None,
    seconds: Annotated[float | None, typer.Option(help="Draw new cases for so long, instead of one round.")] = None,
    json: options.Json = False,
) -> None:
    """Hold a backend's functions to the reference, on this machine."""
    import accel
    from reference.checks import one_of
    from thresher import verify as checks

    for name in function or []:
        one_of("function", name, checks.contract())
    if module:
        checked = checks.find_module(module)
    else:
        checked = accel.backend(backend)
        compile_kernels(checked)
    with show.check_progress() as progress:
        results = checks.verify(checked, seconds=seconds, names=function, progress=progress)
    if json:
        show.emit_json({"module": checked.__name__, "functions": [vars(result) for result in results]})
    else:
        show.columns(
            ["function", "cases", "worst error, of what is allowed", ""], [list(r) for r in checks.table(results)]
        )
    _tell_failures(results, json)


def _tell_failures(results: list[Result], json: bool) -> None:
    """Exit status 1 where a function failed, and, unless JSON has told it, how."""
    failed = [result for result in results if result.failure]
    for result in failed if not json else []:
        print(f"\n{result.name}: {result.failure}", file=sys.stderr)
    if failed:
        raise typer.Exit(1)


def compile_kernels(backend: ModuleType) -> int:
    """Compile what is not on disk yet, with a bar: no first call is a silent wait. Returns how many there are."""
    if not hasattr(backend, "warmup"):
        return 0
    with show.kernel_progress() as progress:
        count: int = backend.warmup(progress)
    return count
