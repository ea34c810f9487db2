"""A conversation, and how people type it: pastes, several lines, Ctrl-C, and the commands that begin with a slash."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
from prompt_toolkit.input import PipeInput, create_pipe_input
from prompt_toolkit.output import DummyOutput

import thresher
from tests.checkpoints import write_checkpoint
from thresher.chat import Conversation, TooLong
from thresher.cli import chat, terminal
from thresher.cli.wrap import WordWrap

PASTE = "\x1b[200~", "\x1b[201~"  # what a terminal puts around pasted text


@pytest.fixture
def conversation(llm: thresher.LanguageModel) -> Conversation:
    return Conversation(llm, max_new_tokens=4)


@pytest.fixture
def keys(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[PipeInput]:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    with create_pipe_input() as pipe:
        yield pipe


def type_(keys: PipeInput, text: str) -> str:
    keys.send_text(text)
    return str(terminal.session(["/help", "/bye"], input=keys, output=DummyOutput()).prompt())


def reads(llm: thresher.LanguageModel, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many tokens each reading has, from now on."""
    counts: list[int] = []
    prefill = thresher.LanguageModel.prefill

    def counted(self: Any, prompt: Any, *arguments: Any, **options: Any) -> thresher.State:
        counts.append(len(prompt))
        return prefill(self, prompt, *arguments, **options)

    monkeypatch.setattr(thresher.LanguageModel, "prefill", counted)
    return counts


def test_pasted_text_is_one_message(keys: PipeInput) -> None:
    text = "A list:\n\nred\n\n\ngreen\n"
    assert type_(keys, f"{PASTE[0]}{text}{PASTE[1]}\r") == text
    assert type_(keys, f"{PASTE[0]}{text}{PASTE[1]}and a question\r") == f"{text}and a question"


def test_enter_sends_and_two_other_keys_begin_a_line(keys: PipeInput) -> None:
    assert type_(keys, "one\x1b\rtwo\nthree\r") == "one\ntwo\nthree"


def test_history_is_kept_for_the_user_alone(keys: PipeInput, tmp_path: Path) -> None:
    type_(keys, "first\x1b\rmessage\r")
    assert type_(keys, "\x1b[A\r") == "first\nmessage"
    file = tmp_path / "thresher" / "chat_history"
    assert file.stat().st_mode & 0o777 == 0o600


