"""Where people type: messages of several lines, pastes and history, with prompt_toolkit."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from thresher.cli import console, wrap

if TYPE_CHECKING:
    from prompt_toolkit import PromptSession
    from prompt_toolkit.history import History
    from prompt_toolkit.key_binding import KeyBindings

PROMPT = "> "


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
                wrap.note("Ctrl-D or /bye ends the chat.")
            except EOFError:
                return None

    return ask


def session(completions: list[str], **streams: Any) -> PromptSession[str]:
    """A prompt for messages of several lines. streams: prompt_toolkit's `input` and `output`, if not the terminal."""
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
