"""Text as it comes from files, pipes and options, and how it becomes a prompt that fits the model."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from thresher.cli import answers, console, wrap

if TYPE_CHECKING:
    from thresher.model import LanguageModel


def document(files: Sequence[Path] | None, wanted: bool) -> tuple[str, str]:
    """The text of all files, or what is piped in where none is named and text is wanted; and what to call it."""
    if files:
        return "\n\n".join(console.read(file) for file in files), " with ".join(str(file) for file in files)
    if wanted and console.piped():
        return console.read(Path("-")), "The piped text"
    return "", ""


def lines(file: Path | None) -> list[str]:
    """The lines of a file of prompts, without the empty ones; none where no file is named."""
    if file is None:
        return []
    found = [line.strip() for line in console.read(file).split("\n")]
    if not any(found):
        raise ValueError(f"{file}: got no prompts, wanted one in each line")
    return [line for line in found if line]


@dataclass(frozen=True)
class Text:
    """How text becomes a prompt.

    name: what to call the document. room: tokens that are left free for an answer by cutting its middle; 0 refuses what
    is too long. think: whether the model is to reason first, None for as the template has it.
    """

    llm: LanguageModel
    name: str
    system: str | None
    raw: bool
    room: int
    think: bool | None

    def question(self, text: str, ending: str) -> list[int]:
        """The ids of a question about what was read."""
        from thresher.document import plain_ids

        return plain_ids(self.llm, f"\n\n{text}{ending}")

    def alone(self, text: str) -> list[int]:
        """The ids of a prompt without a document."""
        text = self._fitting(text, self._whole)
        return self._whole(text)

    def opening(self, document: str, question: str = "") -> tuple[list[int], str]:
        """The ids of a document, and the text that ends a prompt once a question has followed it."""
        from thresher.document import split

        def opened(text: str) -> tuple[list[int], str]:
            return split(self.llm, text, system=self.system, chat=not self.raw, enable_thinking=self.think)

        def both(text: str) -> list[int]:
            ids, ending = opened(text)
            return ids + self.question(question, ending)

        return opened(self._fitting(document, both))

    def _whole(self, text: str) -> list[int]:
        chat = not self.raw and self.llm.checkpoint.template is not None
        prompt: Any = answers.messages(text, self.system) if chat else text
        return self.llm.encode(prompt, enable_thinking=self.think)

    def _fitting(self, text: str, ids: Callable[[str], list[int]]) -> str:
        """The text, without its middle where its prompt would not fit; ValueError where it may not or cannot be cut."""
        from thresher.document import without_middle

        limit, name = self.llm.config.max_positions, self.name or "The prompt"
        if not self.room:
            answers.refuse(name, len(ids(text)), limit)
            return text
        shorter = without_middle(self.llm.tokenizer, text, lambda each: len(ids(each)) + self.room - limit)
        if shorter is None:
            raise ValueError(
                f"{name}: the model's {limit:,} positions have no room for it and {self.room:,} tokens more"
            )
        found, left_out = shorter
        if left_out:
            wrap.note(f"{left_out:,} tokens in the middle of {name} are left out")
        return found
