"""Dense attention of one chunk over its past, against torch's scaled_dot_product_attention and the machine's own limit.

The shape is that of Llama-3.1-8B: 32 query heads, 8 KV heads of 128, a chunk of 128, float32. torch is called in two
ways: as it takes grouped heads, and with the heads of a group folded into the tokens by hand, which it does faster.
"""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np

import accel
from benchmarks import limits
from benchmarks.common import Race, Report, main, torch

HEADS, KV_HEADS, DIM, CHUNK = 32, 8, 128, 128
PAST = {"full": 32768, "short": 32768, "smallest": 256}
PASTS = {"full": [1024 << n for n in range(7)], "short": [1024, 4096, 16384, 65536], "smallest": [128, 256]}
ROUNDS = {"full": 7, "short": 5, "smallest": 2}
POINTS = {"full": 5, "short": 5, "smallest": 2}  # rounds of a point of a curve
BYTES = {"full": 1 << 29, "short": 1 << 29, "smallest": 1 << 20}  # read to find the memory's speed
TORCH, FOLDED = "torch SDPA", "torch SDPA, heads folded"
DTYPES: dict[str, Any] = {"float32": np.float32, "bfloat16": ml_dtypes.bfloat16}

cpu = accel.backend("cpu")


class Problem:
    """Queries of a chunk, and the keys and values of `past` tokens and its own as a cache of some dtype holds them."""

    def __init__(self, past: int, *, tokens: int = CHUNK, dtype: str = "float32") -> None:
        rng, keys = np.random.default_rng(0), past + tokens
        self.past, self.tokens = past, tokens
        self.q = rng.standard_normal((HEADS, tokens, DIM), np.float32)
        self.k = rng.standard_normal((KV_HEADS, keys, DIM), np.float32).astype(DTYPES[dtype], copy=False)
        self.v = rng.standard_normal((KV_HEADS, keys, DIM), np.float32).astype(DTYPES[dtype], copy=False)
        self.q_positions = np.arange(past, keys)
        self.k_positions = np.ascontiguousarray(np.broadcast_to(np.arange(keys), (KV_HEADS, keys)))

    @property
    def arguments(self) -> tuple[np.ndarray, ...]:
        """What `attention` takes."""
        return self.q, self.k, self.v, self.q_positions, self.k_positions

    @property
    def flops(self) -> int:
        """Two products, over the keys that are visible."""
        return 4 * HEADS * DIM * (self.tokens * self.past + self.tokens * (self.tokens + 1) // 2)

    def dense(self) -> np.ndarray:
        """Our own dense attention."""
        return cpu.attention(*self.arguments)

    def torch_ways(self) -> dict[str, Any]:
        """torch's attention as it is called for grouped heads, and with each group's heads folded into the tokens."""
        library = torch()
        attend = library.nn.functional.scaled_dot_product_attention
        q, k, v = (library.from_numpy(x)[None] for x in (self.q, self.k, self.v))
        mask = library.ones(self.tokens, self.past + self.tokens, dtype=library.bool).tril(self.past)
        group = HEADS // KV_HEADS
        folded, folded_mask = q.reshape(1, KV_HEADS, group * self.tokens, DIM), mask.repeat(group, 1)
        return {
            TORCH: lambda: attend(q, k, v, attn_mask=mask, enable_gqa=True),
            FOLDED: lambda: attend(folded, k, v, attn_mask=folded_mask),
        }


def run(report: Report) -> None:
    size = report.size
    report.settings = {"heads": HEADS, "kv_heads": KV_HEADS, "head_dim": DIM, "chunk": CHUNK, "dtype": "float32"}
    _targets(report, Problem(PAST[size]))
    for past in PASTS[size]:
        problem = Problem(past)
        race = Race({FOLDED: problem.torch_ways()[FOLDED], "thresher": problem.dense}, POINTS[size])
        report.point("dense attention over past length", {"past": past}, race.seconds)


def _targets(report: Report, problem: Problem) -> None:
    torch_ways, measure = problem.torch_ways(), f"dense attention, past {problem.past:,}"
    large = torch().ones(BYTES[report.size] // 4)
    race = Race({**torch_ways, "thresher": problem.dense, "read": large.sum}, ROUNDS[report.size])
    report.row(measure, race.ratio(FOLDED, "thresher"), against=FOLDED, reach=3, stretch=5)
    report.row(measure, race.ratio(TORCH, "thresher"), against=TORCH)
    flops = dict.fromkeys((*torch_ways, "thresher"), problem.flops)
    report.settings["gflops"] = {name: round(count / race.median(name) / 1e9, 1) for name, count in flops.items()}
    report.settings["read_gb_per_s"] = round(BYTES[report.size] / race.median("read") / 1e9, 1)
    limits.share(report, measure, problem.dense, problem.flops, "float32", ROUNDS[report.size])
    narrow = Problem(problem.past, dtype="bfloat16")
    limits.share(report, measure, narrow.dense, narrow.flops, "bfloat16", ROUNDS[report.size])


if __name__ == "__main__":
    main("attention", run)
