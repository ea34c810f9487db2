"""Where people type and read: several lines, pastes and history with prompt_toolkit, and words that a narrow terminal
does not break."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Callable, Iterable
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from thresher.cli import console

if TYPE_CHECKING:
    from prompt_toolkit import PromptSession
    from prompt_toolkit.history import History
    from prompt_toolkit.key_binding import KeyBindings

PROMPT = "> "


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
    """Print an answer as it comes; the line is ended, also where Ctrl-C cuts it short."""
    wrap = WordWrap(lambda: shutil.get_terminal_size().columns) if sys.stdout.isatty() else None
    try:
        for piece in pieces:
            print(wrap.feed(piece) if wrap else piece, end="", flush=True)
    finally:
        print(wrap.rest() if wrap else "", flush=True)


def messages(completions: list[str]) -> Callable[[], str | None]:
    """A function that returns the next message: typed on a terminal, or else a line of standard input; None at the end.

    completions: the words that Tab completes at the beginning of a message.
    """
    if not (sys.stdin.isatty() and sys.stdout.isatty()):
        return console.ask
    typing = session(completions)

    def ask() -> str | None:
        while True:
            try:
                return str(typing.prompt()).strip()
            except KeyboardInterrupt:
                print("Ctrl-D or /bye ends the chat.", file=sys.stderr)
            except EOFError:
                return None

    return ask


def session(completions: list[str], **streams: Any) -> PromptSession[str]:
    """A prompt for messages of several lines. streams: prompt_toolkit's `input` and `output`, where not the terminal."""
    from prompt_toolkit import PromptSession
    from prompt_toolkit.completion import WordCompleter

    return PromptSession(
        PROMPT,
        multiline=True,  # what is pasted stays one message, whatever lines it has
        prompt_continuation="  ",
        key_bindings=_keys(),
        history=_history(),
        completer=WordCompleter(completions, sentence=True),
        complete_while_typing=False,
        enable_open_in_editor=True,
        **streams,
    )


def _keys() -> KeyBindings:
    """Enter sends; Alt-Enter and Ctrl-J begin a new line."""
    from prompt_toolkit.key_binding import KeyBindings

    keys = KeyBindings()

    @keys.add("enter")
    def send(event: Any) -> None:
        event.current_buffer.validate_and_handle()

    @keys.add("escape", "enter")
    @keys.add("c-j")
    def new_line(event: Any) -> None:
        event.current_buffer.newline(copy_margin=False)

    return keys


def _history() -> History:
    """Messages of earlier chats, in a file that only the user reads; where none can be written, of this chat alone."""
    from platformdirs import user_state_path
    from prompt_toolkit.history import FileHistory, InMemoryHistory

    with suppress(OSError, RuntimeError):
        path = user_state_path("thresher", appauthor=False, ensure_exists=True) / "chat_history"
        os.close(os.open(path, os.O_CREAT | os.O_RDWR, 0o600))
        return FileHistory(path)
    return InMemoryHistory()
