"""Every Python block of the docs and the README runs, in order, in one namespace per page.

What a block needs stands behind the word python in its fence. `python real` needs the pulled SmolLM2 weights,
`python picture` matplotlib, `python widget` ipywidgets and `python transformers` that package. What such a block makes
only blocks with the same word may use, since the others also run without it. The chapters run as notebooks, and a
second time from the wheel alone, in an empty folder.

`python -m tests.test_docs` draws the chapters' pictures again, into docs/pictures.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path
from types import ModuleType

import pytest

import accel
import thresher
from docs import chapters, notebooks, prepare
from loaders import catalogue
from loaders.families import FAMILIES

os.environ.setdefault("MPLBACKEND", "agg")  # read when matplotlib is imported

WORDS = ("real", "picture", "transformers", "widget")  # what a block may need
VARIABLE = re.compile(r"\b(?:THRESHER|NUMBA)_[A-Z_]+\b")
ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
CHAPTERS = [ROOT / "docs" / f"{name}.md" for name in chapters.CHAPTERS]


def blocks(page: Path) -> list[tuple[str, int, str]]:
    """(what it needs, line, code) of every block: one of WORDS, or ""."""
    text = page.read_text(encoding="utf-8")
    return [((m[1] or "").strip(), text[: m.start(2)].count("\n"), m[2]) for m in chapters.FENCE.finditer(text)]


def script(page: Path, *have: str) -> str:
    """A page's blocks as one program that shows the page's own line numbers in a traceback: those that need nothing or
    one of what we `have`."""
    lines: list[str] = []
    for needs, line, code in blocks(page):
        if needs in ("", *have):
            lines += [""] * (line - len(lines)) + code.splitlines()
    return "\n".join(lines) + "\n"


def pages(need: str) -> list[Path]:
    """The pages with blocks that need it."""
    return [page for page in PAGES if any(block[0] == need for block in blocks(page))]


def run(page: Path, *have: str) -> None:
    exec(compile(script(page, *have), str(page), "exec"), {"__name__": "docs"})


@pytest.mark.parametrize("page", [page for page in pages("") if page not in CHAPTERS], ids=lambda p: p.name)
def test_blocks_run_and_print_what_the_page_shows(
    page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)  # some blocks write files
    run(page)
    printed = capsys.readouterr().out
    for _, shown in notebooks.PRINTED.findall(page.read_text(encoding="utf-8")):
        assert re.search(re.escape(shown).replace("…", ".*"), printed), shown


@pytest.mark.parametrize("page", CHAPTERS, ids=lambda p: p.name)
def test_a_chapter_runs_as_a_notebook_and_prints_what_it_shows(page: Path, tmp_path: Path) -> None:
    for needed in ("jupytext", "nbclient", "ipywidgets"):
        pytest.importorskip(needed, reason="wanted the extra `notebooks`")
    made = notebooks.run(notebooks.notebook(page.stem), tmp_path)
    words = "\n".join(cell.source for cell in made.cells if cell.cell_type == "markdown")
    assert not re.search(r"\n!|\]\((?!https?:)", words)  # neither pictures nor pages lie beside a notebook
    cells = [cell for cell in made.cells if cell.cell_type == "code"]
    printed = {cell.source: "".join(out.text for out in cell.outputs if out.output_type == "stream") for cell in cells}
    for code, shown in notebooks.PRINTED.findall(page.read_text(encoding="utf-8")):
        assert printed[code.strip()] == shown
    kinds = {kind for cell in cells for out in cell.outputs for kind in out.get("data", {})}
    assert "image/png" in kinds
    assert ("application/vnd.jupyter.widget-view+json" in kinds) == (page in pages("widget"))


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


@pytest.fixture(scope="session")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that holds what the built wheel installs, and nothing else."""
    folder = tmp_path_factory.mktemp("wheel")
    source = folder / "source"  # a copy, since a build leaves files behind where it runs
    source.mkdir()
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    for name in ("reference", "accel", "loaders", "thresher"):
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    build = [sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "--no-build-isolation", "-w", folder, source]
    subprocess.run(build, check=True)
    with zipfile.ZipFile(next(folder.glob("*.whl"))) as built:
        built.extractall(folder / "installed")
    return folder / "installed"


