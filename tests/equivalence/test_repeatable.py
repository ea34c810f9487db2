"""The same input gives the same bits, whatever the threads' timing and however many of them helped."""

from __future__ import annotations

import os
import subprocess
import sys

CALLS = """
import hashlib, sys
import numpy as np
from accel import cpu
from accel.cpu.runtime import team
from reference import Compensator, Predictor
from tests.small import small_config

rng = np.random.default_rng(0)

def drawn(*shape):
    return rng.standard_normal(shape, np.float32)

def held():
    cache = cpu.new_cache(small_config(layers=1, kv_heads=3, heads=6, head_dim=32), np.dtype(np.float16)).layers[0]
    cache.append(k[:, :, :32], v[:, :, :32], 0)
    cache.keep(np.tile(np.arange(0, 2000, 3), (3, 1)))
    return cache

E, F = 96, 700
gate, up, down, square = drawn(F, E), drawn(F, E), drawn(F, E).T, drawn(E, E)
wide, few = [drawn(200, 1030) for _ in range(2)], drawn(200, 1030).T
half = [w.astype(np.float16) for w in (gate, up, down)]
k, v, heads = drawn(3, 2000, 64), drawn(3, 2000, 64), np.abs(drawn(9, 2000))
seen = np.tile(np.arange(2000), (3, 1))
neurons = np.arange(0, F, 2)
compensator, predictor = Compensator(drawn(12, E), drawn(E, 12)), Predictor(drawn(E), drawn(E, 16), drawn(16, F))
ffn, others = {}, {}
for T in (1, 4, 5, 40, 300):
    x, q, at = drawn(T, E), drawn(9, T, 64), np.arange(1999, 1999 + T)
    x_wide = drawn(T, 1030)
    ffn |= {
        f"gated_ffn {T}": lambda x=x: cpu.gated_ffn(x, gate, up, down),
        f"gated_ffn of float16 {T}": lambda x=x: cpu.gated_ffn(x, *half),
        f"gated_ffn wider than an item {T}": lambda x=x_wide: cpu.gated_ffn(x, *wide, few),
        f"sparse_ffn {T}": lambda x=x: cpu.sparse_ffn(x, gate, up, down, neurons, compensator=compensator),
        f"linear {T}": lambda x=x: cpu.linear(x, square),
    }
    others |= {
        f"predictor_scores {T}": lambda x=x: cpu.predictor_scores(x, predictor),
        f"attention {T}": lambda q=q, at=at: cpu.attention(q, k, v, at, seen),
        f"attention_mass {T}": lambda q=q, at=at: cpu.attention_mass(q, k, at, seen),
        f"attention_and_mass_each {T}": lambda q=q, at=at: cpu.attention_and_mass_each([(q, k, v, at, seen)])[0][1],
        f"snapkv_scores {T}": lambda q=q, at=at: cpu.snapkv_scores(q, k, at, seen),
        f"key_scores {T}": lambda q=q: cpu.key_scores(q, k, 16),
        f"select_queries {T}": lambda q=q: cpu.select_queries(q, 3),
    }
others |= {
    "keydiff_scores": lambda: cpu.keydiff_scores(k),
    "keydiff_scores, raw": lambda: cpu.keydiff_scores(k, anchor="raw"),
    "caote_scores": lambda: cpu.caote_scores(heads, v),
    "caote_scores, fast": lambda: cpu.caote_scores(heads, v, fast=True),
    "what a cache knows": lambda: np.concatenate([x.ravel() for x in (held().keys().rates, held().keys().sums)]),
}

def digest(call):
    return hashlib.sha256(np.ascontiguousarray(call()).tobytes()).hexdigest()

together = team._team
for name, call in (ffn | others).items():
    found = {digest(call) for _ in range(20)}
    team._team = team._Team(0)  # as when another thread has the team
    found.add(digest(call))
    team._team = together
    print(f"{name}: {found.pop() if name in ffn else 1}" if len(found) == 1 else f"{name}: {len(found)} results")
"""


def printed(threads: int) -> list[str]:
    """What the calls above print with so many threads."""
    environment = {**os.environ, "THRESHER_NUM_THREADS": str(threads)}
    run = subprocess.run([sys.executable, "-c", CALLS], env=environment, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    return run.stdout.splitlines()


def test_equal_calls_give_equal_bits_together_and_alone() -> None:
    four = printed(4)
    assert len(four) > 50
    assert not [line for line in four if line.endswith(" results")]
    assert printed(1) == four  # sums of the FFN and of linear do not even depend on how many threads there are
