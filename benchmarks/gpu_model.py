"""A whole model on the GPU, with what the host takes, beside transformers: needs a GPU, and torch with CUDA.

    python -m benchmarks.gpu_model [--size short]

Llama-3.2-3B's shape with random bfloat16 weights, chunks of 128. Seconds and tokens per second are of the host's clock,
each over a run that ends when the answer is on the host. Contestants take turns, but for transformers in chunks of 128,
which takes 40 seconds and is run once. "GPU busy" is what the kernels of a run took of the run's time, by PyTorch's
profiler. The last line is JSON.
"""

from __future__ import annotations

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
from benchmarks.common import Report
from benchmarks.common import main as command
from reference import (
    H2O,
    Caote,
    KeyDiff,
    LayerWeights,
    Model,
    ModelConfig,
    Policy,
    Quoka,
    Rope,
    Sampling,
    SnapKV,
    Tova,
    Weights,
)

LAYERS, WIDTH, HEADS, KV_HEADS, DIM, NEURONS, VOCABULARY = 28, 3072, 24, 8, 128, 8192, 128_256
CHUNK, ANSWER = 128, 24
POLICIES = {
    "dense": Policy(),
    "QUOKA 1,024": Policy(select=Quoka(1024)),
    "KeyDiff 2,048": Policy(evict=KeyDiff(2048)),
    "H2O 2,048": Policy(evict=H2O(2048)),
    "TOVA 2,048": Policy(evict=Tova(2048)),
    "SnapKV 2,048": Policy(evict=SnapKV(2048)),
    "CAOTE 2,048": Policy(evict=Caote(2048)),
}
FIRST = {"dense": (0.8, 1.2), "QUOKA 1,024": (2, 3)}  # over transformers in one shot, reach and stretch
CHUNKED = {"dense": 25, "QUOKA 1,024": 50}  # over transformers in chunks of 128


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


class Peer:
    """The same shape in transformers."""

    def __init__(self) -> None:
        from transformers import LlamaConfig, LlamaForCausalLM

        config = LlamaConfig(
            hidden_size=WIDTH, intermediate_size=NEURONS, num_hidden_layers=LAYERS, num_attention_heads=HEADS,
            num_key_value_heads=KV_HEADS, head_dim=DIM, vocab_size=VOCABULARY, max_position_embeddings=131_072,
            tie_word_embeddings=True,
        )  # fmt: skip
        torch.set_default_dtype(torch.bfloat16)
        with torch.device("cuda"):
            self._model = LlamaForCausalLM(config).eval()
        torch.set_default_dtype(torch.float32)

    @torch.inference_mode()
    def read(self, ids: torch.Tensor, chunk: int) -> tuple[Any, int]:
        """Its cache and the next token, on the host."""
        held = None
        for part in ids.split(chunk):
            out = self._model(part[None], past_key_values=held, use_cache=True, logits_to_keep=1)
            held = out.past_key_values
        return held, int(out.logits[0, -1].argmax())

    @torch.inference_mode()
    def answer(self, held: Any, token: int) -> None:
        """So many tokens, greedy."""
        for _ in range(ANSWER):
            out = self._model(torch.tensor([[token]], device="cuda"), past_key_values=held, use_cache=True)
            token = int(out.logits[0, -1].argmax())


def once(call: Callable[[], Any]) -> float:
    """Seconds of one call, to its end on the device."""
    torch.cuda.synchronize()
    synchronize()
    start = perf_counter()
    call()
    torch.cuda.synchronize()
    synchronize()
    return perf_counter() - start


def busy(call: Callable[[], Any]) -> float:
    """Percent of a call's time in which the device ran kernels: their times by the profiler, the call's without it."""
    whole = once(call)
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as seen:
        once(call)
    kernels = [one for one in seen.events() if one.device_type == torch.autograd.DeviceType.CUDA]
    return 100 * sum(one.time_range.elapsed_us() for one in kernels) / 1e6 / whole


