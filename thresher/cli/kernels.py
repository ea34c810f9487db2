"""The commands about kernels: `warmup`, `verify`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from thresher.cli import options, show

if TYPE_CHECKING:
    from thresher.verify import Result


def warmup(backend: options.Backend = "auto") -> None:
    """Compile all kernels ahead; they are kept on disk."""
    import accel
    from thresher.kernels import compile_kernels

    found = accel.backend(backend)
    count = compile_kernels(found)
    nothing = "compiles each kernel when it is first used." if hasattr(found, "tell_compiling") else "compiles nothing."
    print(f"{count} kernels are compiled." if count else f"{found.__name__} {nothing}", file=sys.stderr)


def verify(
    backend: Annotated[
        str, typer.Option(help="A backend's name, a Python file, or any module: whatever it offers is checked.")
    ] = "auto",
    function: Annotated[
        list[str] | None, typer.Option(metavar="NAME", help="Check this function alone; may be given again.")
    ] = None,
    seconds: Annotated[float | None, typer.Option(help="Draw new cases for so long, instead of one round.")] = None,
    save: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Write the case of every failure to a file in this directory.")
    ] = None,
    replay: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Check nothing but the case that --save wrote to this file.")
    ] = None,
    new: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Check nothing, but write a folder of kernels to start from.")
    ] = None,
    json: options.Json = False,
) -> None:
    """Hold a backend's functions to the reference, on this machine."""
    if new is not None:
        from thresher.verify.template import start

        print(f"{start(new)} is written; its README.md tells what to do next", file=sys.stderr)
        return
    from reference.checks import one_of
    from thresher import verify as checks
    from thresher.kernels import compile_kernels
    from thresher.verify import files

    for name in function or []:
        one_of("function", name, checks.contract())
    checked = files.find_module(backend)
    if replay is not None:
        results = checks.replay(checked, replay)
    else:
        compile_kernels(checked)
        with show.check_progress() as progress:
            results = checks.verify(checked, seconds=seconds, names=function, progress=progress)
    failed = [result for result in results if result.failure]
    saved = {}
    for result in failed:
        if save is not None and replay is None and result.case is not None:
            saved[result.name] = save / f"{result.name}.npz"
            files.save_case(saved[result.name], result.name, result.case)
    if json:
        show.emit_json({"module": checked.__name__, "functions": [_as_dict(r, saved) for r in results]})
    else:
        show.columns(
            ["function", "cases", "worst error, of what is allowed", ""], [list(r) for r in checks.table(results)]
        )
        for result in failed:
            print(f"\n{result.name}: {result.failure}", file=sys.stderr)
            if result.name in saved:
                print(f"  saved: thresher verify --backend {backend} --replay {saved[result.name]}", file=sys.stderr)
    if failed:
        raise typer.Exit(1)


def _as_dict(result: Result, saved: dict[str, Path]) -> dict[str, object]:
    """A result for JSON; its case stands in the failure, and in the file where it was saved."""
    told = {name: value for name, value in vars(result).items() if name != "case"}
    return told | ({"saved": str(saved[result.name])} if result.name in saved else {})
