"""The options that several commands share, and what is checked of them before a model is loaded."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from reference import Policy

MODEL_VARIABLE = "THRESHER_MODEL"


def _some_of(*words: str) -> Callable[[str], list[str]]:
    """Completes the beginning of one of these words."""

    def complete(incomplete: str) -> list[str]:
        return [word for word in words if word.startswith(incomplete)]

    return complete


def models(incomplete: str) -> list[str]:
    """Completes the name of a model."""
    from loaders import catalogue

    return [name for name in catalogue.names() if name.startswith(incomplete)]


def _methods(part: str) -> Callable[[str], list[str]]:
    def complete(incomplete: str) -> list[str]:
        from reference.specs import METHODS

        return [f"{name}:" for name in METHODS[part] if name.startswith(incomplete)]

    return complete


ModelName = Annotated[
    str,
    typer.Argument(
        metavar="MODEL",
        envvar=MODEL_VARIABLE,
        help="A pulled name, a Hugging Face directory, or a GGUF file.",
        autocompletion=models,
    ),
]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON document instead.")]
Backend = Annotated[
    str,
    typer.Option(
        help="reference, cpu, cuda, or auto for the fastest here.",
        autocompletion=_some_of("reference", "cpu", "cuda", "auto"),
    ),
]
Dtype = Annotated[
    str,
    typer.Option(
        help="What weights are stored in: float32, float16, bfloat16, int8, float64.",
        autocompletion=_some_of("float32", "float16", "bfloat16", "int8", "float64"),
    ),
]
Adapter = Annotated[str | None, typer.Option(metavar="DIR", help="A LoRA adapter in PEFT's layout, merged on load.")]
ExpertMemory = Annotated[
    str | None,
    typer.Option(metavar="SIZE", help="What a mixture's experts may take, e.g. 2GB; the others stay on disk."),
]
Chunk = Annotated[int, typer.Option(help="Prompt tokens per chunk.")]
Select = Annotated[
    str,
    typer.Option(
        metavar="SPEC", help="Keys that a chunk reads, e.g. quoka:budget=1024.", autocompletion=_methods("select")
    ),
]
Evict = Annotated[
    str,
    typer.Option(metavar="SPEC", help="Cache eviction, e.g. keydiff:budget=2048.", autocompletion=_methods("evict")),
]
Ffn = Annotated[
    str,
    typer.Option(
        metavar="SPEC",
        help="Sparse FFN, e.g. fastforward:density=0.5,weights=PATH.",
        autocompletion=_methods("ffn"),
    ),
]
MaxNewTokens = Annotated[int, typer.Option(help="Longest answer, in tokens.")]
MinNewTokens = Annotated[int, typer.Option(help="Shortest answer, in tokens: before, no stop token ends it.")]
Sampling = Annotated[
    str,
    typer.Option(
        help="greedy, or model for what its authors set; the five options below count before that.",
        autocompletion=_some_of("greedy", "model"),
    ),
]
Temperature = Annotated[float | None, typer.Option(help="0 takes the likeliest token every time.")]
TopK = Annotated[int | None, typer.Option(help="Draw from the k likeliest tokens.")]
TopP = Annotated[float | None, typer.Option(help="Draw from the fewest tokens that reach this probability.")]
MinP = Annotated[
    float | None, typer.Option(help="Leave out tokens below this share of the likeliest one's probability.")
]
RepetitionPenalty = Annotated[
    float | None, typer.Option(help="Above 1: make what the prompt or the answer has already less likely.")
]
Seed = Annotated[int | None, typer.Option(help="Makes a drawn answer repeatable.")]
Stop = Annotated[list[str] | None, typer.Option(help="End before this text; may be given again.")]
System = Annotated[str | None, typer.Option(help="System message, instead of the template's own.")]
Think = Annotated[
    bool | None,
    typer.Option("--think/--no-think", help="Reason before the answer, or do not; without, as the template has it."),
]
ThinkingBudget = Annotated[
    int | None, typer.Option(metavar="TOKENS", help="Longest reasoning; the answer then begins.")
]
Raw = Annotated[bool, typer.Option("--raw", help="Continue the text as it is, without the chat template.")]
Truncate = Annotated[
    str | None,
    typer.Option(
        metavar="middle",
        help="Leave out the middle of a text that is longer than the model reads.",
        autocompletion=_some_of("middle"),
    ),
]

Jobs = Annotated[int, typer.Option(help="Processes that work at a time, each with a model of its own.")]
JoblibBackend = Annotated[str, typer.Option(help="loky for this machine; dask or ray for a cluster.")]
Scheduler = Annotated[str | None, typer.Option(metavar="ADDRESS", help="Dask's scheduler.")]

DRAWING = ("temperature", "top_k", "top_p", "min_p", "repetition_penalty")


def policy(select: str, evict: str, ffn: str) -> Policy:
    """The Policy that the three specs spell; an empty one leaves that part dense."""
    from reference import Policy

    return Policy(select=select, evict=evict, ffn=ffn)


def typed(context: typer.Context, name: str) -> bool:
    """Whether an option was given on the command line, and not by a default."""
    source = context.get_parameter_source(name)
    return source is not None and source.name == "COMMANDLINE"


def model_and_words(context: typer.Context, model: str, words: str) -> tuple[str, str]:
    """The model and the prompt out of what was typed: where a default names the model, one word that names none is the
    prompt."""
    from loaders import catalogue

    default = os.environ.get(MODEL_VARIABLE) or (context.default_map or {}).get("model")
    if words or not default or not typed(context, "model") or catalogue.is_there(model):
        return model, words
    return default, model


def answering(context: typer.Context) -> dict[str, Any]:
    """What `LanguageModel.generate` takes by name, as a command's options say it; checked as it checks it, but before a
    model is loaded."""
    from reference import Sampling
    from reference.checks import one_of
    from thresher.generate import Settings
    from thresher.text import StopTexts

    settings = {"min_new_tokens": 0, "chunk": 128, **context.params}
    names = ("max_new_tokens", "min_new_tokens", "chunk", "seed", "thinking_budget")
    given = {name: settings[name] for name in names}
    stops = list(settings["stop"] or [])
    one_of("sampling", settings["sampling"], ("greedy", "model"))
    drawing = {name: settings[name] for name in DRAWING}
    Settings(Sampling(**{n: v for n, v in drawing.items() if v is not None}), stop=stops, progress=None, **given)
    StopTexts(stops)
    return {**given, **drawing, "sampling": settings["sampling"], "stop": stops}
