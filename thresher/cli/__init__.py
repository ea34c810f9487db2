"""The `thresher` command. Each command is a file; this one puts them together and turns errors into one line."""

from __future__ import annotations

import os
import sys

import typer

from thresher.cli import catalogue, talk

app = typer.Typer(
    help="Long-context language-model inference made cheap, and proved to stay right.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
for command in (
    catalogue.pull,
    talk.generate,
    talk.chat,
    catalogue.info,
    catalogue.methods,
    catalogue.convert,
    talk.demo,
):
    app.command()(command)


def main() -> None:
    """Run the command; a user's mistake is one line on standard error and exit status 1, Ctrl-C is status 130."""
    try:
        app()
    except (ValueError, OSError) as error:
        if isinstance(error, BrokenPipeError):  # the reader of a pipe has seen enough
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            sys.exit(1)
        print(f"thresher: {' '.join(str(error).split())}", file=sys.stderr)
        sys.exit(1)
    except KeyboardInterrupt:
        print("\nthresher: stopped", file=sys.stderr)
        sys.exit(130)
