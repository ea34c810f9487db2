"""The command that measures a model: `bench`."""

from __future__ import annotations

from statistics import median
from typing import TYPE_CHECKING, Annotated

import typer

from thresher.cli import options, show

if TYPE_CHECKING:
    from thresher.bench import Cost


def bench(
    model: options.ModelName,
    prompt_tokens: Annotated[int, typer.Option(help="Length of the prompt.")] = 2048,
    new_tokens: Annotated[int, typer.Option(help="Tokens decoded after it.")] = 32,
    runs: Annotated[int, typer.Option(help="How often dense and policy take turns; the median is shown.")] = 3,
    select: options.Select = "",
    evict: options.Evict = "",
    ffn: options.Ffn = "",
    chunk: options.Chunk = 128,
    backend: options.Backend = "auto",
    dtype: options.Dtype = "float32",
    json: options.Json = False,
) -> None:
    """Time a prompt, dense and under a policy: first token, tokens per second, peak memory."""
    from thresher import bench as benchmark
    from thresher.kernels import compile_kernels
    from thresher.model import load

    policy = options.policy(select, evict, ffn)
    label = " + ".join(filter(None, [select, evict, ffn]))
    policies = {"dense": None, **({label: policy} if label else {})}
    llm = load(model, backend=backend, dtype=dtype)
    compile_kernels(llm.model.backend, policy)
    with show.token_progress(prompt_tokens * runs * len(policies)) as progress:
        costs = benchmark.bench(
            llm,
            policies,
            prompt_tokens=prompt_tokens,
            new_tokens=new_tokens,
            runs=runs,
            chunk=chunk,
            progress=progress,
        )
    if json:
        show.emit_json(
            {
                "model": model,
                "dtype": dtype,
                "device": llm.device,
                "prompt_tokens": prompt_tokens,
                "new_tokens": new_tokens,
                "costs": [cost.as_dict() for cost in costs],
            }
        )
        return
    show.columns(
        ["", "first token", "tokens/s", "peak memory over the model", "cache"],
        [_row(cost, costs[0]) for cost in costs],
    )


def _row(cost: Cost, dense: Cost) -> list[str]:
    """One policy, with its gain over dense."""
    first, rate = median(cost.time_to_first_token), median(cost.tokens_per_second)
    gains = ("", "")
    if cost is not dense:
        gains = (
            f", {median(dense.time_to_first_token) / first:.2f}×",
            f", {rate / median(dense.tokens_per_second):.2f}×",
        )
    return [
        cost.name,
        f"{first:.2f} s ({min(cost.time_to_first_token):.2f} to {max(cost.time_to_first_token):.2f}){gains[0]}",
        f"{rate:.1f} ({min(cost.tokens_per_second):.1f} to {max(cost.tokens_per_second):.1f}){gains[1]}",
        show.size(max(cost.peak_bytes)) if cost.peak_bytes else "not told by this system",
        show.size(cost.cache_bytes),
    ]
