"""The feed-forward network of one block, dense and at half its neurons, and one token's products with narrow weights.

The shape is that of Llama-3.1-8B: E 4096, F 14336, blocks of 128. FastForward's predictor and compensator have the
sizes that the paper gives them and random weights: what they cost does not depend on what they learned. torch computes
the same network in three linear calls, each dtype from tensors of that dtype.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from accel.cpu.runtime.memory import Room
from benchmarks import limits
from benchmarks.attention import DTYPES, cpu
from benchmarks.common import Race, Report, main, torch
from reference import Compensator, Predictor
from reference.int8 import GROUP, Int8
from reference.neurons import kept_neurons

WIDTHS = {"full": (4096, 14336), "short": (4096, 14336), "smallest": (64, 96)}
BLOCK = 128
ROUNDS = {"full": 7, "short": 5, "smallest": 2}
DENSITIES = {"full": [0.25, 0.375, 0.5, 0.625, 0.75, 1.0], "short": [0.25, 0.5, 0.75], "smallest": [0.5]}


def untrained(width: int, neurons: int, *, seed: int = 0) -> tuple[Predictor, Compensator]:
    """A predictor and a compensator of the published sizes: r = E/16 up to a power of two, hidden E/8."""
    rng = np.random.default_rng(seed)
    rank, hidden = 1 << (max(width // 16, 1) - 1).bit_length(), width // 8

    def draw(*shape: int) -> np.ndarray:
        return rng.standard_normal(shape, np.float32) / np.float32(np.sqrt(width))

    predictor = Predictor(draw(width), draw(width, rank), draw(rank, neurons))
    return predictor, Compensator(draw(hidden, width), draw(width, hidden))


class Network:
    """One FFN, its weights of some dtype laid out as `prepare_weights` leaves them, and a block of inputs."""

    def __init__(self, width: int, neurons: int, *, dtype: str = "float32") -> None:
        rng = np.random.default_rng(0)
        self.neurons, self.dtype = neurons, dtype
        self.x = rng.standard_normal((BLOCK, width), np.float32)
        scale = np.float32(1 / np.sqrt(width))
        drawn = [rng.standard_normal((neurons, width), np.float32) * scale for _ in range(3)]
        drawn = [x.astype(DTYPES[dtype], copy=False) for x in drawn]
        room = Room(drawn)
        self.gate, self.up, self.rows_of_down = (room.put(x) for x in drawn)
        self.flops = 6 * BLOCK * width * neurons

    @property
    def weights(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """As the kernels take them: W_down (E, F) is a view of its rows."""
        return self.gate, self.up, self.rows_of_down.T

    def dense(self) -> Any:
        """All neurons."""
        return cpu.gated_ffn(self.x, *self.weights)

    def torch_dense(self) -> Callable[[], Any]:
        """The same by torch, whose input and weights are of the dtype too, rows one after another."""
        library = torch()

        def tensor(x: np.ndarray) -> Any:
            if self.dtype == "float32":
                return library.from_numpy(np.ascontiguousarray(x))
            bits = np.ascontiguousarray(x.astype(DTYPES[self.dtype], copy=False)).view(np.int16)
            return library.from_numpy(bits).view(library.bfloat16)

        x, gate, up, down = map(tensor, (self.x, *self.weights))
        linear, silu = library.nn.functional.linear, library.nn.functional.silu

        def run() -> Any:
            with library.inference_mode():
                return linear(silu(linear(x, gate)) * linear(x, up), down)

        return run


class FastForward:
    """The network at a share of its neurons."""

    def __init__(self, network: Network) -> None:
        self.network = network
        self.predictor, self.compensator = untrained(network.x.shape[1], network.neurons)

    def predict(self) -> Any:
        """The block's scores."""
        return cpu.predictor_scores(self.network.x, self.predictor)

    def at(self, density: float) -> Callable[[], Any]:
        """Predict, choose, run and compensate."""
        keep = kept_neurons(density, self.network.neurons)

        def run() -> Any:
            neurons = cpu.select_neurons(self.predict(), keep)
            return cpu.sparse_ffn(self.network.x, *self.network.weights, neurons, compensator=self.compensator)

        return run


