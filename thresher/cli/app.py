"""Puts the commands together. Each of them stands in a file of its own or with its like."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Annotated, Any

import typer

from thresher.cli import (
    catalogue,
    chat,
    console,
    demo,
    evaluate,
    fit,
    generate,
    kernels,
    measure,
    serve,
    settings,
    sources,
    words,
)

app = typer.Typer(
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)
COMMANDS = (
    catalogue.pull,
    catalogue.list_models,
    catalogue.remove,
    generate.generate,
    generate.read,
    chat.chat,
    serve.serve,
    catalogue.info,
    catalogue.methods,
    catalogue.convert,
    kernels.warmup,
    kernels.verify,
    measure.bench,
    evaluate.eval,
    evaluate.plot,
    evaluate.show_page,
    evaluate.advise,
    sources.ask,
    sources.solve,
    demo.demo,
)
NAMES = {"list_models": "list", "show_page": "show"}  # commands called like something that their files need
UsageError: Any = typer.BadParameter.__mro__[1]  # the parser's error for any mistake of usage
LEVELS = ("debug", "info", "warning", "error")
for command in COMMANDS:
    app.command(NAMES.get(command.__name__, command.__name__))(command)
app.add_typer(sources.app, name="sources")
app.add_typer(fit.app, name="fit")


def _version(asked: bool) -> None:
    if asked:
        from importlib.metadata import version

        print(f"thresher {version('thresher')}")
        raise typer.Exit


def _log_level(level: str) -> str:
    if level not in LEVELS:
        raise typer.BadParameter(f"'{level}' is not one of {', '.join(LEVELS)}")
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter("thresher: %(message)s"))
    ours = logging.getLogger("thresher")
    ours.handlers, ours.propagate = [handler], False
    ours.setLevel(level.upper())
    return level


@app.callback()
def thresher(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version and exit.")
    ] = False,
    log_level: Annotated[
        str, typer.Option(callback=_log_level, help="What is told on the way: debug, info, warning, error.")
    ] = "warning",
) -> None:
    """Long-context language-model inference made cheap, and checked against an exact reference."""


def run() -> int:
    """Run the command that was typed; returns its exit status."""
    root: Any = typer.main.get_command(app)
    words.TYPED.update(_typed_names(root))
    parameters = {name: [each.name for each in found.params] for name, found in root.commands.items()}
    try:
        defaults = settings.defaults(parameters, Path.cwd())
        return int(root.main(prog_name="thresher", standalone_mode=False, default_map=defaults) or 0)
    except typer.Abort:
        return 130
    except UsageError as error:
        told = error.format_message()
        if "\n" in told:  # the help, where a command was called without words
            print(told)
        else:
            place = error.ctx.command_path if error.ctx else "thresher"
            console.tell(f"{told if told[-1] in '.?' else f'{told}.'} `{place} --help` tells more.")
        return 2


def _typed_names(root: Any) -> dict[str, str]:
    """How the parameters of all commands are typed."""
    groups = [root]
    found: dict[str, str] = {}
    for group in groups:
        for each in group.commands.values():
            groups += [each] if hasattr(each, "commands") else []
            for parameter in each.params:
                long = [text for text in parameter.opts if text.startswith("--")]
                found.setdefault(parameter.name, long[0] if long else parameter.name.upper())
    return found
