"""The commands that train: `fit fastforward`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from thresher.cli import options, show

app = typer.Typer(help="Train what a method must learn.", no_args_is_help=True)


@app.callback()
def fit() -> None:
    """Train what a method must learn."""


@app.command()
def fastforward(
    model: options.ModelName,
    out: Annotated[Path, typer.Option(metavar="FILE", help="The safetensors file to write.")],
    data: Annotated[
        list[Path] | None,
        typer.Option(help="Text files, folders or JSON Lines; may be given again. By default, text from packages."),
    ] = None,
    density: Annotated[float, typer.Option(help="Share of the neurons to train for.")] = 0.5,
    tokens: Annotated[int, typer.Option(help="How much text is read; a tenth is held out.")] = 60_000,
    context: Annotated[int, typer.Option(help="Tokens per prompt.")] = 2048,
    steps: Annotated[int, typer.Option(help="Steps of Adam, for each of three trainings per layer.")] = 400,
    schedule: Annotated[
        str, typer.Option(help="How layers share the density: attention, as in the paper, or damage, as measured.")
    ] = "attention",
    tune: Annotated[
        int, typer.Option(help="Tokens of text to tune all layers on together, by what the whole model says.")
    ] = 0,
    tune_rate: Annotated[float, typer.Option(help="Adam's rate in tuning, as a share of each array's size.")] = 0.007,
    tune_predictors: Annotated[bool, typer.Option(help="Tune the predictors too, or compensators alone.")] = True,
    start: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Weights to tune on, instead of training the layers first.")
    ] = None,
    seed: Annotated[int, typer.Option(help="The same seed gives the same file.")] = 0,
    backend: options.Backend = "auto",
    jobs: Annotated[int, typer.Option(help="Layers trained at a time; -1 for one per core.")] = -1,
    joblib_backend: Annotated[str, typer.Option(help="loky, or dask or ray on a cluster.")] = "loky",
    json: options.Json = False,
) -> None:
    """Train FastForward's predictors and compensators for a model.

    What is done is kept in FILE.work: a run that was stopped goes on where it was.
    """
    from thresher.fit import Progress
    from thresher.fit import fastforward as train

    with show.byte_progress() as download, show.fit_progress() as told:
        train(
            model,
            data or (),
            out=out,
            density=density,
            tokens=tokens,
            context=context,
            steps=steps,
            schedule=schedule,
            tune=tune,
            tune_rate=tune_rate,
            tune_predictors=tune_predictors,
            start=start,
            seed=seed,
            backend=backend,
            jobs=jobs,
            joblib_backend=joblib_backend,
            progress=Progress(download, _tell_disk, *told),
        )
    if json:
        show.emit_json(_facts(out))
    else:
        print(f"{out}, {show.size(out.stat().st_size)}: use it with --ffn fastforward:weights={out}", file=sys.stderr)


def _tell_disk(size: int, folder: Path) -> None:
    print(f"The inputs of all layers take {show.size(size)} in {folder}, until it is done.", file=sys.stderr)


def _facts(out: Path) -> dict[str, Any]:
    from loaders.tensors import TensorFile

    return {"file": str(out), "bytes": out.stat().st_size, **TensorFile(out).metadata}
