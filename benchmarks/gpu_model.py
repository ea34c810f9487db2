"""A whole model on a GPU: first token of a long prompt, and decoding. Needs a GPU, and torch with CUDA.

    python -m benchmarks.gpu_model [--length 50000] [--profile FILE]

Llama-3.2-3B's shape with random bfloat16 weights, chunks of 128. Seconds and tokens per second are of the host's clock,
each over a run that ends when the answer is on the host; medians of several runs with the least and the most. `waiting`
is the share of the time in which the host had nothing to do but wait for the GPU. The last line is JSON.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from dataclasses import fields
from time import perf_counter
from typing import Any

import numpy as np
import torch

import accel.cuda as cuda
import reference
from accel.cuda.runtime.arrays import BF16, Array
from accel.cuda.runtime.device import machine, synchronize
from reference import KeyDiff, LayerWeights, Model, ModelConfig, Policy, Quoka, Rope, Sampling, Weights

LAYERS, WIDTH, HEADS, KV_HEADS, DIM, NEURONS, VOCABULARY = 28, 3072, 24, 8, 128, 8192, 128_256
RUNS = 5
waited = 0.0  # seconds


def ours(x: torch.Tensor) -> Array:
    """A tensor as an array of the backend, without a copy."""
    return Array(x, x.data_ptr(), tuple(x.shape), tuple(2 * s for s in x.stride()), BF16)


def random(*shape: int) -> torch.Tensor:
    """A matrix that keeps lengths about as they are."""
    return torch.randn(*shape, device="cuda", dtype=torch.bfloat16) / shape[-1] ** 0.5


def model() -> Model:
    """The model, tied as Llama-3.2-3B is."""
    config = ModelConfig(
        family="llama", layers=LAYERS, width=WIDTH, heads=HEADS, kv_heads=KV_HEADS, head_dim=DIM, ffn_width=NEURONS,
        vocab_size=VOCABULARY, max_positions=131_072, ropes=(Rope(500_000.0),) * LAYERS, windows=(None,) * LAYERS,
        attention_scale=DIM**-0.5,
    )  # fmt: skip
    norm = ours(torch.ones(WIDTH, device="cuda", dtype=torch.bfloat16))

    def layer() -> LayerWeights:
        qkv = ours(random((HEADS + 2 * KV_HEADS) * DIM, WIDTH))
        parts = {"w_q": (0, HEADS), "w_k": (HEADS, HEADS + KV_HEADS), "w_v": (HEADS + KV_HEADS, HEADS + 2 * KV_HEADS)}
        given: dict[str, Any] = {name: qkv[a * DIM : b * DIM] for name, (a, b) in parts.items()}
        given |= {"w_o": ours(random(WIDTH, HEADS * DIM)), "attention_norm": norm, "ffn_norm": norm}
        gated = ours(random(2 * NEURONS, WIDTH))
        given |= {"w_gate": gated[:NEURONS], "w_up": gated[NEURONS:]}
        given["w_down"] = ours(random(WIDTH, NEURONS).T.contiguous()).axes(1, 0)
        return LayerWeights(**{f.name: given.get(f.name) for f in fields(LayerWeights)})

    embedding = ours(random(VOCABULARY, WIDTH))
    torch.cuda.synchronize()
    return Model(config, Weights(embedding, tuple(layer() for _ in range(LAYERS)), norm, embedding), cuda)


def timed(call: Callable[[], Any], runs: int = RUNS) -> tuple[float, float, float, float]:
    """Seconds of a call, median, least and most, and the share of the median run in which the host waited."""
    global waited
    found = []
    for _ in range(runs):
        synchronize()
        waited, start = 0.0, perf_counter()
        call()
        end = perf_counter()
        found.append((end - start, waited / (end - start)))
    found.sort()
    return found[len(found) // 2][0], found[0][0], found[-1][0], found[len(found) // 2][1]


def watched(function: Callable[..., Any]) -> Callable[..., Any]:
    """The function, its time counted as waiting."""

    def call(*arguments: Any) -> Any:
        global waited
        start = perf_counter()
        try:
            return function(*arguments)
        finally:
            waited += perf_counter() - start

    return call


def told(times: tuple[float, float, float, float], unit: Callable[[float], float]) -> dict[str, float]:
    """A measurement for JSON."""
    middle, least, most, share = times
    ends = sorted((unit(least), unit(most)))
    return {
        "median": round(unit(middle), 4), "least": round(ends[0], 4), "most": round(ends[1], 4),
        "waiting": round(share, 2),
    }  # fmt: skip


def decoding(given: Model, state: Any, tokens: int = 24) -> dict[str, float]:
    """Tokens per second, greedy."""
    rng = np.random.default_rng(0)

    def call() -> None:
        for _ in range(tokens):
            token = cuda.draw(state.logits, Sampling(), rng)
            reference.decode(given, [state], [token])
        synchronize()

    call()
    return told(timed(call), lambda seconds: tokens / seconds)


def profile(given: Model, state: Any, path: str) -> None:
    """What the device does for two tokens, launch by launch, to a file."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as seen:
        for _ in range(3):
            reference.decode(given, [state], [1])
            synchronize()
    seen.export_chrome_trace(path)


def main() -> None:
    """Measure, print, and print JSON last."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--length", type=int, default=50_000)
    parser.add_argument("--profile", help="a file for the launches of a decoding pass")
    options = parser.parse_args()
    cuda.to_numpy = watched(cuda.to_numpy)
    cuda.draw.__globals__["to_numpy"] = cuda.to_numpy
    given = model()
    ids = np.random.default_rng(0).integers(0, VOCABULARY, options.length)
    results: dict[str, Any] = {}

    def note(name: str, found: Any) -> None:
        results[name] = found
        print(name, found, flush=True)

    policies = {
        "dense": Policy(),
        "QUOKA 1,024": Policy(select=Quoka(1024)),
        "KeyDiff 2,048": Policy(evict=KeyDiff(2048)),
    }
    for name, policy in policies.items():
        reference.prefill(given, reference.new_state(given, policy), ids[:4_300])  # loads what must be
        for length in (8_192, options.length):
            states = []

            def read(length: int = length, policy: Policy = policy, states: list[Any] = states) -> None:
                states[:] = [reference.new_state(given, policy)]
                reference.prefill(given, states[0], ids[:length])

            if name != "KeyDiff 2,048" or length == 8_192:
                note(f"first token, {length} tokens, {name}", told(timed(read, 3), lambda seconds: seconds))
                note(f"decoding after {length} tokens, {name}", decoding(given, states[0]))
                if options.profile and name == "dense" and length == 8_192:
                    profile(given, states[0], options.profile)
    print(json.dumps({"gpu": machine().name, "torch": torch.__version__, "median of": RUNS, **results}))


if __name__ == "__main__":
    main()