def test_a_place_that_cannot_be_written_costs_the_history(keys: PipeInput, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", "/dev/null/nowhere")
    assert type_(keys, "hello\r") == "hello"


def test_ctrl_c_and_ctrl_d_at_the_prompt(keys: PipeInput) -> None:
    with pytest.raises(KeyboardInterrupt):
        type_(keys, "half a mess\x03")
    with pytest.raises(EOFError):
        type_(keys, "\x04")


def test_only_what_is_new_is_read(
    conversation: Conversation, llm: thresher.LanguageModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    counts = reads(llm, monkeypatch)
    for text in ("Hello", "And now?"):
        "".join(conversation.say(text))
    ids = llm.encode(conversation.messages[:-1])
    assert len(counts) == 2
    assert sum(counts) + len(conversation.messages[1]["content"].encode()) <= len(ids) + 4
    whole = llm.generate(conversation.messages[:-1], max_new_tokens=4)
    assert str(whole) == conversation.messages[-1]["content"]  # as if all of it had been one prompt


def interrupt_after(pieces: Iterator[str], count: int) -> str:
    """Read so many pieces, then what Ctrl-C does."""
    shown = "".join(islice(pieces, count))
    with pytest.raises(KeyboardInterrupt):
        pieces.throw(KeyboardInterrupt)  # type: ignore[attr-defined]
    return shown


def test_an_answer_that_is_stopped_ends_there(llm: thresher.LanguageModel, monkeypatch: pytest.MonkeyPatch) -> None:
    talk = Conversation(llm, max_new_tokens=30)
    shown = interrupt_after(talk.say("Hello"), 5)
    assert talk.messages[-1] == {"role": "assistant", "content": shown}
    assert shown
    counts = reads(llm, monkeypatch)
    "".join(talk.say("Go on"))
    assert counts[0] < len(llm.encode(talk.messages[:-1])) - len("Hello")  # the past was not read again
    assert str(llm.generate(talk.messages[:-1], max_new_tokens=30)) == talk.messages[-1]["content"]


@pytest.mark.parametrize("evict", [None, "keydiff:budget=24"])
def test_a_message_whose_reading_is_stopped_counts_as_not_sent(
    llm: thresher.LanguageModel, monkeypatch: pytest.MonkeyPatch, evict: str | None
) -> None:
    policy = thresher.Policy(evict=evict)
    talk, undisturbed = Conversation(llm, policy, max_new_tokens=4), Conversation(llm, policy, max_new_tokens=4)
    for each in (talk, undisturbed):
        "".join(each.say("Hello"))
    before = list(talk.messages)

    class Stopped:
        def __init__(self, tokens: int) -> None: ...
        def __enter__(self) -> Callable[[int], None]:
            return self.stop

        def __exit__(self, *_: object) -> None: ...
        def stop(self, done: int) -> None:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        "".join(talk.say("Something else altogether", Stopped))
    assert talk.messages == before
    counts = reads(llm, monkeypatch)
    assert "".join(talk.say("And now?")) == "".join(undisturbed.say("And now?"))
    if evict is None:
        assert counts[0] == counts[1]  # and the past was not read again


def test_a_message_too_long_is_refused_and_the_chat_lives_on(conversation: Conversation) -> None:
    "".join(conversation.say("Hello"))
    before, state = list(conversation.messages), conversation.state.position
    with pytest.raises(TooLong) as caught:
        "".join(conversation.say("x" * 300))
    assert caught.value.positions == 256
    assert caught.value.tokens > 300
    assert (conversation.messages, conversation.state.position) == (before, state)
    assert "".join(conversation.say("And now?"))


def test_a_chat_is_kept_and_taken_up(
    conversation: Conversation, llm: thresher.LanguageModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    conversation.set_system("Be kind.")
    "".join(conversation.say("Hello"))
    file = str(tmp_path / "chat.safetensors")
    conversation.save(file)
    other = Conversation(llm, max_new_tokens=4)
    other.load(file)
    assert other.system == "Be kind."
    counts = reads(llm, monkeypatch)
    assert "".join(other.say("And now?")) == "".join(conversation.say("And now?"))
    assert counts[0] == counts[1]
    llm.prefill("no chat").save(file)
    with pytest.raises(ValueError, match="got a state without messages, wanted one that a chat has saved"):
        other.load(file)
    assert other.system == "Be kind."


def test_no_template_no_chat(tmp_path: Path) -> None:
    directory = write_checkpoint(tmp_path / "model")
    (directory / "tokenizer_config.json").write_text("{}")
    with pytest.raises(ValueError, match="got a model without a chat template"):
        Conversation(thresher.load(directory, backend="reference"))


@pytest.fixture
def talk(conversation: Conversation) -> chat.Talk:
    return chat.Talk(conversation, [])


def test_commands(talk: chat.Talk, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def told(text: str) -> str:
        assert talk.take(text)
        out, error = capsys.readouterr()
        return out + error

    assert all(f"/{name}" in told("/help") for name in talk.commands)
    (tmp_path / "note.txt").write_text("Mara keeps bees.")
    assert "16 tokens, is read with the next message" in told(f"/file {tmp_path}/note.txt")
    told("Who?")
    assert talk.conversation.messages[0]["content"] == "Mara keeps bees.\n\nWho?"
    told("And now?")
    assert talk.conversation.messages[2]["content"] == "And now?"
    assert "thresher: nowhere.txt" not in told("/stats")
    assert "nowhere.txt" in told("/file nowhere.txt")
    assert "dense" in told("/policy")
    told("/policy keydiff:budget=20 + quoka:budget=8")
    assert told("/policy") == "quoka:budget=8 + keydiff:budget=20\n"
    assert "tokens evicted" in told("A longer message than that")
    stats = told("/stats")
    assert "quoka:budget=8 + keydiff:budget=20" in stats
    assert "tokens evicted" in stats
    told("/system Be kind.")
    assert told("/system") == "Be kind.\n"
    told(f"/save {tmp_path}/chat")
    told("/clear")
    assert [m["role"] for m in talk.conversation.messages] == ["system"]
    assert "7 messages" in told(f"/load {tmp_path}/chat")
    assert "no such command (did you mean /stats?)" in told("/stat")
    assert "/policy: found 'magic'; expected one of dense, quoka" in told("/policy magic")
    assert "needs the name of a file" in told("/save")
    assert not talk.take("/bye")


def test_a_path_is_no_command(talk: chat.Talk, capsys: pytest.CaptureFixture[str]) -> None:
    talk.take("/etc/hosts has what in it?")
    assert talk.conversation.messages[0]["content"] == "/etc/hosts has what in it?"


def test_too_long_is_told_with_the_ways_out(talk: chat.Talk, capsys: pytest.CaptureFixture[str]) -> None:
    assert talk.take("y" * 400)
    error = capsys.readouterr().err
    assert "which was not sent, has 4" in error
    assert "tokens and this model reads 256. Ways out: a shorter message, or /clear" in error
    assert talk.take("Hello")
    assert len(talk.conversation.messages) == 2


def test_ctrl_c_on_a_terminal_stops_the_answer_only(
    talk: chat.Talk, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def say(*_: Any) -> Iterator[str]:
        yield "The sea "
        raise KeyboardInterrupt

    monkeypatch.setattr(talk.conversation, "say", say)
    with pytest.raises(KeyboardInterrupt):
        talk.take("Hello")  # in a pipe it ends the chat
    monkeypatch.setattr(sys.stdin, "isatty", lambda: True)
    assert talk.take("Hello")
    assert "stopped" in capsys.readouterr().err


@pytest.mark.parametrize("pieces", [1, 3, 1000])
def test_words_are_not_broken(pieces: int) -> None:
    text = "The quick brown fox, internationalisation\n  indented line of words\n\n日本語の文章です ok\n" * 3
    wrap = WordWrap(lambda: 12)
    shown = "".join(wrap.feed(text[at : at + pieces]) for at in range(0, len(text), pieces)) + wrap.rest()
    assert shown.replace("\n", "").replace(" ", "") == text.replace("\n", "").replace(" ", "")
    words = {word for word in text.split() if word.isascii() and len(word) <= 12}
    assert words <= set(shown.split())
    for line in shown.split("\n"):
        assert sum(1 + (c > "\u3000") for c in line.rstrip()) <= 12 or line == "internationalisation"
    assert "\n  indented\nline of\nwords\n\n" in shown


def test_nothing_is_held_back_once_a_word_is_over() -> None:
    wrap = WordWrap(lambda: 80)
    assert [wrap.feed(piece) for piece in ("The", " sea", " is", "\n")] == ["", "The", " sea", " is\n"]
