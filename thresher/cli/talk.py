"""The commands that answer: `generate`, `chat`, `demo`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from thresher.cli import console, options, show

if TYPE_CHECKING:
    from reference import Policy
    from thresher.generate import Generation
    from thresher.model import LanguageModel


def generate(
    model: options.ModelName,
    prompt: Annotated[
        str, typer.Option("-p", "--prompt", help="The prompt; with --file, what is asked of the file.")
    ] = "",
    file: Annotated[
        Path | None, typer.Option("-f", "--file", help="A text to read before the prompt; - for standard input.")
    ] = None,
    system: options.System = None,
    raw: Annotated[bool, typer.Option("--raw", help="Continue the text as it is, without the chat template.")] = False,
    max_new_tokens: options.MaxNewTokens = 256,
    min_new_tokens: options.MinNewTokens = 0,
    sampling: options.Sampling = "greedy",
    temperature: options.Temperature = None,
    top_k: options.TopK = None,
    top_p: options.TopP = None,
    min_p: options.MinP = None,
    repetition_penalty: options.RepetitionPenalty = None,
    seed: options.Seed = None,
    stop: options.Stop = None,
    select: options.Select = "",
    evict: options.Evict = "",
    ffn: options.Ffn = "",
    chunk: options.Chunk = 128,
    backend: options.Backend = "auto",
    dtype: options.Dtype = "float32",
    adapter: options.Adapter = None,
    json: options.Json = False,
) -> None:
    """Answer one prompt, streaming."""
    text = "\n\n".join(filter(None, [console.read(file) if file else "", prompt]))
    if not text:
        raise ValueError("prompt: got nothing, wanted --prompt TEXT, --file PATH, or both")
    policy = options.policy(select, evict, ffn)
    llm = _load(model, policy, backend, dtype, adapter)
    templated = not raw and llm.checkpoint.template is not None
    ids = llm.encode(_messages([text], system) if templated else text)
    with show.token_progress(len(ids)) as progress:
        answer = llm.generate(
            ids,
            policy,
            max_new_tokens=max_new_tokens,
            min_new_tokens=min_new_tokens,
            sampling=sampling,
            temperature=temperature,
            top_k=top_k,
            top_p=top_p,
            min_p=min_p,
            repetition_penalty=repetition_penalty,
            seed=seed,
            stop=stop,
            chunk=chunk,
            progress=progress,
        )
        if json:
            for _ in answer:
                pass
        else:
            _stream(answer)
    if json:
        show.emit_json({"text": answer.text, "token_ids": answer.token_ids, "stats": answer.stats.as_dict()})
    else:
        print(_summary(answer), file=sys.stderr)


def chat(
    model: options.ModelName,
    system: options.System = None,
    max_new_tokens: options.MaxNewTokens = 512,
    sampling: options.Sampling = "greedy",
    temperature: options.Temperature = None,
    top_k: options.TopK = None,
    top_p: options.TopP = None,
    min_p: options.MinP = None,
    repetition_penalty: options.RepetitionPenalty = None,
    seed: options.Seed = None,
    stop: options.Stop = None,
    select: options.Select = "",
    evict: options.Evict = "",
    ffn: options.Ffn = "",
    backend: options.Backend = "auto",
    dtype: options.Dtype = "float32",
    adapter: options.Adapter = None,
) -> None:
    """Talk with a model; an empty line or Ctrl-D ends. Only what is new is read at each turn.

    A budget that is a fraction grows with the conversation: it is a share of all that was read up to the last message.
    """
    policy = options.policy(select, evict, ffn)
    llm = _load(model, policy, backend, dtype, adapter)
    messages = _messages([], system)
    state = llm.new_state(policy)
    while question := console.ask():
        messages.append({"role": "user", "content": question})
        ids, held = llm.encode(messages), state.sequence
        if ids[: len(held)] != held:  # the template tells the past differently now: read it again
            state, held = llm.new_state(policy), []
        with show.token_progress(len(ids) - len(held)) as progress:
            llm.prefill(ids[len(held) :], state=state, progress=progress)
        answer = llm.generate(
            state,
            max_new_tokens=max_new_tokens,
            sampling=sampling,
            temperature=temperature,
            top_k=top_k,
            top_p=top_p,
            min_p=min_p,
            repetition_penalty=repetition_penalty,
            seed=seed,
            stop=stop,
        )
        _stream(answer)
        messages.append({"role": "assistant", "content": answer.text})


def demo(
    model: Annotated[str, typer.Option(help="Which model reads; `thresher pull` lists those that are known.")] = "",
    backend: options.Backend = "auto",
    select: options.Select = "",
    evict: options.Evict = "",
    ffn: options.Ffn = "",
) -> None:
    """Hide a fact in a long text and ask a real model for it, without a method and with one."""
    from thresher.cli.catalogue import pull
    from thresher.demo import FACT, MODEL, QUESTION, SECRET, SELECT, document, verdict

    if not (select or evict or ffn):
        select = SELECT
    label = " + ".join(filter(None, [select, evict, ffn]))
    policy = options.policy(select, evict, ffn)
    policies = {"dense": None, label: policy}
    pull(model or MODEL)
    llm = _load(model or MODEL, policy, backend)
    ids = llm.encode(_messages([f"{document()}\n\n{QUESTION}"], None))
    print(f"The Tempest, Act 1, with one sentence added: {FACT}")
    print(f"Reading {len(ids):,} tokens, then asking: {QUESTION}\n", flush=True)
    answers = []
    for name, each in policies.items():
        with show.token_progress(len(ids)) as progress:
            answer = llm.generate(ids, each, max_new_tokens=40, progress=progress)
            print(f"{name}: ", end="", flush=True)
            _stream(answer)
        answers.append(answer)
    rows = [_cost(name, answer, SECRET) for name, answer in zip(policies, answers, strict=True)]
    print()
    show.columns(["", "keys read", "cache", "first token", "answer"], rows)
    dense, thinned = answers
    print("\n" + verdict(label, (dense.text, thinned.text), (dense.stats, thinned.stats)))


def _cost(name: str, answer: Generation, wanted: str) -> list[str]:
    """A line of the demo's table."""
    stats = answer.stats
    return [
        name,
        f"{sum(stats.keys_read) / sum(stats.keys_visible):.0%}",
        show.size(stats.cache_bytes),
        f"{stats.time_to_first_token:.2f} s",
        "right" if wanted in answer.text else "wrong",
    ]


