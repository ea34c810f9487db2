"""Make the site's source from the pages: `python -m docs.prepare FOLDER`.

Everything in docs/ is copied to the folder. A chapter becomes a notebook in MyST Markdown, which Sphinx executes, and a
notebook file beside it, `notebooks/NAME.ipynb`.
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
from docs.chapters import CHAPTERS
from docs.notebooks import DOCS, cells, notebook

OUTSIDE = re.compile(r"\[([^]]+)\]\(\.\./([^)]+)\)")  # links that leave docs/
NAME = re.compile(r"^\| `(\w+)` \|", re.MULTILINE)  # in the table of the contract
WIDGET = re.compile(r"^(```\{code-cell\} ipython3\n)\n(from ipywidgets )", re.MULTILINE)


def site(text: str) -> str:
    """A page for the site. Links to files of `reference` lead to their documentation, and so do the names in the table
    of the contract. Other links out of docs/ are only named. A page cannot run code, so sliders stay code.
    """

    def replaced(found: re.Match[str]) -> str:
        if found[2] == "reference/__init__.py":
            return f"[{found[1]}](reference.md)"
        module = re.fullmatch(r"(reference/\w+)\.py", found[2])
        return f"{{py:mod}}`{found[1]} <{module[1].replace('/', '.')}>`" if module else f"`{found[1]}`"

    def linked(found: re.Match[str]) -> str:
        name = found[1]
        if name not in reference.backend.FUNCTIONS:
            return found[0]
        return f"| {{py:func}}`{name} <{getattr(reference, name).__module__}.{name}>` |"

    text = WIDGET.sub(r"\1:tags: [skip-execution]\n\2", text)
    return NAME.sub(linked, OUTSIDE.sub(replaced, text))


def contract() -> str:
    """The kernel contract as a table of signatures, from the list of its names: docs/verify.md holds it."""
    rows = ["| function | arguments | what it does |", "|---|---|---|"]
    for name in reference.backend.FUNCTIONS:
        function = getattr(reference, name)
        says = inspect.getdoc(function).split("\n\n")[0].replace("\n", " ").replace("|", r"\|")
        rows.append(f"| `{name}` | {signature(function)} | {says} |")
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
    options = ("--name", "thresher", "--title", "All commands")
    run = [sys.executable, "-m", "typer", "thresher.cli.app", "utils", "docs", *options]
    return subprocess.run(run, check=True, stdout=subprocess.PIPE, encoding="utf-8").stdout


def prepare(folder: Path) -> None:
    """Write the site's source to `folder`, which is made anew."""
    import nbformat  # here, so that the tests can look at `contract` without it

    shutil.rmtree(folder, ignore_errors=True)
    ignored = shutil.ignore_patterns("*.py", "__pycache__", "site")
    shutil.copytree(DOCS, folder, ignore=ignored)
    shutil.copytree(DOCS / "site", folder, dirs_exist_ok=True)
    (folder / "notebooks").mkdir()
    for name in CHAPTERS:
        nbformat.write(notebook(name), folder / "notebooks" / f"{name}.ipynb")
        page = folder / f"{name}.md"
        download = f"\nThis chapter as a notebook: {{download}}`{name}.ipynb <notebooks/{name}.ipynb>`\n"
        page.write_text(cells(page.read_text(encoding="utf-8")) + download, encoding="utf-8")
    for page in folder.glob("*.md"):
        page.write_text(site(page.read_text(encoding="utf-8")), encoding="utf-8")
    index = folder / "index.md"
    text = index.read_text(encoding="utf-8")
    others = sorted({page.stem for page in DOCS.glob("*.md")} - set(text.splitlines()))
    index.write_text(text.replace("THE OTHER PAGES", "\n".join(others)), encoding="utf-8")
    (folder / "reference.md").write_text(definitions(), encoding="utf-8")
    (folder / "command.md").write_text(commands(), encoding="utf-8")


if __name__ == "__main__":
    prepare(Path(sys.argv[1]))
