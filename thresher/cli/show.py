"""How the commands show things: results on standard output, progress on standard error and only on a terminal."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from thresher.cli import console
from thresher.sizes import size as size  # the commands' way of telling memory

ANY_WIDTH = 100_000  # of a line in a pipe or a file


def emit_json(answer: Any) -> None:
    """One JSON document on standard output, in ASCII where that cannot show everything."""
    print(json.dumps(answer, ensure_ascii=not console.shows_everything()))


def table(rows: list[tuple[str, str]]) -> None:
    """Two columns without a header."""
    _table(None, [list(row) for row in rows])


def columns(header: list[str], rows: list[list[str]]) -> None:
    """A table with a header."""
    _table(header, rows)


def _table(header: list[str] | None, rows: list[list[str]]) -> None:
    """Columns as wide as they must be; on a terminal that is narrower, cells are folded between words."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    grid = Table(box=None, show_header=header is not None, header_style="", pad_edge=False, padding=(0, 2, 0, 0))
    for name in header or rows[0]:
        grid.add_column(Text(name), overflow="fold")
    for row in rows:
        grid.add_row(*map(Text, row))
    console = Console(highlight=False, width=None if sys.stdout.isatty() else ANY_WIDTH)
    with console.capture() as captured:
        console.print(grid)
    print("\n".join(line.rstrip() for line in captured.get().split("\n")), end="")


def word(value: Any) -> str:
    """A value as the command line spells it, whole numbers with separators."""
    if value is None or isinstance(value, bool):
        return str(value).lower()
    return f"{value:,}" if isinstance(value, int) else str(value)


@contextmanager
def _bar(*columns: Any) -> Iterator[Any]:
    """A rich progress bar on standard error that vanishes when it is done, or None in a pipe."""
    if not sys.stderr.isatty():
        yield None
        return
    from rich.console import Console
    from rich.progress import Progress

    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        yield bar


@contextmanager
def token_progress(total: int) -> Iterator[Callable[[int], None]]:
    """A bar that counts the tokens of a prompt."""
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn

    columns = TextColumn("Reading"), BarColumn(), MofNCompleteColumn(), TextColumn("tokens"), TimeRemainingColumn()
    with _bar(*columns) as bar:
        task = bar and bar.add_task("", total=total)

        def advance(done: int) -> None:
            if bar:
                bar.advance(task, done)
                if bar.finished:
                    bar.stop()  # before the first piece of text is printed

        yield advance


@contextmanager
def byte_progress() -> Iterator[Callable[[int, int, str], None]]:
    """Bars for transfers: call it with bytes done, bytes in all, and what is being done."""
    from rich.progress import BarColumn, DownloadColumn, TextColumn, TimeRemainingColumn, TransferSpeedColumn

    label = TextColumn("{task.description}")
    with _bar(label, BarColumn(), DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn()) as bar:
        tasks: dict[str, Any] = {}

        def update(done: int, total: int, what: str) -> None:
            if bar:
                if what not in tasks:
                    tasks[what] = bar.add_task(what, total=total)
                bar.update(tasks[what], completed=done, total=total)

        yield update


@contextmanager
def cell_progress() -> Iterator[Callable[[int, int], None]]:
    """A bar that counts the cells of an evaluation: call it with those done and all of them."""
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn

    columns = TextColumn("Evaluating"), BarColumn(), MofNCompleteColumn(), TextColumn("cells"), TimeRemainingColumn()
    with _bar(*columns) as bar:
        task = bar and bar.add_task("", total=None)

        def update(done: int, total: int) -> None:
            if bar:
                bar.update(task, completed=done, total=total)

        yield update


@contextmanager
def fit_progress() -> Iterator[tuple[Callable[..., None], ...]]:
    """A bar for the tokens read, one for layers whose damage is measured, one for layers trained, which says what came
    of each, and one for the tokens tuned on."""
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn

    columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()
    with _bar(*columns) as bar:
        tasks: dict[str, Any] = {}

        def update(kind: str, done: int, total: int, description: str) -> None:
            if bar:
                if kind not in tasks:
                    tasks[kind] = bar.add_task(description, total=total)
                bar.update(tasks[kind], completed=done, total=total, description=description)

        def layer(done: int, total: int, told: dict[str, Any]) -> None:
            losses = told["losses"]
            update(
                "layers",
                done,
                total,
                f"Layer {told['layer']}: loss {losses['predictor'][0]:.2f} to {min(losses['predictor']):.3f}, "
                f"{told['overlap']:.0%} of the oracle's neurons, "
                f"{min(losses['predicted_masks']):.0%} of the error left",
            )

        def tokens(done: int, total: int) -> None:
            update("tokens", done, total, "Reading tokens")

        def damage(done: int, total: int) -> None:
            update("damage", done, total, "Thinning one layer at a time")

        def tuned(done: int, total: int, divergence: float) -> None:
            update("tuned", done, total, f"Tuning together: divergence {divergence:.3f}")

        yield tokens, damage, layer, tuned


@contextmanager
def check_progress() -> Iterator[Callable[[Any], None]]:
    """A line that names the function last checked, the cases so far, and how many failed."""
    from rich.progress import SpinnerColumn, TextColumn

    cases, failed = {}, set()
    with _bar(SpinnerColumn(), TextColumn("{task.description}")) as bar:
        task = bar and bar.add_task("Checking", total=None)

        def update(result: Any) -> None:
            cases[result.name] = result.examples
            if result.failure:
                failed.add(result.name)
            if bar:
                told = f"{result.name}: {sum(cases.values()):,} cases, {len(failed)} functions failed"
                bar.update(task, description=told)

        yield update
