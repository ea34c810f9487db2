"""Dense attention of one chunk over its past, against torch's scaled_dot_product_attention and the sgemm rate.

The shape is that of Llama-3.1-8B: 32 query heads, 8 KV heads of 128, a chunk of 128, float32. torch is called in two
ways: as it takes grouped heads, and with the heads of a group folded into the tokens by hand, which it does faster.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch.nn.functional import scaled_dot_product_attention

import accel
from benchmarks.common import Race, Report, main

HEADS, KV_HEADS, DIM, CHUNK = 32, 8, 128, 128
PAST = {"full": 32768, "short": 32768, "smallest": 256}
PASTS = {"full": [1024 << n for n in range(7)], "short": [1024, 4096, 16384, 65536], "smallest": [128, 256]}
ROUNDS = {"full": 9, "short": 5, "smallest": 2}
SQUARE = {"full": 2048, "short": 2048, "smallest": 64}
BYTES = {"full": 1 << 29, "short": 1 << 29, "smallest": 1 << 20}  # read to find the memory's speed

cpu = accel.backend("cpu")


class Problem:
    """Queries of one chunk and the keys and values of `past` tokens and its own."""

    def __init__(self, past: int, *, seed: int = 0) -> None:
        rng = np.random.default_rng(seed)
        keys = past + CHUNK
        self.past = past
        self.q = rng.standard_normal((HEADS, CHUNK, DIM), np.float32)
        self.k = rng.standard_normal((KV_HEADS, keys, DIM), np.float32)
        self.v = rng.standard_normal((KV_HEADS, keys, DIM), np.float32)
        self.q_positions = np.arange(past, keys)
        self.k_positions = np.ascontiguousarray(np.broadcast_to(np.arange(keys), (KV_HEADS, keys)))

    @property
    def arguments(self) -> tuple[np.ndarray, ...]:
        """What `attention` takes."""
        return self.q, self.k, self.v, self.q_positions, self.k_positions

    @property
    def flops(self) -> int:
        """Two products, over the keys that are visible."""
        return 4 * HEADS * DIM * (CHUNK * self.past + CHUNK * (CHUNK + 1) // 2)

    def dense(self) -> np.ndarray:
        """Our own dense attention."""
        return cpu.attention(*self.arguments)

    def torch_ways(self) -> dict[str, Any]:
        """torch's attention as it is called for grouped heads, and with each group's heads folded into the tokens."""
        q, k, v = (torch.from_numpy(x)[None] for x in (self.q, self.k, self.v))
        mask = torch.ones(CHUNK, self.past + CHUNK, dtype=torch.bool).tril(self.past)
        group = HEADS // KV_HEADS
        folded, folded_mask = q.reshape(1, KV_HEADS, group * CHUNK, DIM), mask.repeat(group, 1)
        return {
            "torch SDPA": lambda: scaled_dot_product_attention(q, k, v, attn_mask=mask, enable_gqa=True),
            "torch SDPA, heads folded": lambda: scaled_dot_product_attention(folded, k, v, attn_mask=folded_mask),
        }


def run(report: Report) -> None:
    size = report.size
    report.settings = {"heads": HEADS, "kv_heads": KV_HEADS, "head_dim": DIM, "chunk": CHUNK, "dtype": "float32"}
    problem = Problem(PAST[size])
    _targets(report, problem)
    for past in PASTS[size]:
        problem = Problem(past)
        race = Race({**problem.torch_ways(), "thresher": problem.dense}, ROUNDS[size])
        report.point("dense attention over past length", {"past": past}, race.seconds)


def _targets(report: Report, problem: Problem) -> None:
    n = SQUARE[report.size]
    square = np.random.default_rng(1).standard_normal((n, n), np.float32)
    torch_ways, measure = problem.torch_ways(), f"dense attention, past {problem.past:,}"
    large = torch.ones(BYTES[report.size] // 4)
    yardsticks = {"sgemm": lambda: square @ square, "read": large.sum}
    race = Race({**torch_ways, "thresher": problem.dense, **yardsticks}, ROUNDS[report.size])
    for way in torch_ways:
        report.row(measure, race.ratio(way, "thresher"), against=way, reach=1.5, stretch=1.8)
    share = [100 * x * problem.flops / (2 * n**3) for x in race.ratio("sgemm", "thresher")]
    report.row(measure, share, against=f"sgemm rate (NumPy, {n}³)", unit="%", reach=70, stretch=85)
    flops = {"sgemm": 2 * n**3} | dict.fromkeys((*torch_ways, "thresher"), problem.flops)
    report.settings["gflops"] = {name: round(count / race.median(name) / 1e9, 1) for name, count in flops.items()}
    report.settings["read_gb_per_s"] = round(BYTES[report.size] / race.median("read") / 1e9, 1)


if __name__ == "__main__":
    main("attention", run)
