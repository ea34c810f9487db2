"""The commands that read and answer once: `generate`, and `read` for a document that is asked later."""

from __future__ import annotations

from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING, Annotated, Any

import typer

from thresher.cli import answers, options, show, texts, wrap

if TYPE_CHECKING:
    from reference import Policy
    from thresher.generate import Stats
    from thresher.model import LanguageModel
    from thresher.state import State

PLACES = 8  # prompts that are continued together
Files = Annotated[
    list[Path] | None,
    typer.Option("-f", "--file", help="A text to read before the prompt; - for standard input; may be given again."),
]


def generate(
    context: typer.Context,
    model: options.ModelName,
    words: Annotated[str, typer.Argument(metavar="[PROMPT]", help="The prompt, as -p takes it.")] = "",
    prompt: Annotated[
        list[str] | None,
        typer.Option("-p", "--prompt", help="The prompt; of a file, what is asked of it. Given again, one more."),
    ] = None,
    prompts: Annotated[
        Path | None, typer.Option(metavar="FILE", help="A file of prompts, one in each line; - for standard input.")
    ] = None,
    file: Files = None,
    state: Annotated[Path | None, typer.Option(help="Ask what `thresher read` has read into this file.")] = None,
    truncate: options.Truncate = None,
    system: options.System = None,
    think: options.Think = None,
    raw: options.Raw = False,
    max_new_tokens: options.MaxNewTokens = 256,
    min_new_tokens: options.MinNewTokens = 0,
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
    chunk: options.Chunk = 128,
    backend: options.Backend = "auto",
    dtype: options.Dtype = "float32",
    adapter: options.Adapter = None,
    expert_memory: options.ExpertMemory = None,
    json: options.Json = False,
) -> None:
    """Answer a prompt, streaming, or several, together.

    Text that is piped in is read before the prompt. Several prompts share one reading of the files.
    """
    from thresher.text import check_text

    model, words = options.model_and_words(context, model, words)
    asked = [*filter(None, [words]), *(prompt or []), *texts.lines(prompts)]
    document, name = texts.document(file, wanted=prompts is None or str(prompts) != "-")
    if document and not asked:
        asked, document = [document], ""
    if not asked:
        raise ValueError("prompt: got nothing, wanted a PROMPT, --file PATH, or piped text")
    for question in asked:
        check_text("prompt", question)
    answering, policy = options.answering(context), options.policy(select, evict, ffn)
    answering["separate_reasoning"] = not raw
    _check_truncate(truncate)
    if state is not None:
        _check_state(state, context)
    llm = answers.load(model, policy, backend, dtype, adapter, expert_memory)
    text = texts.Text(llm, name, system, raw, max_new_tokens if truncate else 0, think)
    kept: State | None = None
    if state is not None:
        kept, ending = _kept(state)
        ids = [text.question(f"{document}\n\n{each}" if document else each, ending) for each in asked]
    elif not document:
        ids = [text.alone(each) for each in asked]
    else:
        before, ending = text.opening(document, max(asked, key=len))
        ids = [text.question(each, ending) for each in asked]
        if len(asked) == 1:
            ids = [before + ids[0]]
        else:
            with show.token_progress(len(before)) as progress:
                kept = llm.prefill(before, policy, chunk=chunk, progress=progress)
    held = len(kept.sequence) if kept else 0
    what = f"{state or name or 'The prompt'}{' with the prompt' if state or name else ''}"
    for each in ids:
        answers.refuse(what, held + len(each), llm.config.max_positions, *(["a shorter prompt"] if state else []))
    if len(asked) == 1:
        _stream(llm, ids[0], kept, policy, answering, json)
    else:
        _several(llm, asked, ids, kept, policy, answering, json)