def run(report: Report) -> None:
    size = report.size
    width, neurons = WIDTHS[size]
    report.settings = {"width": width, "ffn_width": neurons, "block": BLOCK, "gflops": {}}
    network = Network(width, neurons)
    sparse = FastForward(network)
    race = Race({"dense": network.dense, "half": sparse.at(0.5)}, ROUNDS[size])
    measure = "FFN at density 0.5, predictor and compensator included"
    report.row(measure, race.ratio("dense", "half"), against="own dense FFN", reach=1.8, stretch=1.9)
    _dense(report, network)
    _parts(report, sparse)
    for density in DENSITIES[size]:
        race = Race({"dense": network.dense, "FastForward": sparse.at(density)}, ROUNDS[size])
        report.point("FFN over density", {"density": density}, race.seconds)
    narrow = Network(width, neurons, dtype="bfloat16")
    _dense(report, narrow)
    _decoding(report, network, narrow)


def _dense(report: Report, network: Network) -> None:
    """Against torch, and against what the machine could do."""
    rounds, dtype, against = ROUNDS[report.size], network.dtype, f"torch {network.dtype}"
    race = Race({against: network.torch_dense(), "dense": network.dense}, rounds)
    report.row(f"dense FFN, {dtype}", race.ratio(against, "dense"), against=against, reach=1, stretch=1.3)
    rates = {name: round(network.flops / race.median(name) / 1e9, 1) for name in race.seconds}
    report.settings["gflops"] |= {f"dense, {dtype}": rates["dense"], against: rates[against]}
    limits.share(report, "dense FFN", network.dense, network.flops, dtype, rounds)


def _parts(report: Report, sparse: FastForward) -> None:
    """Where the time of a sparse block goes."""
    scores, network = sparse.predict(), sparse.network
    neurons = cpu.select_neurons(scores, kept_neurons(0.5, network.neurons))
    c = sparse.compensator
    ways = {
        "predict": sparse.predict,
        "select": lambda: cpu.select_neurons(scores, len(neurons)),
        "sparse FFN": lambda: cpu.sparse_ffn(network.x, *network.weights, neurons),
        "compensate": lambda: cpu.linear(cpu.linear(network.x, c.c1), c.c2),
        "in full": sparse.at(0.5),
    }
    report.point("parts of FastForward", {"density": 0.5}, Race(ways, ROUNDS[report.size]).seconds)


def _decoding(report: Report, wide: Network, narrow: Network) -> None:
    """One token through all three matrices, each as (F, E), one after another: in 8 bits too they are more than a cache
    holds, as a model's weights are."""
    token, rng = wide.x[:1], np.random.default_rng(0)
    stored: dict[str, list[Any]] = {
        network.dtype: [network.gate, network.up, network.rows_of_down] for network in (wide, narrow)
    }
    out, width = wide.gate.shape
    values = rng.integers(-127, 128, (out, width), np.int8)
    eight = [Int8(values, np.full((out, -(-width // GROUP)), 1e-3, np.float16))] * 3
    room = Room(eight)
    stored["int8"] = [room.put(x) for x in eight]
    ways = {name: lambda maps=maps: [cpu.linear(token, weight) for weight in maps] for name, maps in stored.items()}
    race = Race(ways, 3 * ROUNDS[report.size])
    for dtype, reach, stretch in (("bfloat16", 1.9, 1.95), ("int8", 3.5, 3.8)):
        measure, values = f"linear layer, T = 1, from {dtype} weights", race.ratio("float32", dtype)
        report.row(measure, values, against="from float32 weights", reach=reach, stretch=stretch)
    report.point("linear layer, one token", {"matrices": 3, "out": out, "in": width}, race.seconds)
    report.settings["weight_gb_per_s"] = {
        name: round(sum(x.nbytes for x in maps) / race.median(name) / 1e9, 1) for name, maps in stored.items()
    }


if __name__ == "__main__":
    main("ffn", run)
