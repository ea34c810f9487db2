"""The commands about models and methods: `pull`, `info`, `convert`, `methods`."""

from __future__ import annotations

import sys
from dataclasses import MISSING, fields
from pathlib import Path
from typing import Annotated

import typer

from thresher.cli import options, show


def pull(
    model: Annotated[str, typer.Argument(metavar="NAME", help="A known model; without one, all are listed.")] = "",
    json: options.Json = False,
) -> None:
    """Fetch a known model, once; an interrupted fetch goes on where it stopped."""
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

    rows = [
        {"name": e.name, "pulled": catalogue.is_pulled(e.name), "bytes": e.download_bytes, "licence": e.licence}
        for e in catalogue.models()
    ]
    if json:
        show.emit_json(rows)
    else:
        show.table(
            [
                (row["name"], f"{'pulled' if row['pulled'] else show.size(row['bytes'])}, {row['licence']}")
                for row in rows
            ]
        )


def info(model: options.ModelName, dtype: options.Dtype = "float32", json: options.Json = False) -> None:
    """Show what a model is: family, shapes, parameters, bytes per part, cache bytes per token, positions."""
    from thresher.info import describe

    facts = describe(model, dtype)
    if json:
        show.emit_json(facts)
        return
    rows = [
        (name.replace("_", " "), f"{value:,}" if isinstance(value, int) else str(value))
        for name, value in facts.items()
        if name != "bytes"
    ]
    show.table(rows + [(f"bytes of {part}", show.size(count)) for part, count in facts["bytes"].items()])


def methods(json: options.Json = False) -> None:
    """List every method with its parameters, defaults and source."""
    from thresher.methods import METHODS

    listing = [
        {
            "part": part,
            "name": name,
            "summary": " ".join((cls.__doc__ or "").split("\n\n")[0].split()),
            "parameters": {f.name: None if f.default is MISSING else f.default for f in fields(cls)},
            "required": [f.name for f in fields(cls) if f.default is MISSING],
        }
        for part, known in METHODS.items()
        for name, cls in known.items()
    ]
    if json:
        show.emit_json(listing)
        return
    for method in listing:
        print(f"--{method['part']} {method['name']}\n    {method['summary']}")
        for name, default in method["parameters"].items():
            print(f"    {name}" + (" (required)" if name in method["required"] else f" = {default}"))
        print()


def convert(
    gguf: Annotated[Path, typer.Argument(help="A GGUF file.")],
    directory: Annotated[Path, typer.Argument(help="The Hugging Face directory to write; must not exist.")],
    dtype: options.Dtype = "float32",
) -> None:
    """Write a GGUF file as a Hugging Face directory."""
    from loaders.gguf import convert as convert_gguf

    convert_gguf(gguf, directory, dtype=dtype)
    print(f"Wrote {directory}", file=sys.stderr)
