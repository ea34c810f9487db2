"""The feed-forward network of one block, dense and at half its neurons, and products with 16-bit weights.

The shape is that of Llama-3.1-8B: E 4096, F 14336, blocks of 128, float32. FastForward's predictor and compensator have
the sizes that the paper gives them and random weights: what they cost does not depend on what they learned.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import ml_dtypes
import numpy as np

from accel.cpu.runtime.memory import Room
from benchmarks.attention import cpu
from benchmarks.common import Race, Report, main
from reference import Compensator, Predictor
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
    """One FFN, its weights laid out as `prepare_weights` leaves them, and a block of inputs."""

    def __init__(self, width: int, neurons: int) -> None:
        rng = np.random.default_rng(0)
        self.neurons = neurons
        self.x = rng.standard_normal((BLOCK, width), np.float32)
        scale = np.float32(1 / np.sqrt(width))
        drawn = [rng.standard_normal((neurons, width), np.float32) * scale for _ in range(3)]
        room = Room(drawn)
        self.gate, self.up, self.rows_of_down = (room.put(x) for x in drawn)
        self.predictor, self.compensator = untrained(width, neurons)
        self._inner, self._out = np.empty((2, BLOCK, neurons), np.float32), np.empty_like(self.x)

    @property
    def weights(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """As the kernels take them: W_down (E, F) is a view of its rows."""
        return self.gate, self.up, self.rows_of_down.T

    def dense(self) -> Any:
        """All neurons."""
        return cpu.gated_ffn(self.x, *self.weights)

    def three_products(self) -> None:
        """The same three products by NumPy alone, without activation and in buffers that are there already."""
        np.matmul(self.x, self.gate.T, out=self._inner[0])
        np.matmul(self.x, self.up.T, out=self._inner[1])
        np.matmul(self._inner[0], self.rows_of_down, out=self._out)

    def predict(self) -> Any:
        """The block's scores."""
        return cpu.predictor_scores(self.x, self.predictor)

    def sparse(self, neurons: np.ndarray) -> Any:
        """The chosen neurons alone."""
        return cpu.sparse_ffn(self.x, *self.weights, neurons)

    def fastforward(self, density: float) -> Callable[[], Any]:
        """Predict, choose, run and compensate."""
        keep = kept_neurons(density, self.neurons)

        def run() -> Any:
            neurons = cpu.select_neurons(self.predict(), keep)
            return cpu.sparse_ffn(self.x, *self.weights, neurons, compensator=self.compensator)

        return run


def run(report: Report) -> None:
    size = report.size
    width, neurons = WIDTHS[size]
    report.settings = {"width": width, "ffn_width": neurons, "block": BLOCK, "dtype": "float32"}
    network = Network(width, neurons)
    ways = {"dense": network.dense, "sgemm": network.three_products, "half": network.fastforward(0.5)}
    race = Race(ways, ROUNDS[size])
    measure = "FFN at density 0.5, predictor and compensator included"
    report.row(measure, race.ratio("dense", "half"), against="own dense FFN", reach=1.7, stretch=1.85)
    against = "NumPy sgemm, the same three products"
    report.row("dense FFN", race.ratio("sgemm", "dense"), against=against, reach=0.95, stretch=1.0)
    report.settings["gflops"] = {
        name: round(6 * BLOCK * width * neurons / race.median(name) / 1e9, 1) for name in ("sgemm", "dense")
    }
    _parts(report, network)
    for density in DENSITIES[size]:
        race = Race({"dense": network.dense, "FastForward": network.fastforward(density)}, ROUNDS[size])
        report.point("FFN over density", {"density": density}, race.seconds)
    _decoding(report, network)


def _parts(report: Report, network: Network) -> None:
    """Where the time of a sparse block goes."""
    scores = network.predict()
    keep = kept_neurons(0.5, network.neurons)
    neurons = cpu.select_neurons(scores, keep)
    c = network.compensator
    ways = {
        "predict": network.predict,
        "select": lambda: cpu.select_neurons(scores, keep),
        "sparse FFN": lambda: network.sparse(neurons),
        "compensate": lambda: cpu.linear(cpu.linear(network.x, c.c1), c.c2),
        "in full": network.fastforward(0.5),
    }
    report.point("parts of FastForward", {"density": 0.5}, Race(ways, ROUNDS[report.size]).seconds)


def _decoding(report: Report, network: Network) -> None:
    """One token through W_gate, stored in 32 and in 16 bits."""
    token, narrow = network.x[:1], network.gate.astype(ml_dtypes.bfloat16)
    narrow = Room([narrow]).put(narrow)
    ways = {
        "float32": lambda: cpu.linear(token, network.gate),
        "bfloat16": lambda: cpu.linear(token, narrow),
        "NumPy float32": lambda: token @ network.gate.T,
    }
    race = Race(ways, 3 * ROUNDS[report.size])
    measure = "linear layer, T = 1, from bfloat16 weights"
    report.row(measure, race.ratio("float32", "bfloat16"), against="from float32 weights", reach=1.7, stretch=1.9)
    report.row(measure, race.ratio("NumPy float32", "bfloat16"), against="NumPy, float32 weights")
    report.point("linear layer, one token", {"out": network.neurons, "in": token.shape[1]}, race.seconds)
    report.settings["weight_gb_per_s"] = {
        "float32": round(network.gate.nbytes / race.median("float32") / 1e9, 1),
        "bfloat16": round(narrow.nbytes / race.median("bfloat16") / 1e9, 1),
    }


if __name__ == "__main__":
    main("ffn", run)
