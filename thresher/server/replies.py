"""What goes back, in OpenAI's form: one document, or pieces of one as server-sent events."""

from __future__ import annotations

import json
import uuid
from collections.abc import Sequence
from dataclasses import dataclass, field
from time import time
from typing import Any

from tokenizers import Tokenizer

from thresher.server.bodies import Request
from thresher.server.scheduler import Event, Job, Token
from thresher.text import BROKEN

DONE = b"data: [DONE]\n\n"


def error(message: str, kind: str, param: str | None = None, code: str | None = None) -> dict[str, Any]:
    """An error's body."""
    return {"error": {"message": message, "type": kind, "param": param, "code": code}}


def event(document: dict[str, Any]) -> bytes:
    """A document as a server-sent event."""
    return f"data: {json.dumps(document, ensure_ascii=False)}\n\n".encode()


def _reasoning(text: str) -> dict[str, Any]:
    """A model's reasoning under both names that clients know: SGLang, llama.cpp and DeepSeek have the first, vLLM the
    second. None where there is none."""
    return {"reasoning_content": text, "reasoning": text} if text else {}


@dataclass
class Writer:
    """Writes the documents of one request, whose jobs are its choices in order."""

    request: Request
    model: str
    tokenizer: Tokenizer
    jobs: Sequence[Job]
    created: int = field(default_factory=lambda: int(time()))
    written: dict[int, int] = field(default_factory=dict)  # characters of each choice's tokens so far

    def __post_init__(self) -> None:
        self.id = f"{'chatcmpl' if self.request.chat else 'cmpl'}-{uuid.uuid4().hex}"

    def opening(self) -> list[dict[str, Any]]:
        """What a stream starts with: in a chat, whose words they are."""
        if not self.request.chat:
            return []
        role = {"role": "assistant", "content": ""}
        return [self._chunk([self._choice(n, {"delta": role}, None, "")]) for n in range(len(self.jobs))]

    def piece(self, told: Event) -> dict[str, Any]:
        """A piece of a stream."""
        number = self.jobs.index(told.job)
        reasoning = told.text.reasoning
        delta: dict[str, Any] = _reasoning(reasoning)
        if told.text or (told.tokens and not reasoning):
            delta["content"] = told.text
        body: dict[str, Any] = {"delta": delta} if self.request.chat else {"text": told.text}
        logprobs = self._logprobs(number, told.tokens) if told.tokens else None
        return self._chunk([self._choice(number, body, logprobs, told.finish_reason)])

    def closing(self) -> list[dict[str, Any]]:
        """What a stream ends with: what it took, where that was asked for."""
        return [self._document(True, [], usage=self.usage())] if self.request.include_usage else []

    def whole(self, events: Sequence[Event]) -> dict[str, Any]:
        """The document of an answer that is not streamed, from all that its jobs told."""
        choices = []
        for number, job in enumerate(self.jobs):
            own = [told for told in events if told.job is job]
            text, tokens = "".join(told.text for told in own), [token for told in own for token in told.tokens]
            reasoning = "".join(told.text.reasoning for told in own)
            message = {"role": "assistant", "content": text, "refusal": None, **_reasoning(reasoning)}
            body: dict[str, Any] = {"message": message} if self.request.chat else {"text": text}
            choices.append(self._choice(number, body, self._logprobs(number, tokens), own[-1].finish_reason))
        return self._document(False, choices, usage=self.usage())

    def usage(self) -> dict[str, Any]:
        """Tokens of all choices; a prompt that several share counts once."""
        copies = self.request.copies
        prompt = sum(job.answer.stats.prompt_tokens for job in self.jobs[::copies])
        completion = sum(len(job.answer.token_ids) for job in self.jobs)
        reused = sum(job.reused for job in self.jobs[::copies])
        reasoning = sum(job.answer.stats.reasoning_tokens for job in self.jobs)
        return {
            "prompt_tokens": prompt,
            "completion_tokens": completion,
            "total_tokens": prompt + completion,
            "prompt_tokens_details": {"cached_tokens": reused},
            "completion_tokens_details": {"reasoning_tokens": reasoning},
        }

    def _chunk(self, choices: list[dict[str, Any]]) -> dict[str, Any]:
        usage: dict[str, Any] = {"usage": None} if self.request.include_usage else {}
        return self._document(True, choices, **usage)

    def _document(self, streamed: bool, choices: list[dict[str, Any]], **besides: Any) -> dict[str, Any]:
        kind = "text_completion"
        if self.request.chat:
            kind = "chat.completion.chunk" if streamed else "chat.completion"
        head = {"id": self.id, "object": kind, "created": self.created, "model": self.model}
        return {**head, "choices": choices, **besides}

    @staticmethod
    def _choice(number: int, body: dict[str, Any], logprobs: Any, reason: str) -> dict[str, Any]:
        # A model that has no more positions has reached its length, in OpenAI's words.
        told = {"": None, "positions": "length"}.get(reason, reason)
        return {"index": number, **body, "logprobs": logprobs, "finish_reason": told}

    def _logprobs(self, number: int, tokens: Sequence[Token]) -> dict[str, Any] | None:
        """The tokens' log-probabilities in the form of the request's kind, None where none were asked for."""
        if self.request.top is None:
            return None
        if self.request.chat:
            return {"content": [self._in_chat(token) for token in tokens], "refusal": None}
        offsets = []
        for token in tokens:
            offsets.append(self.written.get(number, 0))
            self.written[number] = offsets[-1] + len(self._text(token.id))
        return {
            "tokens": [self._text(token.id) for token in tokens],
            "token_logprobs": [token.logprob for token in tokens],
            "top_logprobs": [{self._text(i): logprob for i, logprob in token.top} for token in tokens],
            "text_offset": offsets,
        }

    def _in_chat(self, token: Token) -> dict[str, Any]:
        top = [self._named(i, logprob) for i, logprob in token.top]
        return {**self._named(token.id, token.logprob), "top_logprobs": top}

    def _named(self, token: int, logprob: float) -> dict[str, Any]:
        text = self._text(token)
        return {"token": text, "logprob": logprob, "bytes": None if BROKEN in text else list(text.encode())}

    def _text(self, token: int) -> str:
        return self.tokenizer.decode([token], skip_special_tokens=False)