class Bench:
    """One run: the model, its prompt, and the report."""

    def __init__(self, report: Report) -> None:
        self.report, self.model, self.peer = report, model(), Peer()
        self.short = report.size != "full"
        self.rounds = 2 if self.short else 5
        self.long = 16_384 if self.short else 50_000
        self.ids = np.random.default_rng(0).integers(0, VOCABULARY, self.long)
        self.there = torch.tensor(self.ids, device="cuda")
        report.settings |= {
            "gpu": machine().name,
            "layers": LAYERS,
            "width": WIDTH,
            "heads": HEADS,
            "kv_heads": KV_HEADS,
        }
        report.settings |= {"neurons": NEURONS, "vocabulary": VOCABULARY, "chunk": CHUNK, "tokens decoded": ANSWER}

    def read(self, policy: Policy, length: int) -> Any:
        """A state that has read so much of the prompt."""
        state = reference.new_state(self.model, policy)
        reference.prefill(self.model, state, self.ids[:length], chunk=CHUNK)
        return state

    def answer(self, state: Any) -> None:
        """So many tokens, greedy."""
        rng = np.random.default_rng(0)
        for _ in range(ANSWER):
            reference.decode(self.model, [state], [cuda.draw(state.logits, Sampling(), rng)])

    def in_turns(self, calls: dict[str, Callable[[], Any]]) -> dict[str, list[float]]:
        """Seconds of every call, round by round, after a round that does not count."""
        found: dict[str, list[float]] = {name: [] for name in calls}
        for turn in range(self.rounds + 1):
            for name, call in calls.items():
                took = once(call)
                if turn:
                    found[name].append(took)
        return found

    def prompts(self, length: int, names: list[str]) -> None:
        """Time to the first token, beside transformers in one shot and, of the whole prompt, in chunks."""
        calls: dict[str, Callable[[], Any]] = {name: lambda n=name: self.read(POLICIES[n], length) for name in names}
        calls["transformers"] = lambda: self.peer.read(self.there[:length], length)
        found = self.in_turns(calls)
        curve = "first token, the long prompt" if length == self.long else "first token"
        self.report.point(curve, {"tokens": length}, found)
        chunked = once(lambda: self.peer.read(self.there[:length], CHUNK)) if length == self.long else None
        for name in names:
            measure = f"first token, {length:,} tokens, {name}"
            goals = FIRST.get(name, (None, None)) if length == self.long else (None, None)
            ratios = [a / b for a, b in zip(found["transformers"], found[name], strict=True)]
            self.report.row(measure, ratios, against="transformers, one shot", reach=goals[0], stretch=goals[1])
            if chunked is not None and name in CHUNKED:
                ratios = [chunked / took for took in found[name]]
                self.report.row(measure, ratios, against="transformers, chunks of 128", reach=CHUNKED[name])
            self.report.row(f"GPU busy: {measure}", [busy(calls[name])], unit="%", reach=85, stretch=95)

    def decoding(self, length: int, names: list[str]) -> None:
        """Tokens per second after a prompt."""
        held, token = self.peer.read(self.there[:length], length)
        states = {name: self.read(POLICIES[name], length) for name in names}
        calls: dict[str, Callable[[], Any]] = {name: lambda s=state: self.answer(s) for name, state in states.items()}
        calls["transformers"] = lambda: self.peer.answer(held, token)
        found = self.in_turns(calls)
        for name in calls:
            rates = [ANSWER / took for took in found[name]]
            self.report.row(f"decoding after {length:,}, {name}", rates, unit="tokens/s")
            if name != "transformers":
                ratios = [a / b for a, b in zip(found["transformers"], found[name], strict=True)]
                goals = (10, 25) if name == "dense" else (None, None)
                measure = f"decoding after {length:,}, {name}"
                self.report.row(measure, ratios, against="transformers", reach=goals[0], stretch=goals[1])


def run(report: Report) -> None:
    """Measure all of it."""
    bench = Bench(report)
    bench.prompts(8_192, list(POLICIES))
    bench.decoding(8_192, list(POLICIES))
    bench.prompts(bench.long, ["dense", "QUOKA 1,024"])
    bench.decoding(bench.long, ["dense", "QUOKA 1,024"])


if __name__ == "__main__":
    command("gpu_model", run)
