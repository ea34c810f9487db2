"""Text that people read while it comes: words that a narrow terminal does not break."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Callable, Iterable
from typing import TextIO

DIM, BRIGHT = "\x1b[2m", "\x1b[0m"  # what a terminal shows fainter, and as usual


class WordWrap:
    """Text as it comes, with a line end put before a word that would cross the right edge.

    A word is shown when it is complete, because what is on the screen cannot move. One that is wider than a line is
    broken, as are scripts of wide characters, which need no spaces to break at. width: columns, asked for each word.
    """

    def __init__(self, width: Callable[[], int]) -> None:
        from prompt_toolkit.utils import get_cwidth

        self._width, self._columns = width, get_cwidth
        self._column = 0
        self._spaces = self._word = ""

    def feed(self, text: str) -> str:
        """Take a piece of text; returns what may be shown now."""
        shown = []
        for c in text:
            if c == "\n":
                shown += [self._place(), c]
                self._column = 0
            elif c.isspace():
                shown.append(self._place())
                self._spaces += c
            elif self._columns(c) > 1:
                shown.append(self._place())
                self._word = c
                shown.append(self._place())
            else:
                self._word += c
        return "".join(shown)

    def rest(self) -> str:
        """The last word, where nothing more comes."""
        return self._place()

    def _place(self) -> str:
        """Move the word that is held to the screen."""
        word, spaces, limit = self._word, self._spaces, max(self._width(), 1)
        if not word:
            return ""
        self._word = self._spaces = ""
        before = self._column + len(spaces)
        if self._column and before + self._columns(word) > limit:
            self._column = self._columns(word) % limit
            return f"\n{word}"
        self._column = (before + self._columns(word) - 1) % limit + 1
        return spaces + word


def stream(pieces: Iterable[str]) -> None:
    """Print an answer as it comes; the line is ended, also where Ctrl-C cuts it short.

    Reasoning before it (`piece.reasoning`) is shown on a terminal, dimmed, and left out of a pipe or a file.
    """
    wrap, dimmed = _for(sys.stdout), False

    def show(text: str) -> None:
        print(wrap.feed(text) if wrap else text, end="", flush=True)

    def brighten() -> None:
        print(wrap.rest() + BRIGHT if wrap else "", end="")

    try:
        for piece in pieces:
            if (reasoning := getattr(piece, "reasoning", "")) and wrap:
                print("" if dimmed else wrap.rest() + DIM, end="")
                dimmed = True
                show(reasoning)
            if piece and dimmed:
                brighten()
                dimmed = False
                show("\n\n")
            show(piece)
        print(wrap.rest() if wrap else "", end="")
    finally:
        if dimmed:
            brighten()
        print(flush=True)


def note(text: str) -> None:
    """A remark on standard error, wrapped like an answer where that is a terminal."""
    wrap = _for(sys.stderr)
    print(wrap.feed(text) + wrap.rest() if wrap else text, file=sys.stderr)


def _for(stream: TextIO) -> WordWrap | None:
    """What wraps for a stream; nothing does in a pipe or a file."""
    return WordWrap(lambda: shutil.get_terminal_size().columns) if stream.isatty() else None
