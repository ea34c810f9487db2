"""What runs in numba.cuda's simulator, in a process of its own: the portable kernels of the whole contract, and a
model.

    NUMBA_ENABLE_CUDASIM=1 python -m tests.cuda.simulated NAME…

checks these names of the contract, "forward", "repeated", "refused" or "shared out". The last line printed is JSON: a
failure by name, and the types that every kernel was called with, for the tests that assemble them. The simulator runs a
thread of the operating system for every thread of a kernel, so that shapes must be tiny.
"""

from __future__ import annotations

import gc
import json
import sys
import weakref
from dataclasses import replace
from typing import Any

import numpy as np
from hypothesis import strategies as st

import accel.cuda
import reference
from accel.cuda.methods.topk import keep_top_each
from accel.cuda.runtime.kernels import Kernel
from reference import (
    H2O,
    Caote,
    FastForward,
    KeyDiff,
    Latent,
    Mixture,
    Model,
    Policy,
    Quoka,
    Rope,
    SnapKV,
    State,
    decode,
    keep_top,
    new_state,
    prefill,
)
from reference.state import Chunk
from tests.equivalence.calling import call
from tests.equivalence.test_bad_input import CALLS
from tests.small import small_model, with_norms
from thresher.verify import check_function, drawing
from thresher.verify.drawing import Drawing

EXAMPLES = 3
TINY: dict[str, Any] = {
    "width": 6, "heads": 2, "kv_heads": 1, "head_dim": 4, "ffn_width": 6, "vocab_size": 11, "layers": 1
}  # fmt: skip
BENT: dict[str, Any] = {
    "score_cap": 0.5, "logit_cap": 1.5, "logit_scale": 2.0, "residual_scale": 0.5, "joint_qk_norm": True,
    "biases": True, "ropes": (Rope(1e4, share=0.5),),
}  # fmt: skip
STEADY = {  # under which decoding is recorded
    "dense": Policy(),
    "quoka": Policy(select=Quoka(5, n_queries=2, sinks=1, recent=1)),
    "keydiff": Policy(evict=KeyDiff(6)),
    "h2o": Policy(evict=H2O(6)),
    "snapkv": Policy(evict=SnapKV(6, window=3)),
    "quoka and caote": Policy(select=Quoka(4, n_queries=2), evict=Caote(6, base="snapkv", window=3)),
}
ONLY_NUMBERS = (
    "positions out of order", "a query twice", "a negative score", "a score that is no number",
    "scores that cannot be ranked", "a neuron that is not there", "a neuron twice", "neurons as a mask",
)  # fmt: skip
THIN = {"block": 3, "dense_first": 2, "dense_last": 2}
POLICIES = {
    "dense": Policy(),
    "quoka": Policy(select=Quoka(5, n_queries=2, sinks=1, recent=1)),
    "keydiff": Policy(evict=KeyDiff(6)),
    "h2o": Policy(evict=H2O(6)),
    "snapkv": Policy(evict=SnapKV(6, window=3)),
    "caote over tova": Policy(evict=Caote(6, base="tova", sinks=2)),
    "all": Policy(
        select=Quoka(4, n_queries=2), evict=Caote(7, fast=True), ffn=FastForward(0.5, neurons="griffin", **THIN)
    ),
}


def shrink() -> None:
    """Let drawn cases be tiny, and few chunks share a pass."""
    accel.cuda.TOGETHER = 2

    def heads(self: Drawing) -> tuple[int, int, int]:
        kv_heads, group = self.pick("KV", st.integers(1, 2)), self.pick("G", st.sampled_from([1, 3]))
        return kv_heads * group, kv_heads, self.pick("D", st.sampled_from([3, 4]))

    def sized(name: str, most: int) -> Any:
        return lambda self, *_: self.pick(name, st.integers(1, most))

    def width(self: Drawing, name: str, most: int = 7) -> int:
        self.chosen[name] = max(1, min(self.pick(name, st.integers(1, 7)), most))
        return int(self.chosen[name])

    for name, method in {"heads": heads, "tokens": sized("T", 4), "keys": sized("S", 9), "width": width}.items():
        setattr(drawing.Drawing, name, method)


def logits(model: Model, policy: Policy) -> tuple[np.ndarray, State]:
    """After every token of a prompt and of two decoding steps."""
    state = new_state(model, policy)
    ids = np.random.default_rng(0).integers(0, model.config.vocab_size, 20)
    rows = [prefill(model, state, ids, chunk=4, every=True)]
    for token in (3, 1):
        decode(model, [state], [token])
        rows.append(model.backend.to_numpy(state.logits)[None])
    return np.concatenate(rows), state


def forward() -> str:
    """Every policy, and a window, against the reference in float64: what was wrong."""
    experts = Mixture((True,), 4, 2, 3, shared_width=2, groups=2, groups_chosen=1, score="sigmoid")
    own: dict[str, dict[str, Any]] = {
        "window": {"window": 5},
        "dense": {"biases": True},
        "caps and factors": BENT,
        "experts": {"mixture": experts},
        "latent": {"latent": Latent(5, 2, 2, 3, query_rank=4), "kv_heads": 2},
    }
    more = {name: Policy() for name in ("window", "norms after", "experts", "latent")}
    for name, policy in (POLICIES | more | {"caps and factors": POLICIES["caote over tova"]}).items():
        fields: dict[str, Any] = TINY | own.get(name, {})
        meant = with_norms(small_model(**fields), before=False) if name == "norms after" else small_model(**fields)
        wanted, there = logits(meant, policy)
        prepared = accel.cuda.prepare_weights(meant.weights)
        got, here = logits(Model(meant.config, prepared, accel.cuda), policy)
        error = float(np.linalg.norm(got - wanted) / np.linalg.norm(wanted))
        if not error < 1e-5:
            return f"{name}: logits are off by {error:.2e}"
        for ours, theirs in zip(here.positions, there.positions, strict=True):
            if not np.array_equal(accel.cuda.to_numpy(ours), theirs):
                return f"{name}: got tokens {accel.cuda.to_numpy(ours).tolist()}, wanted {theirs.tolist()}"
    return ""


