"""`thresher serve`: a model behind OpenAI's HTTP interface."""

from __future__ import annotations

import os
import socket
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from thresher.cli import options

if TYPE_CHECKING:
    from starlette.applications import Starlette

    from thresher.server.ask import Library

KEY = "THRESHER_API_KEY"
LAST_SECONDS = 3  # that answers in progress have when the server is ended


def serve(
    model: options.ModelName,
    host: Annotated[str, typer.Option(help="Which address to listen at; 0.0.0.0 for all of the machine's.")] = (
        "127.0.0.1"
    ),
    port: Annotated[int, typer.Option(help="Which port to listen at; 0 for any that is free.")] = 8000,
    name: Annotated[str, typer.Option(help="What clients call the model, instead of MODEL's last part.")] = "",
    places: Annotated[int, typer.Option(help="Answers in progress at a time.")] = 8,
    queue: Annotated[int, typer.Option(help="Requests that may wait for a place; more get status 429.")] = 64,
    prefix_cache: Annotated[
        int, typer.Option(metavar="MIB", help="Memory for prompts' beginnings that are not read again; 0 for none.")
    ] = 1024,
    max_new_tokens: Annotated[int, typer.Option(help="Longest chat answer where a request does not say.")] = 1024,
    sampling: options.Sampling = "greedy",
    think: options.Think = None,
    thinking_budget: options.ThinkingBudget = None,
    sources: Annotated[
        Path | None, typer.Option(metavar="DIR", help="A folder with a folder of texts for each source: /v1/ask.")
    ] = None,
    weights: Annotated[
        Path | None, typer.Option(metavar="FILE", help="What `thresher sources estimate` wrote; without, all count 1.")
    ] = None,
    select: options.Select = "",
    evict: options.Evict = "",
    ffn: options.Ffn = "",
    chunk: options.Chunk = 128,
    backend: options.Backend = "auto",
    dtype: options.Dtype = "float32",
    adapter: options.Adapter = None,
    expert_memory: options.ExpertMemory = None,
) -> None:
    """Serve a model to programs that speak OpenAI's HTTP interface. Ctrl-C ends.

    Clients must show the key that the environment variable THRESHER_API_KEY holds, where it is set.
    """
    try:
        import uvicorn

        from thresher.server.app import Serving, application
    except ImportError as error:
        raise ValueError(f"serve: {error}; install what it needs with: pip install 'thresher[serve]'") from None
    from thresher.kernels import compile_kernels
    from thresher.model import load

    serving = Serving(
        name=name or Path(model).name,
        policy=options.policy(select, evict, ffn),
        sampling=sampling,
        max_new_tokens=max_new_tokens,
        enable_thinking=think,
        thinking_budget=thinking_budget,
        chunk=chunk,
        places=places,
        queue=queue,
        prefix_bytes=prefix_cache << 20,
        api_key=os.environ.get(KEY) or None,
        library=_library(sources, weights),
    )
    with _listen(host, port) as door:  # before the model is loaded: a port that is taken is told at once
        llm = load(model, backend=backend, dtype=dtype, adapter=adapter, expert_memory=expert_memory)
        compile_kernels(llm.model.backend)  # all of them now: requests bring policies of their own
        app: Starlette = application(llm, serving)
        config = uvicorn.Config(app, log_level="warning", server_header=False, timeout_graceful_shutdown=LAST_SECONDS)
        if not serving.api_key and host not in ("127.0.0.1", "localhost", "::1"):
            print(f"Whoever reaches {host} may use the model: set {KEY} to want a key.", file=sys.stderr)
        where = f"[{host}]" if ":" in host else host
        print(f"Serving {serving.name} at http://{where}:{door.getsockname()[1]}/v1, Ctrl-C ends.", file=sys.stderr)
        uvicorn.Server(config).run([door])


def _library(sources: Path | None, weights: Path | None) -> Library | None:
    """The sources with their weights, and states kept as `thresher ask` keeps them."""
    from loaders.catalogue import cache_folder
    from reference.checks import require
    from thresher.answers.panel import weights_for
    from thresher.answers.shelf import Shelf
    from thresher.answers.sources import read_sources
    from thresher.cli.sources import STATES_GB
    from thresher.server.ask import Library

    if sources is None:
        require(weights is None, f"weights: got {weights} without sources, wanted --sources too")
        return None
    found = read_sources(sources)
    return Library(found, weights_for(found, weights), Shelf(cache_folder("states"), int(STATES_GB * 1e9)))


def _listen(host: str, port: int) -> socket.socket:
    """A socket that listens at the address, or a ValueError that names it."""
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        return socket.create_server((host, port), family=family)
    except (OSError, OverflowError) as error:
        reason = str(getattr(error, "strerror", None) or error).partition(" (while")[0]  # which names the address again
        raise ValueError(f"serve: cannot listen at {host}, port {port} ({reason})") from None
