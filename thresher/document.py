"""A document that is read before anyone asks: where a prompt is cut so that questions can follow, and how a text that
is too long for the model loses its middle.

A prompt is a document and a question after it, in one message of the model's chat template. It is always cut at the end
of the document, so that both ways of asking, in one prompt or of a state that was kept, read the same ids.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from tokenizers import Tokenizer

from reference.checks import require
from thresher.text import check_text
from thresher.thinking import switch

if TYPE_CHECKING:
    from thresher.model import LanguageModel

CUT = "\ue000cut\ue000"  # private characters: no document has them


def split(
    llm: LanguageModel,
    document: str,
    *,
    system: str | None = None,
    chat: bool = True,
    enable_thinking: bool | None = None,
) -> tuple[list[int], str]:
    """The ids of a document, and the text that ends the prompt once a question has followed it.

    chat: through the chat template, where the model has one; else the text is as it is and nothing ends it. system: a
    system message. enable_thinking: as `LanguageModel.encode` takes it. ValueError for a template that does not keep
    the text that it is given.
    """
    template = llm.checkpoint.template if chat else None
    thinking: dict[str, Any] = switch(template, enable_thinking)
    if template is None:
        return (llm.encode(document) if document else []), ""
    head = [] if system is None else [{"role": "system", "content": system}]
    messages = [*head, {"role": "user", "content": f"{document}{CUT}"}]
    rendered = template.render(messages, **thinking)
    before, found, ending = rendered.partition(CUT)
    require(bool(found), "messages: the chat template changes what it is given, wanted one that keeps the text")
    return plain_ids(llm, before), ending


def plain_ids(llm: LanguageModel, text: str) -> list[int]:
    """The ids of a text that goes on from another: nothing is put before it."""
    return llm.tokenizer.encode(check_text("prompt", text), add_special_tokens=False).ids


def without_middle(
    tokenizer: Tokenizer, text: str, over: Callable[[str], int], *, tail: int = 0
) -> tuple[str, int] | None:
    """The text with its middle left out, and how many tokens are missing; None where even its ends are too much.

    over: how many tokens too long a text is, at most 0 where it fits. tail: tokens that follow the text; as much is
    kept of the beginning as of the end with these, as LongBench cuts its prompts.
    """
    excess = over(text)
    if excess <= 0:
        return text, 0
    ids = tokenizer.encode(text, add_special_tokens=False).ids
    keep = len(ids) - excess
    while keep >= 2:  # joined tokens may read as more than they were
        back = max(1, (keep + tail) // 2 - tail)
        shorter = "".join(tokenizer.decode(part) for part in (ids[: keep - back], ids[-back:]))
        excess = over(shorter)
        if excess <= 0:
            return shorter, len(ids) - keep
        keep -= excess
    return None