def repeated() -> str:
    """What a recorded pass notes on the host is what the pass did, token by token: what was wrong."""
    for name, policy in STEADY.items():
        meant = small_model(**TINY | {"layers": 2, "windows": (None, 5), "ropes": (Rope(1e4),) * 2})
        model = Model(meant.config, accel.cuda.prepare_weights(meant.weights), accel.cuda)
        _, state = logits(model, policy)
        while not all(layer.has_room(1) for layer in state.cache.layers):  # buffers are about to move
            decode(model, [state], [1])
        before = state.cache.passed
        decode(model, [state], [1])
        if before is None or state.cache.passed is not before:
            return f"{name}: the pass was not recorded, or not used again"
        twin = replace(state, cache=state.cache.copy(), counts=state.counts.copy())
        decode(model, [state], [1])
        before._note(model, [Chunk(twin, np.array([1]), twin.position, twin.position + 1, slice(0, 1), decoding=True)])
        for layer, window in zip(twin.cache.layers, model.config.windows, strict=True):
            if window is not None:
                layer.keep_newest(window)
        told = [
            (layer.size, layer.newest, layer._room, layer._run, layer.k.address - layer._k.address)
            for cache in (state.cache, twin.cache)
            for layer in cache.layers
        ]
        if told[:2] != told[2:]:
            return f"{name}: got {told[2:]}, wanted {told[:2]}"
        for field, counted in vars(state.counts).items():
            if not np.array_equal(counted, getattr(twin.counts, field)):
                return f"{name}: {field}: got {getattr(twin.counts, field)}, wanted {counted}"
        kept = weakref.ref(state.cache)
        gc.disable()
        del state, twin, before, told
        if kept() is not None:
            return f"{name}: a sequence that is gone keeps its memory"
        gc.enable()
    return ""


def shared_out() -> str:
    """Rows that several blocks share: ties across their borders, chunks that end within one, what is protected; rows of
    one block with ties at the cut, and more long rows than there are blocks."""
    rng = np.random.default_rng(0)
    shared = (23, 2, 9, 0, 0), (20, 0, 19, 2, 3), (17, 1, 1, 0, 1), (22, 3, 6, 3, 0)
    alone = (1, 0, 1, 0, 0), (3, 0, 1, 0, 0), (4, 1, 2, 0, 0), (5, 0, 3, 2, 1), (6, 2, 4, 0, 2)
    for rows, size, step, budget, sinks, recent in (
        *[(2, *one) for one in (*shared, *alone)],
        (7, 19, 0, 5, 1, 1),
        (9, 6, 0, 3, 1, 0),
    ):
        few = np.array([-np.inf, -1, -0.0, 0, 1, np.inf], np.float32)
        scores = rng.choice(few[:: rng.integers(1, 3)], (2, rows, size))
        places = np.sort(rng.permuted(np.tile(np.arange(2 * size), (rows, 1)), axis=1)[:, :size], axis=1)
        there = [accel.cuda.to_backend(x) for x in (scores, places)]
        got = accel.cuda.to_numpy(keep_top_each(there[0], size - step, step, budget, sinks, recent, there[1]))
        for chunk, lines in enumerate(scores):
            past = size - step + chunk * step
            wanted = keep_top(lines[:, :past], budget, sinks=sinks, recent=recent, positions=places[:, :past])
            if not np.array_equal(got[chunk], wanted):
                return f"{size} columns, chunk {chunk}: got {got[chunk].tolist()}, wanted {wanted.tolist()}"
    return ""


def named(kind: Any) -> Any:
    """One argument's type for JSON."""
    return [kind[0].name, kind[1]] if isinstance(kind, tuple) else kind.__name__


def refused() -> str:
    """What only numbers can tell is refused in the reference's words: what was not."""
    for name in ONLY_NUMBERS:
        function, arguments, options = CALLS[name]
        said = []
        for backend in (reference, accel.cuda):
            try:
                call(backend, function, *arguments, **options)
            except ValueError as error:
                said.append(str(error))
        if len(said) < 2 or said[0] != said[1]:
            return f"{name}: got {said[1:]}, wanted {said[:1]}"
    ids = accel.cuda.to_backend(np.array([3, 11, -1]))
    try:
        accel.cuda.to_numpy(accel.cuda.embed(ids, accel.cuda.to_backend(np.ones((11, 2), np.float32))))
    except ValueError as error:
        return "" if str(error) == "token_ids: got id 11, wanted 0 to 10" else str(error)
    return "an id beyond the table was taken"


OWN = {"refused": refused, "forward": forward, "repeated": repeated, "shared out": shared_out}


def main(names: list[str]) -> None:
    """Check, and print what was found."""
    shrink()
    failures: dict[str, str] = {}
    for name in names:
        failure = OWN[name]() if name in OWN else check_function(accel.cuda, name, examples=EXAMPLES).failure
        if failure:
            failures[name] = failure
    keys = {kernel.name: [[named(one) for one in key] for key in kernel.keys] for kernel in Kernel.known}
    print(json.dumps({"failures": failures, "keys": {name: found for name, found in keys.items() if found}}))


if __name__ == "__main__":
    main(sys.argv[1:])
