"""The commands that answer from several sources, or in several ways: `ask`, `sources estimate`, `solve`."""

from __future__ import annotations

from pathlib import Path
from textwrap import shorten
from typing import TYPE_CHECKING, Annotated

import typer

from thresher.cli import console, options, show

if TYPE_CHECKING:
    from thresher.answers.reader import Cost
    from thresher.answers.work import Reading

STATES_GB = 4.0
Top = Annotated[int, typer.Option(help="Passages that are read of a source for a question.")]
Threshold = Annotated[
    float | None,
    typer.Option(help="An answer with less support, 0 to 1, does not count: 0.95 by default, 0.1 with --nli."),
]
States = Annotated[
    Path | None, typer.Option(metavar="DIR", help="Where states are kept; by default in the user's cache.")
]
StatesGb = Annotated[float, typer.Option(help="Gigabytes that they may take; 0 keeps none.")]
NliModel = Annotated[
    str | None,
    typer.Option("--nli", metavar="NAME", help="A model of entailment for support and sameness (extra: nli)."),
]
app = typer.Typer(help="Folders of texts that answers come from.", no_args_is_help=True)


@app.callback()
def sources() -> None:
    """Folders of texts that answers come from."""


@app.command()
def estimate(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="A folder with a folder of texts for each source.")],
    queries: Annotated[Path, typer.Option(metavar="FILE", help="Questions, one a line; nobody need know the answers.")],
    out: Annotated[Path, typer.Option(metavar="FILE", help="The JSON file of weights to write.")],
    model: Annotated[str, typer.Option(help="Which model reads.")] = "smollm2-135m-instruct",
    run: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Keeps what each source said; a run that was interrupted goes on there."),
    ] = None,
    top: Top = 3,
    threshold: Threshold = None,
    nli: NliModel = None,
    max_new_tokens: options.MaxNewTokens = 24,
    select: options.Select = "",
    evict: options.Evict = "",
    ffn: options.Ffn = "",
    states: States = None,
    states_gb: StatesGb = STATES_GB,
    seed: Annotated[int, typer.Option(help="Of the noise that breaks ties.")] = 0,
    chunk: options.Chunk = 128,
    backend: options.Backend = "auto",
    dtype: options.Dtype = "float32",
    jobs: options.Jobs = 1,
    joblib_backend: options.JoblibBackend = "loky",
    scheduler: options.Scheduler = None,
    json: options.Json = False,
) -> None:
    """Estimate how reliable each source is, from its agreement with the others."""
    from thresher.answers import panel, work

    asked = panel.read_queries(console.read(queries), str(queries))
    reading = _reading(
        (model, backend, dtype), (select, evict, ffn), (states, states_gb), nli, top, threshold, max_new_tokens, chunk
    )
    where = work.Jobs(jobs, joblib_backend, scheduler)
    with show.cell_progress() as progress:
        weights, cost = work.estimate(reading, folder, asked, out=run, jobs=where, seed=seed, progress=progress)
    panel.save_weights(out, weights, len(asked))
    if json:
        show.emit_json({"out": str(out), "queries": len(asked), "weights": weights, "cost": vars(cost)})
        return
    ordered = sorted(weights.items(), key=lambda item: -item[1])
    show.columns(["source", "weight"], [[name, f"{weight:.3f}"] for name, weight in ordered])
    print(_costs(cost))


def ask(
    model: options.ModelName,
    sources: Annotated[Path, typer.Option(metavar="DIR", help="A folder with a folder of texts for each source.")],
    prompt: Annotated[str, typer.Option("-p", "--prompt", help="The question.")],
    weights: Annotated[
        Path | None, typer.Option(metavar="FILE", help="What `thresher sources estimate` wrote; without, all count 1.")
    ] = None,
    kappa: Annotated[int, typer.Option(help="Answers that are looked for, the most reliable source first.")] = 4,
    top: Top = 3,
    threshold: Threshold = None,
    nli: NliModel = None,
    max_new_tokens: options.MaxNewTokens = 24,
    select: options.Select = "",
    evict: options.Evict = "",
    ffn: options.Ffn = "",
    states: States = None,
    states_gb: StatesGb = STATES_GB,
    seed: Annotated[int, typer.Option(help="Of the noise that breaks ties.")] = 0,
    chunk: options.Chunk = 128,
    backend: options.Backend = "auto",
    dtype: options.Dtype = "float32",
    json: options.Json = False,
) -> None:
    """Answer a question from several sources, each read by itself, by a vote of the most reliable."""
    from thresher.answers import panel
    from thresher.answers.sources import read_sources

    found = read_sources(sources)
    given = panel.weights_for(found, weights)
    reader, same = _reading(
        (model, backend, dtype), (select, evict, ffn), (states, states_gb), nli, top, threshold, max_new_tokens, chunk
    ).reader()
    verdict = panel.ask(found, prompt, reader, same, weights=given, kappa=kappa, seed=seed)
    if json:
        show.emit_json({**verdict.as_dict(), "cost": vars(reader.cost)})
        return
    print("I don't know." if verdict.answer is None else verdict.answer, end="\n\n")
    rows = [
        [name, f"{verdict.weights[name]:.3f}", shorten(each.text or f"({each.why})", 80, placeholder=" …")]
        for name, each in verdict.said.items()
    ]
    show.columns(["source", "weight", "said"], rows)
    for why in dict.fromkeys(verdict.not_read.values()):
        names = [name for name, each in verdict.not_read.items() if each == why]
        print(f"\n{len(names)} not read, since {why}: {shorten(', '.join(names), 80, placeholder=' …')}")
    print(_costs(reader.cost))


