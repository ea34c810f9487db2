"""Folders become sources, texts passages, and a question finds those that share its words."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from thresher.answers.sources import Source, bm25, cut, read_sources


def test_a_folder_is_its_sources(folder: Path) -> None:
    (folder / "atlas" / "deeper").mkdir()
    (folder / "atlas" / "deeper" / "more.md").write_text("\ufeffMore.", encoding="utf-8")
    (folder / "atlas" / "picture.png").write_bytes(b"\x89PNG")
    (folder / ".hidden").mkdir()
    (folder / "README.txt").write_text("about the folder")
    found = read_sources(folder)
    assert [source.name for source in found] == ["atlas", "diary", "poster"]
    assert found[0].passages == ("More.", "The lighthouse was built in 1870. Gulls nest on the roof.")


def test_what_is_wrong_with_a_folder_is_told(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"nowhere: there is no such folder"):
        read_sources(tmp_path / "nowhere")
    with pytest.raises(ValueError, match="got no folder in it"):
        read_sources(tmp_path)
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "blank.txt").write_text(" \n\n ")
    with pytest.raises(ValueError, match=r"a: got no text, wanted \.txt or \.md files"):
        read_sources(tmp_path)
    (tmp_path / "a" / "latin.txt").write_bytes(b"caf\xe9 au lait")
    with pytest.raises(ValueError, match=r"latin\.txt: not UTF-8 text .* at byte 3"):
        read_sources(tmp_path)


@given(st.text("ab \n", max_size=300), st.integers(1, 12))
def test_passages_are_all_words_in_order_and_short(text: str, words: int) -> None:
    passages = list(cut(text, words))
    assert " ".join(passages).split() == text.split()
    assert all(0 < len(passage.split()) <= words for passage in passages)
    for paragraph in re.split("\n\n", text):  # a paragraph that fits is not torn apart
        if 0 < len(paragraph.split()) <= words:
            assert any(" ".join(paragraph.split()) in passage for passage in passages)


def test_bm25_finds_what_shares_rare_words_and_nothing_else() -> None:
    source = Source("s", ("cats sleep", "dogs bark at cats", "the boat is red", "a red boat sails", "cats purr"))
    assert bm25(source, "Who sails a red boat?", 3) == [2, 3]
    assert bm25(source, "Who sails a red boat?", 1) == [3]
    assert bm25(source, "Where do cats go?", 2) == [0, 4]  # shorter passages first; equal scores: the earlier one
    assert bm25(source, "What is the?", 3) == bm25(source, "zebra", 3) == bm25(source, "", 3) == []
    assert bm25(Source("s", ("the of and", "?!")), "the zebra", 3) == []


@pytest.mark.parametrize("imported", [False, True])
def test_finding_passages_leaves_jax_alone(tmp_path: Path, imported: bool) -> None:
    """On import bm25s runs JAX where it is installed, which takes most of a GPU's memory from the model."""
    (tmp_path / "jax").mkdir()
    (tmp_path / "jax" / "__init__.py").write_text("")
    (tmp_path / "jax" / "lax.py").write_text("def top_k(*_): raise SystemExit('JAX was run')")
    script = f"""
import sys
sys.path.insert(0, {str(tmp_path)!r})
{"import jax.lax" if imported else ""}
from thresher.answers.sources import Source, bm25
assert bm25(Source("s", ("a red boat", "gulls")), "red?", 1) == [0]
import jax, jax.lax
assert jax.__file__.startswith({str(tmp_path)!r})
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
