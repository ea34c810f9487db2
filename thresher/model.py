"""A loaded model and what can be asked of it."""

from __future__ import annotations

import logging
import os
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from typing import Any, TypedDict, Unpack, overload

import numpy as np
from tokenizers import Tokenizer

import accel
import reference
from loaders import Checkpoint, load_checkpoint
from loaders.catalogue import find
from loaders.chat import Message
from loaders.fastforward import fingerprint
from loaders.generation import Suggested
from reference import CHUNK, FastForward, Model, ModelConfig, Policy, Sampling
from reference.checks import one_of, require
from reference.fastforward import check_dense
from reference.state import check_tokens
from thresher.experts import ExpertMemory, fetch_if_they_fit, stored_bytes, told
from thresher.generate import Answer, Batch, BatchGeneration, Generation, Settings
from thresher.kernels import compile_kernels
from thresher.memory import available, give_back
from thresher.sizes import read_size
from thresher.state import State
from thresher.text import check_text
from thresher.thinking import Tags, find_tags, switch
from thresher.trained import weights_for

log = logging.getLogger(__name__)

LONG, BESIDES = 32_768, 1 << 30  # tokens and bytes that "auto" wants a GPU to have room for, besides the weights


class Options(TypedDict, total=False):
    """What `LanguageModel.generate` takes by name; its docstring says what each means."""

    max_new_tokens: int
    min_new_tokens: int
    sampling: str
    temperature: float | None
    top_k: int | None
    top_p: float | None
    min_p: float | None
    repetition_penalty: float | None
    seed: int | None
    stop: str | Sequence[str] | None
    chunk: int
    progress: Callable[[int], None] | None
    template_variables: Mapping[str, Any] | None
    enable_thinking: bool | None
    thinking_budget: int | None
    separate_reasoning: bool


Prompt = str | Sequence[int] | Sequence[Message] | State


def load(
    model: str | os.PathLike[str],
    *,
    backend: str = "auto",
    dtype: str = "float32",
    adapter: str | os.PathLike[str] | None = None,
    expert_memory: int | str | None = None,
) -> LanguageModel:
    """Load a pulled model by name, a Hugging Face directory, or a GGUF file.

    backend: "reference" (NumPy, the definition), "cpu", "cuda" (an NVIDIA GPU), or "auto": the GPU where there is one
      that the model and its cache fit, else the processor. `LanguageModel.device` tells which.
    dtype: what weights and cache are stored in: float32, float64, float16 or bfloat16; or int8, whose cache is in
      bfloat16, for "cpu" and "reference": a quarter of float32's memory, and the fastest to decode.
    adapter: a directory with a LoRA or AdaLoRA adapter in PEFT's layout, merged into the weights.
    expert_memory: bytes, or a text such as "2GB", that the experts of a mixture may take. Where they need more they
      stay on disk, those used most are kept, and a line in the log says so. By default they may take what memory there
      is, and half of what the rest of the model leaves where that is too little.
    Raises FileNotFoundError for a model that is not there and ValueError for one that cannot be read, in one line.
    """
    if dtype == "int8":
        require(backend != "cuda", "dtype: got int8 for the GPU, wanted float32, float16 or bfloat16 there")
        backend = "cpu" if backend == "auto" else backend
    most = None if expert_memory is None else read_size("expert_memory", expert_memory)
    module = None if backend == "auto" else accel.backend(backend)
    checkpoint = load_checkpoint(find(os.fspath(model)), dtype=dtype, adapter=adapter, stored_experts=True)
    nbytes = checkpoint.weights.nbytes  # without experts
    free = None if backend == "cuda" else available()  # a GPU says itself what it has no room for
    room = most if most is not None or free is None else free - nbytes - BESIDES
    weights = fetch_if_they_fit(checkpoint.weights, room)
    checkpoint = replace(checkpoint, weights=weights)
    module = module or accel.backend("auto", _bytes_needed(checkpoint, most))
    llm = LanguageModel(checkpoint, module, expert_memory=most)
    del checkpoint  # whose arrays were copied
    give_back()
    if llm.experts_on_disk:
        log.warning(llm.experts_on_disk)
    return llm


