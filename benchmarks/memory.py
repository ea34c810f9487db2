"""Peak memory over the weights while a prompt is read: flat under an eviction budget, growing without one.

The model is a stack of layers of SmolLM2-135M's shape with random weights and room for a long prompt. Counted is what
the process holds at its peak over what it held with the weights in memory and the kernels of one token loaded.
"""

from __future__ import annotations

import numpy as np

import reference
import thresher
from benchmarks.attention import cpu
from benchmarks.common import Report, main
from reference import LayerWeights, Model, ModelConfig, Rope, Weights
from reference.weights import OPTIONAL, layer_shapes, model_shapes
from thresher.memory import forget_peak, peak, resident

LENGTHS = {"full": [8192, 32768], "short": [4096, 16384], "smallest": [256, 512]}
BUDGET = {"full": 1024, "short": 512, "smallest": 64}
LAYERS = {"full": 4, "short": 4, "smallest": 1}
ROUNDS = {"full": 3, "short": 3, "smallest": 1}
MIB = 1 << 20


def run(report: Report) -> None:
    size = report.size
    model = _model(LAYERS[size], max(LENGTHS[size]))
    budget = BUDGET[size]
    report.settings = {"layers": LAYERS[size], "width": 576, "heads": 9, "kv_heads": 3, "head_dim": 64}
    reference.prefill(model, reference.new_state(model), np.zeros(1, np.int64))
    if not forget_peak():
        report.settings["skipped"] = "this system does not let a process forget its peak"
        return
    loaded = resident()
    assert loaded is not None
    policy = thresher.Policy(evict=thresher.KeyDiff(budget))
    peaks: dict[int, list[float]] = {}
    for length in LENGTHS[size]:
        peaks[length] = [_peak(model, policy, length, loaded) for _ in range(ROUNDS[size])]
        report.row(f"peak over the weights, KeyDiff {budget:,}, {length:,} tokens", peaks[length], unit="MiB")
    for length in LENGTHS[size]:
        dense = [_peak(model, None, length, loaded)]
        report.row(f"peak over the weights, dense, {length:,} tokens", dense, unit="MiB")
    first, last = LENGTHS[size][0], LENGTHS[size][-1]
    growth = [b / a for a, b in zip(peaks[first], peaks[last], strict=True)]
    report.row(
        f"peak with KeyDiff {budget:,}, {last:,} tokens", growth, against=f"{first:,} tokens", reach=1.1, at_most=True
    )


def _model(layers: int, positions: int) -> Model:
    config = ModelConfig(
        family="llama",
        layers=layers,
        width=576,
        heads=9,
        kv_heads=3,
        head_dim=64,
        ffn_width=1536,
        vocab_size=1024,
        max_positions=positions,
        ropes=(Rope(100_000.0),) * layers,
        windows=(None,) * layers,
        attention_scale=64**-0.5,
        tied=True,
    )
    rng = np.random.default_rng(0)

    def draw(name: str, shape: tuple[int, ...]) -> np.ndarray:
        if name.endswith("norm"):
            return np.ones(shape, np.float32)
        return rng.standard_normal(shape, np.float32) / np.float32(np.sqrt(shape[-1]))

    wanted = {name: shape for name, shape in layer_shapes(config).items() if name not in OPTIONAL}
    stack = tuple(LayerWeights(**{name: draw(name, shape) for name, shape in wanted.items()}) for _ in range(layers))
    embedding = draw("embedding", model_shapes(config)["embedding"])
    weights = Weights(embedding, stack, np.ones(config.width, np.float32), embedding)
    return Model(config, cpu.prepare_weights(weights), cpu)


def _peak(model: Model, policy: thresher.Policy | None, length: int, loaded: int) -> float:
    """MiB over what was `loaded`, at the worst moment of a prompt of random ids."""
    ids = np.random.default_rng(1).integers(0, model.config.vocab_size, length)
    forget_peak()
    reference.prefill(model, reference.new_state(model, policy), ids)
    most = peak()
    assert most is not None
    return (most - loaded) / MIB


if __name__ == "__main__":
    main("memory", run)
