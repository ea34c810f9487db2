"""The commands that tell what a method costs in quality: `eval`, `plot`, `show`."""

from __future__ import annotations

from pathlib import Path
from textwrap import shorten
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
    jobs: options.Jobs = 1,
    joblib_backend: options.JoblibBackend = "loky",
    scheduler: options.Scheduler = None,
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


def advise(
    model: options.ModelName,
    file: Annotated[Path, typer.Option("-f", "--file", help="The text to read; - for standard input.")],
    prompt: Annotated[list[str], typer.Option("-p", "--prompt", help="What is asked of it; may be given again.")],
    methods: Annotated[
        str, typer.Option(help='Without budgets, separated by ";": "quoka; keydiff; quoka + keydiff".')
    ] = "quoka; keydiff; snapkv; caote:base=h2o",
    max_new_tokens: options.MaxNewTokens = 64,
    chunk: options.Chunk = 128,
    backend: options.Backend = "auto",
    dtype: options.Dtype = "float32",
    json: options.Json = False,
) -> None:
    """Find the smallest budget of each method that still answers as dense does, on your own text.

    Budgets from 75 % of the text down to 6.25 % are tried, until an answer changes.
    """
    from thresher.evaluation.advice import advise as find
    from thresher.model import load

    text = console.read(file)
    llm = load(model, backend=backend, dtype=dtype)
    with show.cell_progress() as progress:
        dense, found = find(
            llm, text, prompt, methods=methods.split(";"), max_new_tokens=max_new_tokens, chunk=chunk, progress=progress
        )
    if json:
        show.emit_json(
            {
                "dense": _reading(dense),
                "methods": [
                    {"method": each.method, "smallest": _reading(each.smallest), "failed": _reading(each.failed)}
                    for each in found
                ],
            }
        )
        return
    for question, answer in zip(prompt, dense.answers, strict=True):
        print(f"{question}\n    {_line(answer)}\n")
    rows = [["dense", "", *_costs(dense, dense)]]
    for each in found:
        budget = "none" if each.smallest is None else f"{each.smallest.share:.4g}"
        rows.append([each.method, budget, *(["", "", ""] if each.smallest is None else _costs(each.smallest, dense))])
    show.columns(["", "budget", "keys read", "cache", "first token"], rows)
    print("\nA budget is a share of the text, the smallest tried whose answers are those above, word for word.")
    for each in found:
        if each.failed is not None:
            changed = next(new for new, old in zip(each.failed.answers, dense.answers, strict=True) if new != old)
            print(f"{each.method} at {each.failed.share:.4g}: {_line(changed)}")


def _line(answer: str) -> str:
    """An answer in one line, cut where it is long."""
    return shorten(answer, 100, placeholder=" …")


def _reading(reading: Any) -> dict[str, Any] | None:
    return reading and {**vars(reading), "policy": reading.policy.specs}


def _costs(reading: Any, dense: Any) -> list[str]:
    read = f"{reading.keys_read / dense.keys_read:.0%}"
    return [read, show.size(reading.cache_bytes), f"{reading.first_token:.2f} s"]


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
