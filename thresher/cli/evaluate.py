"""The commands that tell what a method costs in quality: `eval`, `plot`, `show`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from thresher.cli import console, options, show


def eval(
    model: options.ModelName,
    out: Annotated[
        Path, typer.Option(metavar="DIR", help="The folder of the run; one that was interrupted goes on there.")
    ],
    tasks: Annotated[
        str,
        typer.Option(
            help="niah, ruler, qasper, math500, gsm8k, longbench, perplexity, agreement; ruler/vt is one of ruler's."
        ),
    ] = "niah",
    methods: Annotated[
        str, typer.Option(help='Separated by ";": "dense; quoka:budget=1024; quoka:budget=0.25 + keydiff:budget=0.5".')
    ] = "dense; quoka:budget=0.25; keydiff:budget=0.5",
    lengths: Annotated[str, typer.Option(help="Tokens of a prompt and its answer.")] = "2048",
    limit: Annotated[int, typer.Option(help="Documents per task and length.")] = 10,
    seed: Annotated[int, typer.Option(help="Which documents, and what is hidden in them.")] = 0,
    questions: Annotated[
        str, typer.Option(help="known: asked with the document, in one prompt; after: of a state that was kept.")
    ] = "known,after",
    data: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Files that no package has: LongBench's, HotpotQA's.")
    ] = None,
    chunk: options.Chunk = 128,
    backend: options.Backend = "auto",
    dtype: options.Dtype = "float32",
    jobs: Annotated[int, typer.Option(help="Processes that work at a time, each with a model of its own.")] = 1,
    joblib_backend: Annotated[str, typer.Option(help="loky for this machine; dask or ray for a cluster.")] = "loky",
    scheduler: Annotated[str | None, typer.Option(metavar="ADDRESS", help="Dask's scheduler.")] = None,
    json: options.Json = False,
) -> None:
    """Measure what each method costs in quality, on any model."""
    from thresher.evaluation.run import evaluate

    with show.cell_progress() as progress:
        groups = evaluate(
            model,
            tasks=_names(tasks),
            methods=methods,
            out=out,
            lengths=[_number(text) for text in _names(lengths)],
            limit=limit,
            seed=seed,
            questions=_names(questions),
            data=data,
            backend=backend,
            dtype=dtype,
            chunk=chunk,
            jobs=jobs,
            joblib_backend=joblib_backend,
            scheduler=scheduler,
            progress=progress,
        )
    if json:
        show.emit_json({"out": str(out), "groups": groups})
        return
    header = [
        "task",
        "tokens",
        "question",
        "method",
        "score",
        "95 %",
        "change",
        "n",
        "keys read",
        "cache",
        "first token",
    ]
    show.columns(header, [_row(group) for group in groups])


def plot(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="The folder of a run.")], json: options.Json = False
) -> None:
    """Draw a run: the needle grid, score against budget, time and cache (extra: plot)."""
    from thresher.evaluation.plots import plot as draw

    files = [str(path) for path in draw(folder)]
    if json:
        show.emit_json({"files": files})
    else:
        print("\n".join(files))


def show_page(
    model: options.ModelName,
    file: Annotated[Path, typer.Option("-f", "--file", help="The text to read; - for standard input.")],
    prompt: Annotated[str, typer.Option("-p", "--prompt", help="What is asked of it.")],
    out: Annotated[Path, typer.Option(metavar="PAGE", help="The page to write.")] = Path("show.html"),
    select: options.Select = "",
    evict: options.Evict = "",
    max_new_tokens: options.MaxNewTokens = 64,
    chunk: options.Chunk = 128,
    backend: options.Backend = "auto",
    dtype: options.Dtype = "float32",
) -> None:
    """Write one web page of what a policy keeps and reads of a text."""
    from thresher.model import load
    from thresher.show import page

    text, policy = console.read(file), options.policy(select, evict, "")
    llm = load(model, backend=backend, dtype=dtype)
    with show.token_progress(len(llm.encode(text))) as progress:
        page(
            llm,
            text,
            f"\n\n{prompt}",
            policy,
            out,
            chunk=chunk,
            max_new_tokens=max_new_tokens,
            progress=progress,
        )
    print(out)


def _names(text: str) -> list[str]:
    return [name.strip() for name in text.split(",") if name.strip()]


def _number(text: str) -> int:
    try:
        return int(text)
    except ValueError:
        raise ValueError(f"lengths: got {text!r}, wanted whole numbers such as 4096,8192") from None


def _row(group: dict[str, Any]) -> list[str]:
    start = [group["task"], f"{group['length']:,}", group["question"], group["method"]]
    if "perplexity" in group:
        return [*start, f"{group['perplexity']['all']:.2f}", "", "", str(group["n"]), "", "", ""]
    time, change = group.get("time_to_first_token"), group.get("difference")
    return [
        *start,
        f"{group['score']:.1%}",
        f"{group['low']:.0%} to {group['high']:.0%}",
        ""
        if change is None
        else f"{100 * change['mean']:+.1f} ({100 * change['low']:+.0f} to {100 * change['high']:+.0f})",
        str(group["n"]),
        f"{group['share_of_keys_read']:.0%}",
        show.size(group["cache_bytes"]),
        "" if time is None else f"{time:.2f} s",
    ]
