"""Every Python block of the docs and the README runs, in order, in one namespace per page.

A block fenced as `python real` needs the pulled SmolLM2 weights; a page's blocks after it may use what it made, so they
are real too. `python transformers` needs that package.
"""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from loaders import catalogue

WORDS = ("real", "transformers")  # what a block may need

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
FENCE = re.compile(r"^```python(?: (\w+))?\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def blocks(page: Path) -> list[tuple[str | None, int, str]]:
    """(what it needs, line, code) of every block."""
    text = page.read_text(encoding="utf-8")
    return [(m[1], text[: m.start(2)].count("\n"), m[2]) for m in FENCE.finditer(text)]


def pages(need: str | None) -> list[Path]:
    """The pages with blocks that need it."""
    return [page for page in PAGES if any(block[0] == need for block in blocks(page))]


def run(page: Path, have: str | None = None) -> None:
    namespace: dict[str, object] = {"__name__": "docs"}
    for need, line, code in blocks(page):
        if need not in (None, have):
            break
        # Blank lines in front, so that a traceback shows the page's own line numbers.
        exec(compile("\n" * line + code, str(page), "exec"), namespace)


@pytest.mark.parametrize("page", pages(None), ids=lambda p: p.name)
def test_blocks_run(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)  # some blocks write files
    run(page)


@pytest.mark.real
@pytest.mark.skipif(not catalogue.is_pulled("smollm2-135m-instruct"), reason="smollm2-135m-instruct is not pulled")
@pytest.mark.parametrize("page", pages("real"), ids=lambda p: p.name)
def test_blocks_that_need_the_real_model_run(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    run(page, "real")


@pytest.mark.parametrize("page", pages("transformers"), ids=lambda p: p.name)
def test_blocks_that_need_transformers_run(page: Path) -> None:
    pytest.importorskip("transformers", reason="wanted the extra `transformers`")
    run(page, "transformers")


def test_every_page_is_found() -> None:
    assert {"README.md", "architecture.md", "transformer.md"} <= {page.name for page in PAGES}
    assert {need for page in PAGES for need, _, _ in blocks(page)} == {None, *WORDS}
    assert all(text.count("```") % 2 == 0 for text in (page.read_text(encoding="utf-8") for page in PAGES))
