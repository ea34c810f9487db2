"""Kernels of `accel.cuda` against what a user of PyTorch would call: needs a GPU, and torch with CUDA.

    python -m benchmarks.gpu [--size short]

Shape of Llama-3.1-8B: H 32, KV 8, D 128, E 4096, F 14336, bfloat16. Contestants take turns; a turn is several calls
between two events of the device. Ours is a CUDA graph that is replayed, as decoding is; "call by call" has the host's
launches in it, as torch's turns have theirs. Shares of the peak are of what a large product of torch's, or a copy,
reached in the same run. The last line is JSON.
"""

from __future__ import annotations

from collections.abc import Callable
from statistics import median
from types import SimpleNamespace
from typing import Any

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import linear, normalize, scaled_dot_product_attention, silu

import accel.cuda as cuda
from accel.cuda.linear.inverse_norms import with_rates
from accel.cuda.runtime.arrays import BF16, F32, I64, Array
from accel.cuda.runtime.device import machine
from accel.cuda.runtime.graph import Graph
from accel.cuda.runtime.kernels import Kernel
from accel.cuda.runtime.views import Positions
from accel.shared.lazy import Chosen
from benchmarks.common import Report
from benchmarks.common import main as command

H, KV, D, E, F, RANK = 32, 8, 128, 4096, 14_336, 512
QUERIES, BUDGET, CHUNK = 16, 1024, 128
TYPES = {torch.bfloat16: BF16, torch.float32: F32, torch.int64: I64}
PEERS = {"flash": SDPBackend.FLASH_ATTENTION, "cuDNN": SDPBackend.CUDNN_ATTENTION}
DENSE = {1: ((None, None),) * 3, 128: ((1.35, 1.9),) * 3, 1024: ((0.85, 1.1),) * 3}  # reach and stretch by past
ONE, EIGHT, QUARTER = ((3, 5), (4.5, 6.5), (5.5, 7.5)), ((5, 8), (9, 15), (15, 25)), ((1, 1.5), (1, 2), (1, 2.5))
Calls = dict[str, Callable[[], Any]]


def ours(x: torch.Tensor) -> Array:
    """A tensor as an array of the backend, without a copy."""
    size = x.element_size()
    return Array(x, x.data_ptr(), tuple(x.shape), tuple(s * size for s in x.stride()), TYPES[x.dtype])


def random(*shape: int) -> torch.Tensor:
    """Numbers that keep lengths about as they are where they are a matrix."""
    return torch.randn(*shape, device="cuda", dtype=torch.bfloat16) / shape[-1] ** 0.5


class Replayed:
    """A call as a graph: what its launches take the device, without the host's part."""

    def __init__(self, call: Callable[[], Any]) -> None:
        call()
        self._graph = Graph()
        with self._graph.recorded():
            self._kept = call()

    def __call__(self) -> None:
        self._graph.launch()


def race(calls: Calls, rounds: int, count: int = 10) -> dict[str, list[float]]:
    """Milliseconds of a call of each, round by round, all on the backend's stream."""
    found: dict[str, list[float]] = {name: [] for name in calls}
    with torch.cuda.stream(torch.cuda.ExternalStream(int(machine().stream.handle))):
        for turn in range(rounds + 1):
            for name, call in calls.items():
                start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
                call()
                start.record()
                for _ in range(count):
                    call()
                end.record()
                torch.cuda.synchronize()
                if turn:
                    found[name].append(start.elapsed_time(end) / count)
    return found


def tensors(tokens: int, size: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, Positions]:
    """q, k, v and the positions of `size` keys."""
    shapes = (H, tokens, D), (KV, size, D), (KV, size, D)
    q, k, v = (torch.randn(*shape, device="cuda", dtype=torch.bfloat16) for shape in shapes)
    positions = torch.arange(size, device="cuda").expand(KV, size).contiguous()
    torch.cuda.synchronize()
    return q, k, v, Positions(ours(positions), size - 1, size)


def peers(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, past: int) -> Calls:
    """PyTorch's kernels for the same queries over the past alone."""

    def attend(backend: SDPBackend) -> None:
        with sdpa_kernel(backend):
            scaled_dot_product_attention(q[None], k[None, :, :past], v[None, :, :past], enable_gqa=True)

    return {name: lambda backend=backend: attend(backend) for name, backend in PEERS.items()}


def best(times: dict[str, list[float]]) -> list[float]:
    """The best of torch, round by round."""
    return [min(each) for each in zip(*(times[name] for name in PEERS), strict=True)]


def over(above: list[float], below: list[float], times: float = 1) -> list[float]:
    """Ratios, round by round."""
    return [times * a / b for a, b in zip(above, below, strict=True)]


