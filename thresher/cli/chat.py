"""The command `chat`: messages as they are typed, answers as they come, and the commands that begin with a slash."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from thresher.cli import answers, console, options, show, terminal, wrap

if TYPE_CHECKING:
    from thresher.chat import Conversation

ROOM = "a shorter message, or /clear"
THINKING = {"on": True, "off": False, "auto": None}
COMMAND = re.compile(r"/([a-z]+)(?:\s+(.*))?")


def chat(
    context: typer.Context,
    model: options.ModelName,
    file: Annotated[
        list[Path] | None,
        typer.Option("-f", "--file", help="A text to read before the first message; may be given again."),
    ] = None,
    system: options.System = None,
    think: options.Think = None,
    max_new_tokens: options.MaxNewTokens = 512,
    sampling: options.Sampling = "greedy",
    temperature: options.Temperature = None,
    top_k: options.TopK = None,
    top_p: options.TopP = None,
    min_p: options.MinP = None,
    repetition_penalty: options.RepetitionPenalty = None,
    seed: options.Seed = None,
    thinking_budget: options.ThinkingBudget = None,
    stop: options.Stop = None,
    select: options.Select = "",
    evict: options.Evict = "",
    ffn: options.Ffn = "",
    backend: options.Backend = "auto",
    dtype: options.Dtype = "float32",
    adapter: options.Adapter = None,
    expert_memory: options.ExpertMemory = None,
) -> None:
    """Talk with a model. Only what is new is read at each turn; /help lists what else can be typed.

    A budget that is a fraction grows with the conversation: it is a share of all that was read up to the last message.
    """
    from thresher.chat import Conversation

    answering, policy = options.answering(context), options.policy(select, evict, ffn)
    texts = [console.read(each) for each in file or []]
    llm = answers.load(model, policy, backend, dtype, adapter, expert_memory)
    talk = Talk(Conversation(llm, policy, system=system, enable_thinking=think, **answering), texts)
    if sys.stdin.isatty() and sys.stdout.isatty():
        wrap.note(f"{model}. Enter sends, Alt-Enter begins a new line, /help lists the commands.")
    ask = terminal.messages([f"/{name}" for name in talk.commands])
    while (text := ask()) is not None:
        if text and not talk.take(text):
            return


class Talk:
    """A conversation with the commands that a person types. texts: what is read before the next message."""

    def __init__(self, conversation: Conversation, texts: list[str]) -> None:
        self.conversation, self.texts = conversation, texts
        self.commands: dict[str, tuple[str, str, Callable[[str], None]]] = {
            "help": ("", "what can be typed", self._help),
            "bye": ("", "end the chat; Ctrl-D does too", lambda _: None),
            "clear": ("", "forget what was said, but for the system message", self._clear),
            "file": ("PATH", "read a text before the next message", self._file),
            "save": ("PATH", "keep the chat in a file", lambda path: self.conversation.save(_needed(path, "a file"))),
            "load": ("PATH", "take up a chat that was kept", self._load),
            "system": ("TEXT", "set the system message; without TEXT, show it", self._system),
            "think": ("on, off or auto", "reason first, or not; auto leaves it to the template", self._think),
            "policy": (
                "METHODS",
                "such as quoka:budget=512 + keydiff:budget=0.5, or dense",
                self._policy,
            ),
            "stats": ("", "what the policy saves, and what the last answer took", self._stats),
        }

    def take(self, text: str) -> bool:
        """Do what a command says, or send a message and show the answer; False ends the chat.

        A mistake is told and the chat goes on, and so it does when an answer is stopped by Ctrl-C on a terminal.
        """
        command, said = COMMAND.fullmatch(text), len(self.conversation.messages)
        if command and command[1] == "bye":
            return False
        try:
            if command:
                self._run(command[1], (command[2] or "").strip())
            else:
                self._say(text)
        except (ValueError, OSError) as error:
            if not sys.stdout.isatty() and isinstance(error, OSError) and error.filename is None:
                raise  # standard output is closed or full
            console.complain(error)
        except KeyboardInterrupt:
            if not sys.stdin.isatty():
                raise
            sent = len(self.conversation.messages) > said
            wrap.note("(stopped)" if sent or command else "(stopped, and the message not sent)")
        return True

    def _run(self, name: str, argument: str) -> None:
        from loaders.meant import meant

        if name not in self.commands:
            hint = meant(name, list(self.commands)).replace("mean ", "mean /")
            raise ValueError(f"/{name}: there is no such command{hint}; /help lists them")
        self.commands[name][2](argument)

    def _say(self, text: str) -> None:
        from thresher.chat import TooLong

        talk = self.conversation
        try:
            wrap.stream(talk.say("\n\n".join([*self.texts, text]), show.token_progress))
        except TooLong as error:
            self.texts = []
            answers.refuse("The chat with this message, which was not sent,", error.tokens, error.positions, ROOM)
        self.texts = []
        if talk.answer is not None and (
            talk.policy.specs or talk.answer.stats.finish_reason in ("length", "positions")
        ):
            wrap.note(f"({self._took()})")

    def _took(self) -> str:
        """A line about the last answer."""
        talk = self.conversation
        assert talk.answer is not None
        dense = answers.dense_bytes(talk.llm, talk.state.position)
        return answers.summary(talk.answer.stats, talk.answering["max_new_tokens"], dense)

    def _help(self, _: str) -> None:
        show.table([(f"/{name} {argument}".strip(), told) for name, (argument, told, _) in self.commands.items()])
        print("\nEnter sends; Alt-Enter or Ctrl-J begins a new line; what is pasted is one message.")
        print("Ctrl-C stops an answer; Up finds earlier messages.")

    def _clear(self, _: str) -> None:
        self.conversation.clear()
        self.texts = []

    def _file(self, path: str) -> None:
        text = console.read(Path(_needed(path, "a file")).expanduser())
        tokens = len(self.conversation.llm.encode(text))
        limit = self.conversation.llm.config.max_positions
        if tokens > limit:
            raise ValueError(f"{path} has {tokens:,} tokens and this model reads {limit:,}; a part of it may fit")
        self.texts.append(text)
        wrap.note(f"{path}, {tokens:,} tokens, is read with the next message.")

    def _load(self, path: str) -> None:
        self.conversation.load(_needed(path, "a file"))
        self.texts = []
        wrap.note(f"{len(self.conversation.messages)} messages, {self.conversation.state.position:,} tokens.")

    def _system(self, text: str) -> None:
        if text:
            self.conversation.set_system(text)
        else:
            print(self.conversation.system or "There is no system message but the template's own.")

    def _think(self, wanted: str) -> None:
        from reference.checks import one_of

        if wanted:
            one_of("/think", wanted, THINKING)
            self.conversation.set_thinking(THINKING[wanted])
        else:
            print(next(name for name, value in THINKING.items() if value is self.conversation.enable_thinking))

    def _policy(self, methods: str) -> None:
        from thresher.evaluation import methods as spelled

        if methods:
            try:
                self.conversation.set_policy(spelled.policy(methods))
            except ValueError as error:
                raise ValueError(str(error).replace("methods:", "/policy:")) from None
        else:
            print(spelled.name(self.conversation.policy))

    def _stats(self, _: str) -> None:
        from thresher.evaluation.methods import name

        talk = self.conversation
        state, counts = talk.state, talk.state.counts
        read, visible = int(sum(counts.keys_read)), int(sum(counts.keys_visible))
        run, total = int(sum(counts.neurons_run)), int(sum(counts.neurons_total))
        dense = show.size(answers.dense_bytes(talk.llm, state.position))
        rows = [
            ("policy", name(talk.policy)),
            ("read", f"{state.position:,} tokens of {talk.llm.config.max_positions:,}"),
            (
                "cache",
                f"{show.size(state.cache.nbytes)}, dense {dense}",
            ),
            ("keys read", f"{read / visible:.0%}" if visible else "none yet"),
            ("tokens evicted", f"{max(counts.keys_evicted, default=0):,}"),
        ]
        if run < total:
            rows.append(("neurons run", f"{run / total:.0%}"))
        if talk.answer is not None:
            rows.append(("last answer", self._took()))
        show.table(rows)


def _needed(argument: str, what: str) -> str:
    if not argument:
        raise ValueError(f"this command needs the name of {what}")
    return argument