@pytest.mark.parametrize("page", CHAPTERS, ids=lambda p: p.name)
def test_chapters_run_from_the_wheel_in_an_empty_folder(page: Path, wheel: Path, tmp_path: Path) -> None:
    front = (
        f"import sys; sys.path.insert(0, {str(wheel)!r}); sys.modules['matplotlib'] = None  # the wheel brings none",
        "import reference",
        f"assert reference.__file__.startswith({str(wheel)!r})",
    )
    done = subprocess.run(
        [sys.executable, "-I", "-"],  # -I: neither the folder nor PYTHONPATH is looked at
        input="\n".join(front) + "\n" + script(page),
        cwd=tmp_path,
        encoding="utf-8",
        capture_output=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert not any(tmp_path.iterdir())


def test_the_wheel_brings_the_folder_that_kernels_start_from(wheel: Path) -> None:
    source = ROOT / "thresher" / "data" / "my_kernels"
    names = {path.name for path in source.iterdir() if path.is_file()}
    assert names == {path.name for path in (wheel / "thresher" / "data" / "my_kernels").iterdir()}


def test_verify_has_the_whole_contract() -> None:
    assert prepare.contract() in (ROOT / "docs" / "verify.md").read_text(encoding="utf-8")


def test_every_public_name_is_documented_on_the_site() -> None:
    page = (ROOT / "docs" / "site" / "thresher.md").read_text(encoding="utf-8")
    listed = dict(re.findall(r"automodule:: (\S+)\n   :members:(.*)", page))
    for package in (thresher, accel):
        for name in public(package):
            home = getattr(package, name).__module__
            if not home.startswith("reference."):  # which has a page of its own
                assert name in (listed[home].replace(",", " ").split() or [name]), f"{home}.{name}"


def public(package: ModuleType) -> list[str]:
    """The names that a package offers: functions and classes."""
    names = getattr(package, "__all__", None) or [name for name in vars(package) if not name.startswith("_")]
    return [name for name in names if getattr(getattr(package, name), "__module__", "").startswith(package.__name__)]


def test_every_family_has_a_line() -> None:
    page = (ROOT / "docs" / "families.md").read_text(encoding="utf-8")
    assert all(f"`{name}`" in page for name in FAMILIES)


def test_every_environment_variable_is_documented() -> None:
    page = (ROOT / "docs" / "environment.md").read_text(encoding="utf-8")
    files = [file for name in ("accel", "loaders", "reference", "thresher") for file in (ROOT / name).rglob("*.py")]
    used = {name for file in files for name in VARIABLE.findall(file.read_text(encoding="utf-8"))}
    documented = set(VARIABLE.findall(page))
    assert "THRESHER_CACHE" in used
    assert used <= documented
    assert {name for name in documented if name.startswith("THRESHER_")} <= used


def test_what_stands_after_is_what_the_chapters_say() -> None:
    page = (ROOT / "docs" / "before-after.md").read_text(encoding="utf-8")
    chapters_say = " ".join(" ".join(file.read_text(encoding="utf-8").split()) for file in CHAPTERS)
    after = re.findall(r"^\*\*After\*\*\n\n((?:>.*\n)+)", page, re.MULTILINE)
    assert len(after) == len(re.findall(r"^\*\*Before\*\*$", page, re.MULTILINE)) == 5
    for quoted in after:
        assert " ".join(re.sub(r"^> ?", "", quoted, flags=re.MULTILINE).split()) in chapters_say


def test_answers_point_to_sections_of_their_chapter() -> None:
    page = (ROOT / "docs" / "questions.md").read_text(encoding="utf-8")
    _, *parts = re.split(r"^## .*\n", page, flags=re.MULTILINE)
    for chapter, part in zip(CHAPTERS, parts, strict=True):
        headings = set(re.findall(r"^## (.*)$", chapter.read_text(encoding="utf-8"), re.MULTILINE))
        questions, answers = part.split("<details>")
        assert [len(re.findall(r"^\d\. ", half, re.MULTILINE)) for half in (questions, answers)] == [5, 5]
        named = re.findall(r'(?:See|and) "([^"]+)"', " ".join(answers.split()))
        assert named
        assert set(named) <= headings


def test_every_page_is_found() -> None:
    assert {"README.md", "architecture.md", "transformer.md"} <= {page.name for page in PAGES}
    assert {need for page in PAGES for need, _, _ in blocks(page)} == {"", *WORDS}
    assert all(text.count("```") % 2 == 0 for text in (page.read_text(encoding="utf-8") for page in PAGES))


def test_every_method_has_sliders() -> None:
    assert {page.stem for page in pages("widget")} == {*chapters.CHAPTERS} - {"transformer"}


@pytest.mark.parametrize("page", CHAPTERS, ids=lambda p: p.name)
def test_every_chapter_has_a_picture_and_three_solved_exercises(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    drawn = re.findall(r'savefig\("([^"]+\.svg)"', text)
    assert drawn == re.findall(r"\]\(pictures/([^)]+)\)", text)
    assert drawn
    assert all((ROOT / "docs" / "pictures" / name).is_file() for name in drawn)
    solutions = re.findall(r"<details>.*?</details>", text, re.DOTALL)
    assert len(solutions) == 3
    assert all(chapters.FENCE.search(solution) for solution in solutions)


@pytest.mark.parametrize("page", CHAPTERS, ids=lambda p: p.name)
def test_a_notebook_has_every_block_in_a_cell_and_folds_words_alone(page: Path) -> None:
    """Looked at line by line, so that a fence which the chapter's pattern misses is found."""
    cells: list[str] = []
    open_cell = folded = False
    for line in notebooks.cells(page.read_text(encoding="utf-8")).splitlines():
        assert not line.startswith("```python")
        if line.startswith("```{code-cell}"):
            assert not folded
            open_cell = True
            cells.append("")
        elif line == "```":
            open_cell = False
        elif open_cell:
            cells[-1] += "" if line.startswith(":tags:") else line + "\n"
        elif "details>" in line:
            folded = line.startswith("<details>")
    assert [code.lstrip("\n") for code in cells] == [code for _, _, code in blocks(page)]


if __name__ == "__main__":
    os.environ["SOURCE_DATE_EPOCH"] = "0"  # a picture that is drawn again is the same file
    import matplotlib

    matplotlib.rcParams.update({"svg.hashsalt": "thresher", "svg.fonttype": "none"})
    (ROOT / "docs" / "pictures").mkdir(exist_ok=True)
    os.chdir(ROOT / "docs" / "pictures")
    for chapter in CHAPTERS:
        run(chapter, "picture")