def plain_quoka(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, past: int) -> torch.Tensor:
    """QUOKA as it is written in a few lines of PyTorch: q (H, T, D), k and v (KV, S, D) -> (H, T, D)."""
    x = q.float()
    alike = (normalize(x, dim=-1) * normalize(x.mean(1, keepdim=True), dim=-1)).sum(-1)
    chosen = alike.topk(QUERIES, largest=False).indices  # (H, N)
    slots = normalize(x.gather(1, chosen[:, :, None].expand(-1, -1, D)), dim=-1).view(KV, H // KV, QUERIES, D).mean(1)
    scores = (slots @ normalize(k[:, :past].float(), dim=-1).transpose(1, 2)).amax(1)
    kept = scores.topk(BUDGET).indices.sort().values
    own = torch.arange(past, k.shape[1], device=k.device).expand(KV, -1)
    columns = torch.cat([kept, own], 1)[:, :, None].expand(-1, -1, D)
    mask = torch.ones(q.shape[1], columns.shape[1], dtype=torch.bool, device=q.device)
    mask[:, BUDGET:] = torch.ones_like(mask[:, BUDGET:]).tril()
    keys, values = k.gather(1, columns), v.gather(1, columns)
    return scaled_dot_product_attention(q[None], keys[None], values[None], attn_mask=mask, enable_gqa=True)[0]


def quoka(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, positions: Positions, chunk: int, budget: int) -> Any:
    """Ours for all chunks of q, which end the keys; the norms are known, as a cache knows them."""
    chunks, keys, values = q.shape[1] // chunk, with_rates(ours(k)), ours(v)
    pasts = [k.shape[1] - q.shape[1] + c * chunk for c in range(chunks)]
    queries = [ours(q)[:, c * chunk : (c + 1) * chunk] for c in range(chunks)]

    def call() -> list[Array]:
        columns = cuda.select_keys_each(queries, keys, pasts, [budget] * chunks, QUERIES)
        reads = [
            (one, *(Chosen(x, c) for x in (keys.held, values)), at, Chosen(positions, c))
            for one, c, at in zip(queries, columns, pasts, strict=True)
        ]
        return cuda.attention_each(reads)

    return call


class Bench:
    """One run: the report, and the peaks that shares are of."""

    def __init__(self, report: Report) -> None:
        self.report, self.short = report, report.size != "full"
        self.rounds, self.pasts = (3, (32_768,)) if self.short else (7, (32_768, 65_536, 131_072))
        report.settings |= {"gpu": machine().name, "H": H, "KV": KV, "D": D, "E": E, "F": F, "calls in a turn": 10}
        a, big = random(8192, 8192), random(64, 1 << 20)
        to = torch.empty_like(big)
        times = race({"product": lambda: a @ a.T, "copy": lambda: to.copy_(big)}, self.rounds)
        self.tensor = 2 * 8192**3 / median(times["product"]) / 1e9  # TFLOP/s
        self.memory = 2 * big.nbytes / median(times["copy"]) / 1e9  # TB/s
        report.settings |= {"peak TFLOP/s": round(self.tensor), "peak TB/s": round(self.memory, 2)}

    def share(self, measure: str, seconds: list[float], *, flops: float = 0, read: float = 0) -> None:
        """What part of the tensor or memory peak that is; times in milliseconds."""
        of, peak, work = ("tensor", self.tensor, flops) if flops else ("memory", self.memory, read)
        values = [100 * work / ms / 1e9 / peak for ms in seconds]
        self.report.row(f"{measure}: share of the {of} peak", values, unit="%")

    def goal(
        self, measure: str, against: str, values: list[float], goals: tuple[Any, Any], at_most: bool = False
    ) -> None:
        """A ratio beside its target."""
        self.report.row(measure, values, against=against, reach=goals[0], stretch=goals[1], at_most=at_most)

    def dense(self, tokens: int) -> None:
        """Attention of `tokens` queries, causal, over a past and themselves."""
        for past, goals in zip(self.pasts, DENSE[tokens], strict=False):
            q, k, v, positions = tensors(tokens, past + tokens)
            read = ours(q), ours(k), ours(v), past, positions
            times = race(
                {"ours": Replayed(lambda read=read: cuda.attention_each([read])), **peers(q, k, v, past)}, self.rounds
            )
            measure = f"attention, {tokens:,} × {past:,}"
            self.report.point("attention", {"queries": tokens, "past": past}, seconds(times))
            self.goal(measure, "best of torch", over(best(times), times["ours"]), goals)
            if tokens > 1:
                self.share(measure, times["ours"], flops=4 * H * tokens * past * D)
            else:
                self.share(measure, times["ours"], read=4 * KV * past * D)

    def quoka(self, chunks: int, chunk: int, goals: Any) -> None:
        """QUOKA in full against dense attention of one chunk, each chunk's part of the time."""
        for past, goal in zip(self.pasts, goals, strict=False):
            q, k, v, positions = tensors(chunks * chunk, past + chunks * chunk)
            budget = BUDGET if chunk == CHUNK else past // 4
            call = quoka(q, k, v, positions, chunk, budget)
            calls = {"ours": Replayed(call), "call by call": call, **peers(q[:, :chunk], k, v, past)}
            if chunk == CHUNK:
                last = q[:, -chunk:]
                calls["plain torch"] = lambda last=last, k=k, v=v: plain_quoka(last, k, v, k.shape[1] - CHUNK)
            times = race(calls, self.rounds)
            measure = f"QUOKA {budget:,}, {chunks} × {chunk:,} queries, past {past:,}"
            curve = "QUOKA" if chunk == CHUNK else "QUOKA, a quarter of the keys"
            self.report.point(curve, {"chunks": chunks, "chunk": chunk, "past": past}, seconds(times))
            self.goal(measure, "best of torch, dense, a chunk", over(best(times), times["ours"], chunks), goal)
            if chunk == CHUNK:
                wanted = (15, 30) if chunks > 1 else (None, None)
                self.goal(
                    measure, "QUOKA in plain torch, a chunk", over(times["plain torch"], times["ours"], chunks), wanted
                )

    def keydiff(self) -> None:
        """KeyDiff's scores against copying the keys once."""
        for size in (8_192, 131_072):
            _, k, _, _ = tensors(1, size)
            keys, to = with_rates(ours(k)), torch.empty_like(k)
            copy = lambda to=to, k=k: to.copy_(k)  # noqa: E731
            times = race({"ours": Replayed(lambda keys=keys: cuda.keydiff_scores(keys)), "copy": copy}, self.rounds)
            self.report.point("KeyDiff's scores", {"keys": size}, seconds(times))
            self.goal(f"keydiff_scores, {size:,} keys", "a copy", over(times["ours"], times["copy"]), (1.5, 1.1), True)
            self.share(f"keydiff_scores, {size:,} keys", times["ours"], read=2 * k.nbytes)

    def ffn(self) -> None:
        """Half of the neurons, chosen by a predictor, against torch's dense FFN."""
        tokens, keep = 128, F // 2
        x, both, down = random(tokens, E), random(2 * F, E), random(F, E)
        w_up, w_gate, w_down = both[F:], both[:F], down.T
        given = ours(x), ours(both)[:F], ours(both)[F:], ours(down).axes(1, 0)
        parts = SimpleNamespace(q_pred=ours(random(E)), w1=ours(random(E, RANK)), w2=ours(random(RANK, F)))
        torch.cuda.synchronize()
        chosen = cuda.select_neurons(cuda.predictor_scores(given[0], parts), keep)

        def sparse() -> Array:
            neurons = cuda.select_neurons(cuda.predictor_scores(given[0], parts), keep)
            return cuda.sparse_ffn(*given, neurons)

        def dense() -> torch.Tensor:
            return linear(silu(linear(x, w_gate)) * linear(x, w_up), w_down)

        calls = {
            "ours": Replayed(sparse),
            "FFN alone": Replayed(lambda: cuda.sparse_ffn(*given, chosen)),
            "torch": dense,
        }
        calls["own dense"] = Replayed(lambda: cuda.gated_ffn(*given))
        times = race(calls, self.rounds)
        self.report.point("FFN", {"tokens": tokens, "neurons": keep}, seconds(times))
        self.goal("FFN at density 0.5, 128 tokens", "torch, dense", over(times["torch"], times["ours"]), (1.4, 1.8))
        self.goal("the same, neurons given", "torch, dense", over(times["torch"], times["FFN alone"]), (None, None))
        self.share("gathered FFN", times["FFN alone"], read=3 * 2 * keep * E)

    def occupancy(self) -> None:
        """How many of the threads that a multiprocessor has room for each kernel of 16 bits gets there."""
        for kernel in Kernel.known:
            for share in occupancies(kernel):
                self.report.row(f"{kernel.name}: threads of a multiprocessor in use", [share], unit="%")


def seconds(times: dict[str, list[float]]) -> dict[str, list[float]]:
    """As a report has them."""
    return {name: [ms / 1e3 for ms in found] for name, found in times.items()}


def occupancies(kernel: Kernel) -> list[float]:
    """Percent, for each form that was loaded of a kernel that is made for blocks of one size."""
    from cuda.bindings import driver

    if kernel.threads is None:
        return []
    most = machine().device.properties.max_threads_per_multiprocessor
    found = []
    for loaded in kernel._loaded.values():
        ask = driver.cuOccupancyMaxActiveBlocksPerMultiprocessor
        _, blocks = ask(loaded._function, kernel.threads, kernel.shared)
        found.append(100 * blocks * kernel.threads / most)
    return found


def run(report: Report) -> None:
    """Measure all of it."""
    bench = Bench(report)
    for tokens in DENSE:
        bench.dense(tokens)
    bench.quoka(1, CHUNK, ONE)
    bench.quoka(8, CHUNK, EIGHT)
    bench.quoka(1, 1024, QUARTER)
    bench.keydiff()
    bench.ffn()
    bench.occupancy()


if __name__ == "__main__":
    command("gpu", run)
