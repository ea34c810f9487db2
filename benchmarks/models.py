"""Whole models that read one prompt and go on from it: ours, transformers and llama.cpp, from the same weights."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch
from transformers import AutoModelForCausalLM

import reference
import thresher
from accel.cpu import THREADS
from benchmarks.common import installed
from benchmarks.ffn import untrained
from loaders import catalogue
from reference import FastForwardLayer, FastForwardWeights, ModelConfig


def fastforward(config: ModelConfig) -> thresher.FastForward:
    """FastForward at half the neurons with predictors and compensators that nobody trained: they cost what trained ones
    cost, and choose no better than chance."""
    layers = []
    for n in range(config.layers):
        predictor, compensator = untrained(config.width, config.ffn_width, seed=n)
        layers.append(FastForwardLayer(predictor, replace(compensator, c2=0.01 * compensator.c2), 0.5))
    return thresher.FastForward(density=0.5, weights=FastForwardWeights(layers))


class Ours:
    """One sequence under one policy."""

    def __init__(self, llm: thresher.LanguageModel, policy: thresher.Policy | None = None) -> None:
        self.llm, self.policy = llm, policy

    def read(self, ids: list[int]) -> None:
        """A prompt, afresh, to the logits of the next token."""
        self.state = self.llm.prefill(ids, self.policy)

    def go_on(self, tokens: int) -> None:
        """So many tokens more, each the likeliest."""
        for _ in range(tokens):
            assert self.state.logits is not None
            reference.decode(self.llm.model, [self.state], [int(self.state.logits.argmax())])


class Transformers:
    """The same through transformers: torch's scaled_dot_product_attention, the prompt in one shot."""

    def __init__(self, model: str, dtype: torch.dtype) -> None:
        self.model = AutoModelForCausalLM.from_pretrained(
            catalogue.find(model), dtype=dtype, attn_implementation="sdpa"
        )

    @torch.inference_mode()
    def read(self, ids: list[int]) -> None:
        """A prompt, afresh, to the logits of the next token."""
        self.seen = self.model(torch.tensor([ids]), use_cache=True, logits_to_keep=1)

    @torch.inference_mode()
    def go_on(self, tokens: int) -> None:
        """So many tokens more, each the likeliest."""
        for _ in range(tokens):
            token = self.seen.logits[:, -1:].argmax(-1)
            self.seen = self.model(token, past_key_values=self.seen.past_key_values, use_cache=True)


class LlamaCpp:
    """The same through llama.cpp, from the GGUF file that our weights were converted from."""

    def __init__(self, model: str, positions: int) -> None:
        from llama_cpp import Llama

        path = str(catalogue.gguf_file(model))
        self.model = Llama(path, n_ctx=positions, n_threads=THREADS, n_threads_batch=THREADS, verbose=False)

    def read(self, ids: list[int]) -> None:
        """A prompt, afresh, to the logits of the next token."""
        self.model.reset()
        self.model.eval(ids)

    def go_on(self, tokens: int) -> None:
        """So many tokens more, each the likeliest."""
        for _ in range(tokens):
            logits = self.model._ctx.get_logits()
            self.model.eval([int(np.ctypeslib.as_array(logits, (self.model.n_vocab(),)).argmax())])


def has_llama_cpp(model: str) -> bool:
    """Whether llama.cpp is there and has a file to read."""
    known = model in {entry.name for entry in catalogue.models()}
    return known and installed("llama-cpp-python") is not None
