"""Make the site's source from the pages: `python -m docs.prepare FOLDER`.

Everything in docs/ is copied to the folder. A chapter becomes a notebook in MyST Markdown, which Sphinx executes, and
with jupytext a notebook file beside it, `notebooks/NAME.ipynb`. A block fenced as `python real` is not executed, since
it needs the weights of a model. The tests run all of them.
"""

from __future__ import annotations

import inspect
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import reference
from docs.chapters import CHAPTERS, FENCE

DOCS = Path(__file__).parent
HEADER = "---\nfile_format: mystnb\nkernelspec:\n  name: python3\n  display_name: Python 3\n---\n\n"
SOLUTION = re.compile(r"^<details>(.*?)^</details>\n", re.MULTILINE | re.DOTALL)
TAGS = {" real": "skip-execution", " picture": "hide-input"}  # of a cell, by the word behind `python`
INSIDE = r"(?:(?!```).*\n)*"
PRINTED = re.compile(rf"(^```python\n{INSIDE}```\n)\n```text\n{INSIDE}```\n", re.MULTILINE)
IMAGE = re.compile(r"^!\[[^]]*\]\(pictures/.*\)\n", re.MULTILINE)
OUTSIDE = re.compile(r"\[([^]]+)\]\(\.\./([^)]+)\)")  # links that leave docs/


def notebook(text: str) -> str:
    """A chapter as a MyST notebook: its blocks are cells, and pictures and printed text come from running them."""
    text = PRINTED.sub(r"\1", IMAGE.sub("", text))
    text = SOLUTION.sub(lambda found: folded(found[1]), text)
    return HEADER + FENCE.sub(lambda found: cell(found[2], TAGS.get(found[1], "")), text)


def folded(solution: str) -> str:
    """A solution whose words are folded away in one cell and whose code is hidden in the next.

    What a Markdown cell opens it must close, so the words end before the code.
    """
    words, *code = re.split(r"^(?=```python)", solution, maxsplit=1, flags=re.MULTILINE)
    hidden = FENCE.sub(lambda found: cell(found[2], "hide-input"), "".join(code))
    return f"<details>{words.rstrip()}\n\n</details>\n\n{hidden}"


def cell(code: str, tag: str) -> str:
    """A code cell of MyST Markdown."""
    return f"```{{code-cell}} ipython3\n{f':tags: [{tag}]' if tag else ''}\n{code}```"


def inside(text: str) -> str:
    """Links to files of `reference` lead to their documentation, and other links out of docs/ are only named."""

    def replaced(found: re.Match[str]) -> str:
        module = re.fullmatch(r"(reference/\w+)\.py", found[2])
        return f"{{py:mod}}`{found[1]} <{module[1].replace('/', '.')}>`" if module else f"`{found[1]}`"

    return OUTSIDE.sub(replaced, text)


def contract() -> str:
    """The kernel contract as a table of signatures, from the list of its names."""
    rows = ["| function | arguments | what it does |", "|---|---|---|"]
    for name in reference.backend.FUNCTIONS:
        function = getattr(reference, name)
        says = inspect.getdoc(function).split("\n\n")[0].replace("\n", " ").replace("|", r"\|")
        rows.append(f"| {{py:func}}`{name} <{function.__module__}.{name}>` | {signature(function)} | {says} |")
    return "\n".join(rows) + "\n"


def signature(function: Callable) -> str:
    """The names of a function's arguments, `*` in front of those that are given by name."""
    parameters = inspect.signature(function).parameters.values()
    by_name = [p.name for p in parameters if p.kind is p.KEYWORD_ONLY]
    return ", ".join([p.name for p in parameters if p.name not in by_name] + ([r"\*", *by_name] if by_name else []))


def definitions() -> str:
    """A section for every file of `reference`, from its docstrings."""
    section = "## reference.{0}\n\n```{{eval-rst}}\n.. automodule:: reference.{0}\n   :members:\n```\n"
    modules = sorted(path.stem for path in (DOCS.parent / "reference").glob("[!_]*.py"))
    return "# The definitions\n\n" + "\n".join(section.format(name) for name in modules)


def commands() -> str:
    """The command line, as typer documents it."""
    options = ("--name", "thresher", "--title", "The command line")
    run = [sys.executable, "-m", "typer", "thresher.cli.app", "utils", "docs", *options]
    return subprocess.run(run, check=True, stdout=subprocess.PIPE, encoding="utf-8").stdout


def prepare(folder: Path) -> None:
    """Write the site's source to `folder`, which is made anew."""
    import jupytext  # here, so that the tests can look at `notebook` without it

    shutil.rmtree(folder, ignore_errors=True)
    ignored = shutil.ignore_patterns("*.py", "__pycache__", "site")
    shutil.copytree(DOCS, folder, ignore=ignored)
    shutil.copytree(DOCS / "site", folder, dirs_exist_ok=True)
    for page in folder.glob("*.md"):
        page.write_text(inside(page.read_text(encoding="utf-8")), encoding="utf-8")
    (folder / "notebooks").mkdir()
    for name in CHAPTERS:
        text = notebook((DOCS / f"{name}.md").read_text(encoding="utf-8"))
        jupytext.write(jupytext.reads(text, fmt="md:myst"), folder / "notebooks" / f"{name}.ipynb")
        download = f"\nThis chapter as a notebook: {{download}}`{name}.ipynb <notebooks/{name}.ipynb>`\n"
        (folder / f"{name}.md").write_text(inside(text) + download, encoding="utf-8")
    index = folder / "index.md"
    others = sorted({page.stem for page in DOCS.glob("*.md")} - {*CHAPTERS, "questions"})
    index.write_text(index.read_text(encoding="utf-8").replace("THE OTHER PAGES", "\n".join(others)), encoding="utf-8")
    (folder / "reference.md").write_text(definitions(), encoding="utf-8")
    (folder / "command.md").write_text(commands(), encoding="utf-8")
    with (folder / "contract.md").open("a", encoding="utf-8") as page:
        page.write(contract())


if __name__ == "__main__":
    prepare(Path(sys.argv[1]))
