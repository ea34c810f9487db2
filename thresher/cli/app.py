"""Puts the commands together. Each of them stands in a file of its own or with its like."""

from __future__ import annotations

import typer

from thresher.cli import answers, catalogue, evaluate, fit, kernels, measure, talk

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
    evaluate.eval,
    evaluate.plot,
    evaluate.advise,
    answers.ask,
    answers.solve,
    talk.demo,
)
for command in COMMANDS:
    app.command()(command)
app.command("show")(evaluate.show_page)
app.add_typer(answers.app, name="sources")
app.add_typer(fit.app, name="fit")
