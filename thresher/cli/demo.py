"""The command `demo`: a fact hidden in a long text, asked for without a method and with one."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from thresher.cli import answers, options, show, wrap

if TYPE_CHECKING:
    from thresher.generate import Generation


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
    llm = answers.load(model or MODEL, policy, backend)
    ids = llm.encode(answers.messages(f"{document()}\n\n{QUESTION}", None))
    print(f"The Tempest, Act 1, with one sentence added: {FACT}")
    print(f"Reading {len(ids):,} tokens, then asking: {QUESTION}\n", flush=True)
    given = []
    for name, each in policies.items():
        with show.token_progress(len(ids)) as progress:
            answer = llm.generate(ids, each, max_new_tokens=40, progress=progress)
            print(f"{name}: ", end="", flush=True)
            wrap.stream(answer)
        given.append(answer)
    rows = [_cost(name, answer, SECRET) for name, answer in zip(policies, given, strict=True)]
    print()
    show.columns(["", "keys read", "cache", "first token", "answer"], rows)
    dense, thinned = given
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
