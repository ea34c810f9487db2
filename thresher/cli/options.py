"""The options that several commands share, and the policy that three of them spell."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from reference import Policy

ModelName = Annotated[
    str, typer.Argument(metavar="MODEL", help="A pulled name, a Hugging Face directory, or a GGUF file.")
]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON document instead.")]
Backend = Annotated[str, typer.Option(help="reference, cpu, cuda, or auto for the fastest here.")]
Dtype = Annotated[str, typer.Option(help="What weights are stored in: float32, float16, bfloat16, int8, float64.")]
Adapter = Annotated[str | None, typer.Option(metavar="DIR", help="A LoRA adapter in PEFT's layout, merged on load.")]
Chunk = Annotated[int, typer.Option(help="Prompt tokens per chunk.")]
Select = Annotated[str, typer.Option(metavar="SPEC", help="Keys that a chunk reads, e.g. quoka:budget=1024.")]
Evict = Annotated[str, typer.Option(metavar="SPEC", help="Cache eviction, e.g. keydiff:budget=2048.")]
Ffn = Annotated[str, typer.Option(metavar="SPEC", help="Sparse FFN, e.g. fastforward:density=0.5,weights=PATH.")]
MaxNewTokens = Annotated[int, typer.Option(help="Longest answer, in tokens.")]
MinNewTokens = Annotated[int, typer.Option(help="Shortest answer, in tokens: before, no stop token ends it.")]
Sampling = Annotated[
    str, typer.Option(help="greedy, or model for what its authors set; the five options below count before that.")
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


def policy(select: str, evict: str, ffn: str) -> Policy:
    """The Policy that the three specs spell; an empty one leaves that part dense."""
    from reference import Policy

    return Policy(select=select, evict=evict, ffn=ffn)
