"""Real weights on real text: perplexity as transformers computes it, and a needle found in a play."""

from __future__ import annotations

import json
from functools import cache
from importlib.resources import files
from pathlib import Path

import numpy as np
import pytest

import accel
import reference
from loaders import Checkpoint, catalogue, load_checkpoint
from reference import Model
from tests.loaders.chats import CONVERSATIONS, TOOLS

pytestmark = pytest.mark.real

SMOLLM2, QWEN = "smollm2-135m-instruct", "qwen2.5-coder-0.5b-instruct"
TOKENS = 512  # that perplexity is measured on
TRICKY = (
    "  Two spaces, tab\there,\r\nnew line\n\n\n1234567890 + 3.14 = ½?"
    " It's THEY'LL l'été naïve ﬁ 中文 日本語 한국어 🙂👩‍🚀"
    "<|im_start|>user\nx<|im_end|> <|endoftext|>e \u00a0 \u200b end "
)
FACT = "The password to the treasure vault is 7421."
QUESTION = "According to the text, what is the password to the treasure vault?"


def play() -> str:
    """The text that thresher ships."""
    return (files("thresher") / "data" / "the-tempest.txt").read_text(encoding="utf-8")


def perplexity(logits: np.ndarray, ids: np.ndarray) -> float:
    """exp(-mean log p(next token)): logits (T, V) after each of ids (T,)."""
    scores = logits[:-1].astype(np.float64)
    peak = scores.max(axis=1)
    log_total = peak + np.log(np.exp(scores - peak[:, None]).sum(axis=1))
    return float(np.exp((log_total - scores[np.arange(len(ids) - 1), ids[1:]]).mean()))


@cache
def recorded(name: str) -> dict:
    return json.loads(Path(__file__).with_name("real.json").read_text())[name]


@pytest.fixture(params=[SMOLLM2, QWEN], scope="module")
def pulled(request: pytest.FixtureRequest) -> str:
    if not catalogue.is_pulled(request.param):
        pytest.skip(f"`thresher pull {request.param}` first")
    return request.param


@pytest.fixture(scope="module")
def checkpoint(pulled: str) -> Checkpoint:
    return load_checkpoint(catalogue.find(pulled))


def test_perplexity_is_that_of_transformers(pulled: str, checkpoint: Checkpoint) -> None:
    ids = np.array(checkpoint.tokenizer.encode(play(), add_special_tokens=False).ids[:TOKENS])
    model = Model(checkpoint.config, checkpoint.weights, reference)
    logits = reference.prefill(model, reference.new_state(model), ids, every=True)
    assert perplexity(logits, ids) == pytest.approx(recorded(pulled)["perplexity"], rel=1e-3)


def test_tokens_are_those_of_transformers(pulled: str, checkpoint: Checkpoint) -> None:
    encoded = checkpoint.tokenizer.encode(TRICKY, add_special_tokens=False)
    assert encoded.ids == recorded(pulled)["tricky"]


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning")
@pytest.mark.parametrize("conversation", ["one", "system", "turns"])
@pytest.mark.parametrize("tools", [None, TOOLS])
def test_chat_text_is_that_of_transformers(checkpoint: Checkpoint, conversation: str, tools: list | None) -> None:
    transformers = pytest.importorskip("transformers")
    theirs = transformers.AutoTokenizer.from_pretrained(checkpoint.path)
    messages, variables = CONVERSATIONS[conversation], {"tools": tools, "add_generation_prompt": True}
    assert checkpoint.template is not None
    text = checkpoint.template.render(messages, **variables)
    assert text == theirs.apply_chat_template(messages, tokenize=False, **variables)
    ids = checkpoint.tokenizer.encode(text, add_special_tokens=False).ids
    assert ids == theirs.apply_chat_template(messages, return_dict=False, **variables)


def test_gguf_file_gives_the_arrays_of_the_directory(checkpoint: Checkpoint) -> None:
    if checkpoint.path.name != SMOLLM2:
        pytest.skip("one real file is enough, and the smaller one is quicker")
    straight = load_checkpoint(catalogue.gguf_file(SMOLLM2))
    assert straight.config == checkpoint.config
    assert straight.generation == checkpoint.generation
    np.testing.assert_array_equal(straight.weights.embedding, checkpoint.weights.embedding)
    for name in ("w_q", "w_k", "w_down", "ffn_norm"):
        ours, theirs = (getattr(c.weights.layers[29], name) for c in (straight, checkpoint))
        np.testing.assert_array_equal(ours, theirs, err_msg=name)


@pytest.mark.parametrize("length", [1000, 4000, 8000])
def test_needle_is_found(pulled: str, checkpoint: Checkpoint, length: int) -> None:
    if pulled == SMOLLM2 and length > 4000:
        pytest.skip("beyond what so small a model does well")
    backend = accel.backend("auto")
    model = Model(checkpoint.config, backend.prepare_weights(checkpoint.weights), backend)
    assert "7421" in answer(model, checkpoint, f"Read this text:\n\n{haystack(checkpoint, length)}\n\n{QUESTION}")


def haystack(checkpoint: Checkpoint, length: int) -> str:
    """About `length` tokens of whole paragraphs, the fact in their middle; a longer text starts again."""
    paragraphs, tokens = [], 0
    while tokens < length:
        for paragraph in play().split("\n\n"):
            tokens += len(checkpoint.tokenizer.encode(paragraph + "\n\n", add_special_tokens=False).ids)
            if tokens >= length:
                break
            paragraphs.append(paragraph)
    paragraphs.insert(len(paragraphs) // 2, FACT)
    return "\n\n".join(paragraphs)


def answer(model: Model, checkpoint: Checkpoint, question: str) -> str:
    """At most 30 greedy tokens."""
    assert checkpoint.template is not None
    text = checkpoint.template.render([{"role": "user", "content": question}])
    state = reference.new_state(model)
    logits = reference.prefill(model, state, checkpoint.tokenizer.encode(text, add_special_tokens=False).ids)
    ids = [int(logits.argmax())]
    while ids[-1] not in checkpoint.generation.stop_ids and len(ids) < 30:
        reference.decode(model, [state], ids[-1:])
        assert state.logits is not None
        ids.append(int(state.logits.argmax()))
    return checkpoint.tokenizer.decode(ids)
