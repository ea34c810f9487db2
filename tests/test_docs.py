"""Every Python block of the docs and the README runs, in order, in one namespace per page.

A block fenced as `python real` needs the pulled SmolLM2 weights; a page's blocks after it may use what it made, so they
are real too.
"""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from loaders import catalogue

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
FENCE = re.compile(r"^```python( real)?\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def blocks(page: Path) -> list[tuple[bool, int, str]]:
    """(needs the real weights, line, code) of every block."""
    text = page.read_text(encoding="utf-8")
    return [(bool(m[1]), text[: m.start(2)].count("\n"), m[2]) for m in FENCE.finditer(text)]


def run(page: Path, kind: bool) -> None:
    namespace: dict[str, object] = {"__name__": "docs"}
    for real, line, code in blocks(page):
        if real and not kind:
            break
        # Blank lines in front, so that a traceback shows the page's own line numbers.
        exec(compile("\n" * line + code, str(page), "exec"), namespace)


@pytest.mark.parametrize("page", [p for p in PAGES if any(not b[0] for b in blocks(p))], ids=lambda p: p.name)
def test_blocks_run(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)  # some blocks write files
    run(page, kind=False)


@pytest.mark.real
@pytest.mark.skipif(not catalogue.is_pulled("smollm2-135m-instruct"), reason="smollm2-135m-instruct is not pulled")
@pytest.mark.parametrize("page", [p for p in PAGES if any(b[0] for b in blocks(p))], ids=lambda p: p.name)
def test_blocks_that_need_the_real_model_run(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    run(page, kind=True)


def test_every_page_is_found() -> None:
    assert {"README.md", "architecture.md", "transformer.md"} <= {page.name for page in PAGES}
    assert all(text.count("```") % 2 == 0 for text in (page.read_text(encoding="utf-8") for page in PAGES))
