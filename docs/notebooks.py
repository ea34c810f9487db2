"""Make notebooks from the chapters: `python -m docs.notebooks FOLDER`, or `make notebooks`.

A chapter is Markdown. Here it becomes MyST Markdown with cells, and jupytext makes a notebook file of that. Then the
notebook is run, so that its pictures show wherever it is opened. A block fenced as `python real` is left out of the
run, since it needs the weights of a model.
"""

from __future__ import annotations

import os
import re
import sys
from pathlib import Path
from typing import Any

from docs.chapters import CHAPTERS, FENCE

DOCS = Path(__file__).parent
HEADER = """---
file_format: mystnb
kernelspec:
  name: python3
  display_name: Python 3
language_info:
  name: python
  pygments_lexer: ipython3
---

"""
NEEDS = "This notebook needs `pip install 'thresher[notebooks]'`, and no GPU.\n"
SOLUTION = re.compile(r"^<details>(.*?)^</details>\n", re.MULTILINE | re.DOTALL)
TAGS = {" real": "skip-execution", " picture": "hide-input"}  # of a cell, by the word behind `python`
INSIDE = r"(?:(?!```).*\n)*"
PRINTED = re.compile(rf"^```python\n({INSIDE})```\n\n```text\n({INSIDE})```\n", re.MULTILINE)
IMAGE = re.compile(r"^!\[[^]]*\]\(pictures/.*\)\n", re.MULTILINE)
BESIDE = re.compile(r"^!\[[^]]*\]\((?!https?:).*\)\n\n?", re.MULTILINE)
LINK = re.compile(r"(?<!!)\[([^]]+)\]\((?!https?:)[^)]+\)")  # to a page beside the chapter


def cells(text: str) -> str:
    """A chapter in MyST Markdown: its blocks are cells, and pictures and printed text come from running them."""
    text = PRINTED.sub(r"```python\n\1```\n", IMAGE.sub("", text))
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


def notebook(name: str) -> Any:
    """A chapter as a notebook that can lie anywhere: what links to other pages only names them, and it has the pictures
    that it draws itself."""
    import jupytext

    text = BESIDE.sub("", (DOCS / f"{name}.md").read_text(encoding="utf-8"))
    title, rest = LINK.sub(r"\1", text).split("\n", 1)
    return jupytext.reads(cells(f"{title}\n\n{NEEDS}{rest}"), fmt="md:myst")


def run(made: Any, folder: Path) -> Any:
    """The notebook with its outputs, run by a kernel of its own in a folder."""
    from nbclient import NotebookClient

    environment = {name: value for name, value in os.environ.items() if name != "MPLBACKEND"}  # pictures are shown
    where = {"metadata": {"path": str(folder)}}
    # On a busy machine the client may miss that a cell is done, and looks again when its time is up.
    return NotebookClient(made, timeout=60, kernel_name="python3", resources=where).execute(env=environment)


def write(folder: Path) -> None:
    """Write every chapter's notebook to the folder, run."""
    import tempfile

    import nbformat

    folder.mkdir(parents=True, exist_ok=True)
    for name in CHAPTERS:
        with tempfile.TemporaryDirectory() as scratch:
            nbformat.write(run(notebook(name), Path(scratch)), folder / f"{name}.ipynb")


if __name__ == "__main__":
    write(Path(sys.argv[1]))
