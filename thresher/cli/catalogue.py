"""The commands about models and methods: `pull`, `info`, `convert`, `methods`."""

from __future__ import annotations

import sys
from dataclasses import MISSING, fields
from inspect import getdoc
from pathlib import Path
from textwrap import indent
from typing import Annotated

import typer

from thresher.cli import options, show


def pull(
    model: Annotated[str, typer.Argument(metavar="NAME", help="A known model; without one, all are listed.")] = "",
    json: options.Json = False,
) -> None:
    """Fetch a known model, once; list them without a name.

    An interrupted fetch goes on where it stopped.
    """
    from loaders import catalogue

    if not model:
        _list_models(json)
        return
    entry = catalogue.known(model)
    if not catalogue.is_pulled(model):
        print(f"Fetching {entry.name}, {show.size(entry.download_bytes)}. Licence: {entry.licence}", file=sys.stderr)
    with show.byte_progress() as progress:
        path = catalogue.pull(model, progress=progress)
    if json:
        show.emit_json({"name": model, "path": str(path), "sha256": entry.sha256})
    else:
        print(f"{model} is at {path}", file=sys.stderr)


def _list_models(json: bool) -> None:
    from loaders import catalogue

    entries = [(entry, catalogue.is_pulled(entry.name)) for entry in catalogue.models()]
    if json:
        show.emit_json(
            [{"name": e.name, "pulled": here, "bytes": e.download_bytes, "licence": e.licence} for e, here in entries]
        )
    else:
        show.table(
            [
                (e.name, f"{'pulled' if here else show.size(e.download_bytes)}, licence: {e.licence}")
                for e, here in entries
            ]
        )


def info(model: options.ModelName, dtype: options.Dtype = "float32", json: options.Json = False) -> None:
    """Show a model's shape, parameters and bytes."""
    from thresher.info import describe

    facts = describe(model, dtype)
    if json:
        show.emit_json(facts)
        return
    rows = [(name.replace("_", " "), show.word(value)) for name, value in facts.items() if name != "bytes"]
    show.table(rows + [(f"bytes of {part}", show.size(count)) for part, count in facts["bytes"].items()])


def methods(json: options.Json = False) -> None:
    """List every method, its parameters and source."""
    from reference.specs import METHODS

    known = [(part, name, cls, fields(cls)) for part, classes in METHODS.items() for name, cls in classes.items()]
    if json:
        show.emit_json(
            [
                {
                    "part": part,
                    "name": name,
                    "summary": " ".join((cls.__doc__ or "").split("\n\n")[0].split()),
                    "required": [f.name for f in parameters if f.default is MISSING],
                    "parameters": {f.name: None if f.default is MISSING else f.default for f in parameters},
                }
                for part, name, cls, parameters in known
            ]
        )
        return
    for part, name, cls, parameters in known:
        shown = [f.name if f.default is MISSING else f"{f.name}={show.word(f.default)}" for f in parameters]
        print(f"--{part} {name}:{','.join(shown)}\n")
        print(indent(getdoc(cls) or "", "    ") + "\n")


def convert(
    gguf: Annotated[Path, typer.Argument(help="A GGUF file.")],
    directory: Annotated[Path, typer.Argument(help="The Hugging Face directory to write; must not exist.")],
    dtype: options.Dtype = "float32",
) -> None:
    """Write a GGUF file as a Hugging Face directory."""
    from loaders.gguf import convert as convert_gguf

    convert_gguf(gguf, directory, dtype=dtype)
    print(f"Wrote {directory}", file=sys.stderr)