class LanguageModel:
    """A model with its tokenizer and backend. `config` is its ModelConfig, `tokenizer` a `tokenizers.Tokenizer`."""

    def __init__(self, checkpoint: Checkpoint, backend: Any = reference, *, expert_memory: int | None = None) -> None:
        compile_kernels(backend, Policy())
        weights = backend.prepare_weights(checkpoint.weights)
        checkpoint.source.let_go()  # a file whose numbers were copied takes no memory
        self.expert_memory = ExpertMemory((available() or 0) // 2 if expert_memory is None else expert_memory)
        weights = self.expert_memory.keep_some(weights)
        self.checkpoint = replace(checkpoint, weights=weights)
        self.model = Model(checkpoint.config, weights, backend)

    @property
    def config(self) -> ModelConfig:
        """The model's shape."""
        return self.model.config

    @property
    def device(self) -> str:
        """What computes: "cpu", or the GPU's name, compute capability and memory."""
        name = getattr(self.model.backend, "device_name", None)
        return "cpu" if name is None else str(name())

    @property
    def experts_on_disk(self) -> str:
        """What of a mixture is read from its file when it is needed, in a line; "" where all is in memory."""
        return told(self.model.weights, self.expert_memory.budget)

    @property
    def tokenizer(self) -> Tokenizer:
        """Text to token ids and back."""
        return self.checkpoint.tokenizer

    @property
    def stop_ids(self) -> tuple[int, ...]:
        """Tokens that end an answer."""
        return self.checkpoint.generation.stop_ids

    @cached_property
    def thinking_tags(self) -> Tags | None:
        """What stands before and after the model's reasoning; None for one that does not tell it apart."""
        return find_tags(self.tokenizer, self.checkpoint.template)

    @property
    def suggested_sampling(self) -> Suggested:
        """How the model's authors sample, as generation_config.json says."""
        return self.checkpoint.generation.suggested

    @property
    def identity(self) -> str:
        """The shape that a saved state must share to be continued here."""
        c = self.config
        shape = f"{c.layers} layers of width {c.width}, {c.kv_heads} KV heads of {c.head_dim}"
        return f"{c.family}, {shape}, {c.vocab_size} ids"

    def __repr__(self) -> str:
        table, backend = self.model.weights.embedding, self.model.backend
        stored = f"{getattr(table, 'stored', table.dtype)} on {backend.__name__.removeprefix('accel.')}"
        return f"LanguageModel({self.checkpoint.path}: {self.identity}, {stored})"

    def encode(
        self,
        prompt: str | Sequence[int] | Sequence[Message],
        *,
        template_variables: Mapping[str, Any] | None = None,
        enable_thinking: bool | None = None,
    ) -> list[int]:
        """Token ids of a prompt: text as it is, messages through the model's chat template.

        template_variables: what the template reads besides, such as {"tools": […]}. enable_thinking: whether the model
        is to reason before it answers; None leaves it to the template. A list of ids passes through. Raises ValueError
        for messages where the model has no template, for variables that no template can take, and for a template that
        has no switch for thinking.
        """
        variables = template_variables or {}
        if isinstance(prompt, str):
            _no_variables(variables, enable_thinking)
            generation = self.checkpoint.generation
            bos = [generation.bos_id] if generation.add_bos and generation.bos_id is not None else []
            return bos + self.tokenizer.encode(check_text("prompt", prompt), add_special_tokens=False).ids
        require(not isinstance(prompt, bytes), "prompt: got bytes, wanted text, token ids or messages")
        items: list[Any] = list(prompt)
        if items and isinstance(items[0], Mapping):
            template = self.checkpoint.template
            if template is None:
                raise ValueError(f"messages: {self.checkpoint.path} has no chat template, wanted text or token ids")
            thinking = switch(template, enable_thinking)
            text = template.render(items, **{"add_generation_prompt": True, **variables, **thinking})
            return self.tokenizer.encode(check_text("messages", text), add_special_tokens=False).ids
        _no_variables(variables, enable_thinking)
        require(
            all(isinstance(item, (int, np.integer)) for item in items),
            f"prompt: got a list of {type(items[0]).__name__ if items else 'nothing'}, "
            "wanted text, token ids or messages",
        )
        return [int(item) for item in items]

    def new_state(self, policy: Policy | None = None, *, trace: bool = False) -> State:
        """An empty sequence under `policy`. ValueError where the policy cannot mean anything for this model."""
        ready = self._ready(policy)
        state = reference.new_state(self.model, ready, trace=trace)
        compile_kernels(self.model.backend, ready)
        return State(**vars(state), given=state.policy, model=self.identity)

    def prefill(
        self,
        prompt: str | Sequence[int] | Sequence[Message],
        policy: Policy | None = None,
        *,
        state: State | None = None,
        chunk: int = CHUNK,
        trace: bool = False,
        progress: Callable[[int], None] | None = None,
    ) -> State:
        """Read a prompt and return the State to go on from; with `state`, read it after what that state holds.

        A fraction in the policy is a share of all that has been read when this prompt ends.
        chunk: tokens per chunk. trace: keep every choice of the methods in `state.trace`. progress: called with the
        tokens done after each chunk. Raises ValueError for a prompt beyond the model's positions.
        """
        state = self.new_state(policy, trace=trace) if state is None else self._own(state, policy)
        ids = state.sequence[state.position :] + self.encode(prompt)
        check_tokens(self.config, state, ids)
        state.resolve(state.position + len(ids))
        before = state.position
        try:
            reference.prefill(self.model, state, ids, chunk=chunk, progress=progress)
        finally:  # an interrupt may come when some of it has been read
            if read := ids[: state.position - before]:
                state.token_ids += read
                state.pending = state.tail = None
                state.place = ""
        return state

    def logits(
        self,
        prompt: str | Sequence[int] | Sequence[Message] | np.ndarray,
        policy: Policy | None = None,
        chunk: int = CHUNK,
    ) -> np.ndarray:
        """Teacher-forced logits: a prompt of T tokens -> (T, V) float32, row t the scores of token t + 1."""
        token_ids = prompt if isinstance(prompt, np.ndarray) else self.encode(prompt)
        rows = reference.prefill(self.model, self.new_state(policy), token_ids, chunk=chunk, every=True)
        return rows.astype(np.float32, copy=False)

    @overload
    def generate(self, prompt: Prompt, policy: Policy | None = None, **options: Unpack[Options]) -> Generation: ...
    @overload
    def generate(self, prompt: Batch, policy: Policy | None = None, **options: Unpack[Options]) -> BatchGeneration: ...
    def generate(
        self,
        prompt: Prompt | Batch,
        policy: Policy | None = None,
        *,
        max_new_tokens: int = 256,
        min_new_tokens: int = 0,
        sampling: str = "greedy",
        temperature: float | None = None,
        top_k: int | None = None,
        top_p: float | None = None,
        min_p: float | None = None,
        repetition_penalty: float | None = None,
        seed: int | None = None,
        stop: str | Sequence[str] | None = None,
        chunk: int = CHUNK,
        progress: Callable[[int], None] | None = None,
        template_variables: Mapping[str, Any] | None = None,
        enable_thinking: bool | None = None,
        thinking_budget: int | None = None,
        separate_reasoning: bool = True,
    ) -> Generation | BatchGeneration:
        """Continue a prompt (text, token ids, messages, or a State, which advances): an iterator of pieces of text.

        sampling: "greedy", or "model" for what its authors set in generation_config.json; temperature (0 is greedy) to
        repetition_penalty, where given, count before either. `stop` ends the answer before any of these texts; the name
        of a special token is one too. A stop token among the first `min_new_tokens` - 1 does not end it: as many as
        `max_new_tokens` make answers of one length, whose times compare. template_variables, enable_thinking: as
        `encode` takes them.

        What a model reasons before it answers is `.reasoning`, and stop texts are not looked for in it. It may have
        `thinking_budget` tokens; then its closing tag is fed, and the answer goes on. separate_reasoning: False leaves
        the reasoning in the text, its tags too.

        `.stats` tells afterwards what was done. Nothing is computed until the first piece is asked for, but bad
        arguments raise ValueError at once, and one that does nothing a UserWarning. A `Batch` of prompts gives an
        iterator of (index, piece).
        """
        one_of("sampling", sampling, ("greedy", "model"))
        stops = [stop] if isinstance(stop, str) else list(stop or [])
        given: dict[str, Any] = {
            "temperature": temperature,
            "top_k": top_k,
            "top_p": top_p,
            "min_p": min_p,
            "repetition_penalty": repetition_penalty,
        }
        authors = vars(self.suggested_sampling) if sampling == "model" else {}
        chosen = [*authors.items(), *given.items()]  # later ones count
        drawing = Sampling(**{name: value for name, value in chosen if value is not None})
        if idle := [name for name in drawing.idle if given[name] is not None]:
            told = f"{', '.join(idle)}: does nothing at temperature 0, which takes the likeliest token"
            warnings.warn(told, stacklevel=2)
        settings = Settings(
            drawing, seed, stops, max_new_tokens, min_new_tokens, chunk, progress, thinking_budget, separate_reasoning
        )

        def answer(each: Prompt) -> Answer:
            return self._answer(each, policy, settings, template_variables, enable_thinking)

        if isinstance(prompt, Batch):
            return BatchGeneration([answer(each) for each in prompt.prompts], prompt.places)
        return Generation(answer(prompt))

    def _answer(
        self,
        prompt: Prompt,
        policy: Policy | None,
        settings: Settings,
        variables: Mapping[str, Any] | None,
        thinking: bool | None,
    ) -> Answer:
        if isinstance(prompt, State):
            _no_variables(variables or {}, thinking)
            state = self._own(prompt, policy)
            require(state.logits is not None, "state: got an empty one, wanted one that `prefill` returned")
            return Answer(self, state, [], settings)
        state, ids = self.new_state(policy), self.encode(prompt, template_variables=variables, enable_thinking=thinking)
        check_tokens(self.config, state, ids)
        return Answer(self, state, ids, settings)

    def _own(self, state: State, policy: Policy | None) -> State:
        """The state, once it is clear that it is this model's; its cache moves to this backend if it must."""
        require(policy is None, "policy: a state goes on under its own, wanted none beside it")
        require(
            state.model == self.identity,
            f"state: got one of another model ({state.model}), wanted {self.identity}",
        )
        if type(state.cache) is not self.model.backend.KVCache:
            state.cache = self.model.backend.restore_cache([layer.arrays() for layer in state.cache.layers])
            state.logits = None if state.logits is None else np.asarray(state.logits)
        state.given = self._ready(state.given)
        compile_kernels(self.model.backend, state.given)
        state.resolve(state.length)
        return state

    @cached_property
    def _fingerprint(self) -> str:
        return fingerprint(self.checkpoint.source)

    def _ready(self, policy: Policy | None) -> Policy:
        """The policy with FastForward's weights read from the file that it names, or from one that comes along."""
        policy = policy or Policy()
        ffn = policy.ffn
        if isinstance(ffn, FastForward):
            check_dense(self.config)
            ffn = replace(ffn, weights=weights_for(ffn, self._fingerprint, self.checkpoint.path))
        overrides = {layer: self._ready(inner) for layer, inner in policy.overrides.items()}
        return replace(policy, ffn=ffn, overrides=overrides)


def _bytes_needed(checkpoint: Checkpoint, expert_memory: int | None) -> int:
    """Weights, of experts that stay on disk as many as may be kept, a long prompt's cache, and what a pass takes
    besides."""
    stored = stored_bytes(checkpoint.weights)
    experts = stored if expert_memory is None else min(stored, expert_memory)
    config, itemsize = checkpoint.config, checkpoint.weights.stored_cache.itemsize
    cache = config.cache_bytes_per_token(itemsize) * min(config.max_positions, LONG)
    return checkpoint.weights.nbytes + experts + cache + BESIDES


def _no_variables(variables: Mapping[str, Any], thinking: bool | None) -> None:
    """ValueError where some are given: they would do nothing, unnoticed."""
    switch(None, thinking)
    require(
        not variables,
        f"template_variables: got {', '.join(variables)} for a prompt that goes through no template, wanted none",
    )
