"""Long runs that the suite is too short for: `python -m tests.soak stream`, and so on.

stream    a million random tokens through KeyDiff at budget 1,024: the cache never exceeds it, and memory stays flat
threads   four Python threads generate from one LanguageModel, each answer checked against the one it gives alone
families  1,500 random small models of random families, each with the logits that transformers gives

Each prints what it did and exits non-zero where something is wrong. `thresher verify --seconds N` fuzzes the kernels.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from time import monotonic
from typing import Any

import numpy as np
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import accel
import thresher
from reference import KeyDiff, Model, Policy, Quoka, new_state, prefill
from tests.checkpoints import write_checkpoint
from tests.small import random_weights, small_config

BUDGET = 1024


def resident() -> int:
    """Bytes of this process in memory now (Linux)."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096


def stream(tokens: int) -> None:
    backend = accel.backend("cpu")
    config = small_config(max_positions=tokens)
    weights = backend.prepare_weights(random_weights(config, dtype="float32"))
    model = Model(config, weights, backend)
    state = new_state(model, Policy(evict=KeyDiff(BUDGET)))
    rng = np.random.default_rng(0)
    sizes = []
    for done in range(0, tokens, 50_000):
        prefill(model, state, rng.integers(0, config.vocab_size, min(50_000, tokens - done)))
        sizes.append(resident())
        assert state.cache.sizes == [BUDGET] * config.layers
        assert state.logits is not None
        assert np.isfinite(state.logits).all()
        print(
            f"{state.position:>9,} tokens  {sizes[-1] / 2**20:6.1f} MiB  cache {state.cache.nbytes:,} bytes", flush=True
        )
    grown = sizes[-1] - sizes[0]
    print(f"grown by {grown / 2**20:.2f} MiB from the first {50_000:,} tokens to the last")
    sys.exit(grown > 2**21)


def threads(seconds: float) -> None:
    with tempfile.TemporaryDirectory() as folder:
        llm = thresher.load(write_checkpoint(Path(folder) / "model"), backend="cpu")
        llm.encode("")  # reads the tokenizer
    policies = [None, Policy(select=Quoka(16)), Policy(evict=KeyDiff(32)), Policy(Quoka(8), KeyDiff(48))]
    prompts = ["It was a dark and stormy night; the rain fell in torrents. " * n for n in (1, 2, 3)]
    jobs = [(prompt, policy) for prompt in prompts for policy in policies]
    alone = [list(llm.generate(prompt, policy, max_new_tokens=16)) for prompt, policy in jobs]
    end = monotonic() + seconds

    def hammer(seed: int) -> int:
        rng, answers = np.random.default_rng(seed), 0
        while monotonic() < end:
            job = int(rng.integers(len(jobs)))
            prompt, policy = jobs[job]
            assert list(llm.generate(prompt, policy, max_new_tokens=16)) == alone[job], f"thread {seed}, job {job}"
            answers += 1
        return answers

    with ThreadPoolExecutor(4) as pool:
        counts = list(pool.map(hammer, range(4)))
    print(f"4 threads, {seconds:.0f} s: {sum(counts)} answers, each equal to the one given alone ({counts})")


def families(examples: int) -> None:
    import transformers  # which needs torch, as the check does

    from tests.loaders import record_families
    from tests.loaders.test_random_families import check, configs

    transformers.utils.logging.disable_progress_bar()
    seen: Counter[str] = Counter()

    @settings(max_examples=examples, deadline=None, suppress_health_check=list(HealthCheck))
    @given(configs(), st.integers(0, 2**32 - 1))
    def every(case: tuple[str, dict[str, Any]], seed: int) -> None:
        with tempfile.TemporaryDirectory() as folder:
            check(record_families, Path(folder), case, seed)
        seen[case[0]] += 1
        if seen.total() % 100 == 0:
            print(f"{seen.total():>6,} models", flush=True)

    every()
    print(f"{seen.total():,} models, each with transformers' logits: {dict(seen)}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", choices=["stream", "threads", "families"])
    parser.add_argument("--tokens", type=int, default=1_000_000)
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--models", type=int, default=1_500)
    options = parser.parse_args()
    if options.run == "stream":
        stream(options.tokens)
    elif options.run == "families":
        families(options.models)
    else:
        threads(options.seconds)


if __name__ == "__main__":
    main()