def read(
    model: options.ModelName,
    out: Annotated[Path, typer.Option("-o", "--out", metavar="STATE", help="The file to keep what was read in.")],
    file: Files = None,
    truncate: options.Truncate = None,
    system: options.System = None,
    think: options.Think = None,
    raw: options.Raw = False,
    select: options.Select = "",
    evict: options.Evict = "",
    ffn: options.Ffn = "",
    chunk: options.Chunk = 128,
    backend: options.Backend = "auto",
    dtype: options.Dtype = "float32",
    adapter: options.Adapter = None,
    expert_memory: options.ExpertMemory = None,
) -> None:
    """Read a document once, for `generate --state` to ask many things of."""
    from reference.checks import whole

    document, name = texts.document(file, wanted=True)
    if not document:
        raise ValueError("file: got nothing to read, wanted --file PATH or piped text")
    if not out.absolute().parent.is_dir():
        raise FileNotFoundError(f"{out}: there is no folder {out.absolute().parent} to write it in")
    policy = options.policy(select, evict, ffn)
    whole("chunk", chunk)
    _check_truncate(truncate)
    llm = answers.load(model, policy, backend, dtype, adapter, expert_memory)
    room = llm.config.max_positions // 8 if truncate else 0  # for what will be asked
    ids, ending = texts.Text(llm, name, system, raw, room, think).opening(document)
    with show.token_progress(len(ids)) as progress:
        state = llm.prefill(ids, policy, chunk=chunk, progress=progress)
    state.notes = {"ending": ending}
    state.save(out)
    dense = answers.dense_bytes(llm, len(ids))
    kept = show.size(state.cache.nbytes) + (f", dense {show.size(dense)}" if state.cache.nbytes < dense else "")
    wrap.note(f"{len(ids):,} tokens read into {out}, cache {kept}")


def _check_truncate(truncate: str | None) -> None:
    from reference.checks import one_of

    if truncate is not None:
        one_of("truncate", truncate, ["middle"])


def _check_state(file: Path, context: typer.Context) -> None:
    """Before a model is loaded: the file is there, and nothing is asked for that it has decided."""
    if not file.exists():
        raise FileNotFoundError(f"{file}: there is no such file; `thresher read` writes one")
    decided = ("select", "evict", "ffn", "system", "think", "raw", "truncate")
    idle = [f"--{name}" for name in decided if options.typed(context, name)]
    if idle:
        raise ValueError(f"{', '.join(idle)}: decided when {file} was read, so not for generate --state")


def _kept(file: Path) -> tuple[State, str]:
    """A state and the text that ends a prompt."""
    from thresher.state import State

    kept = State.load(file)
    if "messages" in kept.notes:
        raise ValueError(f"{file}: this is a chat; take it up with `thresher chat` and /load")
    return kept, kept.notes.get("ending", "")


def _stream(
    llm: LanguageModel, ids: list[int], kept: State | None, policy: Policy, answering: dict[str, Any], json: bool
) -> None:
    """One answer, as it comes."""
    took = 0.0  # to read what a state has not
    with show.token_progress(len(ids)) as progress:
        if kept is None:
            answer = llm.generate(ids, policy, progress=progress, **answering)
        else:
            started = perf_counter()
            asked = llm.prefill(ids, state=kept, chunk=answering["chunk"], progress=progress)
            took = perf_counter() - started
            answer = llm.generate(asked, **answering)
        if json:
            str(answer)
        else:
            wrap.stream(answer)
    answer.stats.time_to_first_token += took
    if json:
        show.emit_json(_as_json(answer.text, answer.reasoning, answer.token_ids, answer.stats))
    else:
        wrap.note(_told(llm, answer.stats, answering))


def _several(
    llm: LanguageModel,
    asked: list[str],
    prompts: list[list[int]],
    kept: State | None,
    policy: Policy,
    answering: dict[str, Any],
    json: bool,
) -> None:
    """Answers that share each pass, PLACES at a time, told in the order of their prompts."""
    from thresher.generate import Batch
    from thresher.thinking import Piece

    told = []
    for first in range(0, len(asked), PLACES):
        group = prompts[first : first + PLACES]
        with show.token_progress(sum(map(len, group))) as progress:
            if kept is None:
                batch = llm.generate(Batch(group, PLACES), policy, progress=progress, **answering)
            else:
                chunk = answering["chunk"]
                states = [llm.prefill(ids, state=kept.copy(), chunk=chunk, progress=progress) for ids in group]
                batch = llm.generate(Batch(states, PLACES), **answering)
            for _ in batch:
                pass
        each = zip(asked[first:], batch.texts, batch.reasonings, batch.token_ids, batch.stats, strict=False)
        for question, text, reasoning, ids, stats in each:
            if json:
                told.append({"prompt": question, **_as_json(text, reasoning, ids, stats)})
            else:
                wrap.stream([f"> {question}\n", Piece(reasoning=reasoning), f"{text}\n"])
                wrap.note(_told(llm, stats, answering))
    if json:
        show.emit_json(told)


def _as_json(text: str, reasoning: str, token_ids: list[int], stats: Stats) -> dict[str, Any]:
    return {"text": text, "reasoning": reasoning, "token_ids": token_ids, "stats": stats.as_dict()}


def _told(llm: LanguageModel, stats: Stats, answering: dict[str, Any]) -> str:
    dense = answers.dense_bytes(llm, stats.prompt_tokens + stats.new_tokens)
    return answers.summary(stats, answering["max_new_tokens"], dense)
