"""The `thresher` command. Each command is a file; this one puts them together and turns errors into one line."""

from __future__ import annotations

import sys

import typer

from thresher.cli import catalogue, kernels, measure, talk

app = typer.Typer(
    help="Long-context language-model inference made cheap, and proved to stay right.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
COMMANDS = (
    catalogue.pull,
    talk.generate,
    talk.chat,
    catalogue.info,
    catalogue.methods,
    catalogue.convert,
    kernels.warmup,
    kernels.verify,
    measure.bench,
    talk.demo,
)
for command in COMMANDS:
    app.command()(command)


def main() -> None:
    """Run the command; a user's mistake is one line on standard error and exit status 1, Ctrl-C is status 130."""
    try:
        app()
    except (ValueError, OSError) as error:
        print(f"thresher: {' '.join(str(error).split())}", file=sys.stderr)
        sys.exit(1)
