"""A conversation with a model, whose past is read once: each message reads only what is new."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from itertools import takewhile
from time import perf_counter
from typing import Any

from loaders.chat import Message
from reference import Policy
from thresher.generate import Generation
from thresher.model import LanguageModel
from thresher.state import State
from thresher.thinking import Piece, switch

log = logging.getLogger(__name__)

Reading = Callable[[int], AbstractContextManager[Any]]


class TooLong(ValueError):
    """A prompt of `tokens` tokens for a model that reads at most `positions`."""

    def __init__(self, tokens: int, positions: int) -> None:
        super().__init__(f"prompt: got {tokens:,} tokens, wanted at most the model's {positions:,} positions")
        self.tokens, self.positions = tokens, positions


class Conversation:
    """Messages, and the state that has read them.

    messages: what was said so far, the system message included, without the reasoning. answering: what
    `LanguageModel.generate` takes by name, but for `enable_thinking`, which `set_thinking` changes. answer: the newest
    one, with its statistics. ValueError for a model without a chat template.
    """

    def __init__(
        self,
        llm: LanguageModel,
        policy: Policy | None = None,
        *,
        system: str | None = None,
        enable_thinking: bool | None = None,
        **answering: Any,
    ) -> None:
        if llm.checkpoint.template is None:
            raise ValueError(f"{llm.checkpoint.path}: got a model without a chat template, wanted one with")
        self.llm, self.policy, self.answering = llm, policy or Policy(), answering
        self.messages: list[Message] = []
        self.answer: Generation | None = None
        self.state = llm.new_state(self.policy)
        self.set_thinking(enable_thinking)
        if system is not None:
            self.set_system(system)

    @property
    def system(self) -> str | None:
        """The system message, if there is one."""
        first = self.messages[0] if self.messages else {}
        return first.get("content") if first.get("role") == "system" else None

    def set_system(self, text: str) -> None:
        """Replace the system message; the past is read again with the next message."""
        said = self.messages if self.system is None else self.messages[1:]
        self.messages = [{"role": "system", "content": text}, *said]

    def set_thinking(self, wanted: bool | None) -> None:
        """Let the model think before it answers, or not; None leaves it to the template. ValueError where that has no
        switch."""
        switch(self.llm.checkpoint.template, wanted)
        self.enable_thinking = wanted

    def set_policy(self, policy: Policy) -> None:
        """Go on under another policy; the past is read again with the next message."""
        self.state, self.policy = self.llm.new_state(policy), policy

    def clear(self) -> None:
        """Forget all that was said, but for the system message."""
        self.messages = self.messages[: self.system is not None]
        self.state, self.answer = self.llm.new_state(self.policy), None

    def say(self, text: str, reading: Reading = nullcontext) -> Iterator[Piece]:
        """Send a message: yields the answer in pieces, as they come.

        reading: called with the number of tokens to read, for a context in which they are read; what it gives is called
        with the tokens done after each chunk. Raises TooLong, before anything is changed, for a message that the
        model's positions have no room for. A message that is interrupted before anything was answered counts as not
        sent; an answer that is interrupted ends there.
        """
        messages = [*self.messages, {"role": "user", "content": text}]
        ids = self.llm.encode(messages, enable_thinking=self.enable_thinking)
        limit = self.llm.config.max_positions
        if len(ids) > limit:
            raise TooLong(len(ids), limit)
        state, new = self._continued(ids)
        place, started = _Place(state), perf_counter()
        try:
            with reading(len(new)) as progress:
                self.llm.prefill(new, state=state, progress=progress if callable(progress) else None)
        except BaseException:
            place.go_back()
            raise
        answer = self.llm.generate(state, **self.answering)
        took = perf_counter() - started
        try:
            yield from answer
        finally:
            if answer.token_ids:
                answer.stats.time_to_first_token += took
                self.messages = [*messages, {"role": "assistant", "content": answer.text}]
                self.answer = answer
            else:
                place.go_back()

    def _continued(self, ids: list[int]) -> tuple[State, list[int]]:
        """The state to go on from and the ids that it has not read. Where the past reads differently now, such as
        without the reasoning, the state is cut there; a new one where it cannot be."""
        held = self.state.sequence
        whole = not self.state.broken and self.state.position == len(self.state.token_ids)
        same = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(held, ids[:-1], strict=False)))
        if whole and 0 < same < len(held) and self.state.can_be_cut(self.llm.config):
            self.state.cut(min(same, self.state.position))
            held = self.state.sequence
        elif not whole or same < len(held):
            log.info("the past reads differently now: all %d tokens are read again", len(ids))
            self.state, held = self.llm.new_state(self.policy), []
        return self.state, ids[len(held) :]

    def save(self, path: str) -> None:
        """Write the conversation to a file, its cache included: `load` need not read anything again."""
        self.state.notes = {"messages": self.messages}
        self.state.save(path)

    def load(self, path: str) -> None:
        """Take up a conversation from a file, under the policy that it had.

        Raises ValueError for a file that holds none, or one of another model; this conversation then stays as it is.
        """
        state = State.load(path)
        messages = state.notes.get("messages")
        if not isinstance(messages, list):
            raise ValueError(f"{path}: got a state without messages, wanted one that a chat has saved")
        if state.model != self.llm.identity:
            raise ValueError(f"{path}: got a chat with another model ({state.model}), wanted {self.llm.identity}")
        self.state, self.messages, self.policy, self.answer = state, messages, state.given, None


class _Place:
    """Where a state stood, so that a message that was interrupted can be taken back."""

    def __init__(self, state: State) -> None:
        self._state, self._mark, self._tokens = state, state.mark(), len(state.token_ids)
        self._values = {name: getattr(state, name) for name in ("logits", "pending", "tail", "place")}
        self._length = state.length

    def go_back(self) -> None:
        """The state as it was, or a broken one where a layer has evicted since."""
        self._state.take_back(self._mark, "interrupted")
        del self._state.token_ids[self._tokens :]
        for name, value in self._values.items():
            setattr(self._state, name, value)
        self._state.resolve(self._length)