def _load(
    model: str, policy: Policy, backend: str, dtype: str = "float32", adapter: str | None = None
) -> LanguageModel:
    """The model, with all that it needs under the policy compiled before another bar is shown."""
    from thresher.kernels import compile_kernels
    from thresher.model import load

    llm = load(model, backend=backend, dtype=dtype, adapter=adapter)
    if llm.device != "cpu":
        print(f"On {llm.device}", file=sys.stderr)
    compile_kernels(llm.model.backend, policy)
    return llm


def _messages(questions: list[str], system: str | None) -> list[dict[str, str]]:
    """A conversation; an empty system message is one too, and keeps the template from adding its own."""
    head = [] if system is None else [{"role": "system", "content": system}]
    return head + [{"role": "user", "content": question} for question in questions]


def _stream(answer: Generation) -> None:
    try:
        for piece in answer:
            print(piece, end="", flush=True)
    finally:
        print(flush=True)  # end the line, also where Ctrl-C cuts it short


def _summary(answer: Any) -> str:
    stats = answer.stats
    parts = [
        f"{stats.prompt_tokens:,} prompt tokens",
        f"first token after {stats.time_to_first_token:.2f} s",
        f"{stats.new_tokens} tokens at {stats.tokens_per_second:.1f}/s",
        f"cache {show.size(stats.cache_bytes)}",
    ]
    if sum(stats.keys_read) < sum(stats.keys_visible):
        parts.append(f"{sum(stats.keys_read) / sum(stats.keys_visible):.0%} of keys read")
    if sum(stats.keys_evicted):
        parts.append(f"{max(stats.keys_evicted):,} tokens evicted")
    if sum(stats.neurons_run) < sum(stats.neurons_total):
        parts.append(f"{sum(stats.neurons_run) / sum(stats.neurons_total):.0%} of neurons run")
    return " · ".join(parts)