def solve(
    model: options.ModelName,
    problems: Annotated[
        str,
        typer.Option(metavar="NAME", help='gsm8k, math500, or a file of lines {"problem": …, "answer": …}.'),
    ],
    methods: Annotated[str, typer.Option(help="Of text, code and cumulative.")] = "text,code,cumulative",
    runs: Annotated[int, typer.Option(metavar="K", help="Runs of each method on each problem.")] = 6,
    limit: Annotated[int, typer.Option(help="How many problems.")] = 100,
    temperature: Annotated[float, typer.Option(help="Of every run.")] = 0.7,
    max_new_tokens: options.MaxNewTokens = 320,
    select: options.Select = "",
    evict: options.Evict = "",
    ffn: options.Ffn = "",
    seed: Annotated[int, typer.Option(help="Which problems, and what is drawn.")] = 0,
    out: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Keeps every answer; a run that was interrupted goes on there.")
    ] = None,
    chunk: options.Chunk = 128,
    backend: options.Backend = "auto",
    dtype: options.Dtype = "float32",
    jobs: options.Jobs = 1,
    joblib_backend: options.JoblibBackend = "loky",
    scheduler: options.Scheduler = None,
    json: options.Json = False,
) -> None:
    """Solve problems in several ways, again and again: what each way covers, what their mix saves, what a vote says."""
    from thresher.answers import work
    from thresher.answers.coverage import MIX
    from thresher.answers.problems import read_problems
    from thresher.evaluation.cells import Engine

    where, found = work.Jobs(jobs, joblib_backend, scheduler), read_problems(problems, limit, seed)
    with show.cell_progress() as progress:
        told = work.solve(
            Engine.of(model, backend, dtype, chunk),
            found,
            [name.strip() for name in methods.split(",") if name.strip()],
            policy=options.policy(select, evict, ffn),
            runs=runs,
            temperature=temperature,
            max_new_tokens=max_new_tokens,
            seed=seed,
            out=out,
            jobs=where,
            progress=progress,
        )
    if json:
        show.emit_json(told)
        return
    rows = []
    for name, each in told["methods"].items():
        saved = "" if name == MIX else "none"
        if each.get("saved") is not None:
            saved = f"{each['saved']:.0%}, at run {each['reached']}"
        rows.append(
            [name, *(_share(figure) for figure in (each["pass"][0], each["pass"][-1], each["majority"])), saved]
        )
    show.columns(["", "pass@1", f"pass@{runs}", "majority", "runs that the mix saves"], rows)
    print(
        f"\n{len(found)} problems, {runs} runs of each method; the mix takes {runs} in all, in the order of "
        f"{', '.join(told['order'])}. Brackets: 95 % over the problems."
    )


def _share(figure: dict[str, float]) -> str:
    return f"{figure['mean']:.1%} ({figure['low']:.0%} to {figure['high']:.0%})"


def _reading(
    model: tuple[str, str, str],
    methods: tuple[str, str, str],
    states: tuple[Path | None, float],
    nli: str | None,
    top: int,
    threshold: float | None,
    max_new_tokens: int,
    chunk: int,
) -> Reading:
    """What the options spell. model: with backend and dtype. methods: of the policy. states: where they are kept, and
    gigabytes."""
    from loaders.catalogue import cache_folder
    from thresher.answers.work import Reading
    from thresher.evaluation.cells import Engine

    name, backend, dtype = model
    folder, gigabytes = states
    if not 0 <= gigabytes < float("inf"):
        raise ValueError(f"states_gb: got {gigabytes}, wanted a finite number of at least 0")
    return Reading(
        Engine.of(name, backend, dtype, chunk),
        options.policy(*methods),
        (str(folder or cache_folder("states")), int(gigabytes * 1e9)) if gigabytes else None,
        nli=nli,
        top=top,
        threshold=threshold,
        max_new_tokens=max_new_tokens,
    )


def _costs(cost: Cost) -> str:
    return f"\n{cost.read:,} tokens read, {cost.kept:,} more from kept states, {cost.written:,} written"
