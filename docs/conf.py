"""How Sphinx makes the site: `make docs`. The source is what docs/prepare.py writes."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

project = "thresher"
settings = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text(encoding="utf-8"))
release = settings["project"]["version"]
extensions = ["myst_nb", "sphinx.ext.autodoc", "sphinx.ext.viewcode"]
html_theme = "sphinx_book_theme"
html_title = f"thresher {release}"
html_theme_options = {"navbar_persistent": []}  # or there are two boxes to search in
exclude_patterns = ["notebooks"]

myst_heading_anchors = 3
nb_execution_mode = "force"
nb_execution_raise_on_error = True
nb_execution_timeout = 120
nb_execution_in_temp = True  # pictures are shown where they are drawn, and their files are not needed
nb_execution_show_tb = True

autodoc_mock_imports = ["torch", "transformers"]  # large, and only named in the pages that need them
autodoc_member_order = "bysource"
autodoc_preserve_defaults = True  # as the source has them: a module has no good picture of itself
autodoc_typehints = "none"  # docstrings say shapes and units, which types cannot


def as_text(app: object, what: str, name: str, obj: object, options: object, lines: list[str]) -> None:
    """Docstrings are plain text with formulas set in by four spaces; make reStructuredText of them."""
    out: list[str] = []
    for n, paragraph in enumerate(re.split(r"\n\s*\n", "\n".join(lines))):
        begins = [bool(re.match(r"[a-z_, ]{1,30}: ", row)) for row in paragraph.split("\n")]
        rows = plain(paragraph).split("\n")
        if paragraph.startswith("    "):
            out += ["::", "", *(f"    {row}" for row in paragraph.split("\n")), ""]
        elif n > 0 and begins[0] and sum(begins) > 1:  # one argument a line
            out += [f"{'*' if first else ' '} {row.strip()}" for row, first in zip(rows, begins, strict=True)] + [""]
        else:
            out += [*(row.strip() for row in rows), ""]
    lines[:] = out


def plain(text: str) -> str:
    """Text in which only `code` has a meaning."""
    parts = text.split("`")
    return "".join(f"``{part}``" if n % 2 else re.sub(r"([\\*_|])", r"\\\1", part) for n, part in enumerate(parts))


def setup(app: object) -> None:
    """Called by Sphinx."""
    app.connect("autodoc-process-docstring", as_text)
