"""A trace tells what happened, and survives being packed into flat arrays."""

from __future__ import annotations

import numpy as np
import pytest

import reference
from reference import Caote, FastForward, KeyDiff, Policy, Quoka, State, Trace, decode, keydiff_scores, prefill
from reference.eviction import Evictor, Seen
from tests.small import small_model

IDS = np.random.default_rng(2).integers(0, 50, 400)
EVERYTHING = Policy(Quoka(24, sinks=1), KeyDiff(60), FastForward(neurons="oracle"))


def run(policy: Policy | None, *, length: int = 400, chunk: int = 32, steps: int = 2) -> State:
    model = small_model(layers=3)
    state = reference.new_state(model, policy, trace=True)
    prefill(model, state, IDS[:length], chunk=chunk)
    for token in range(steps):
        decode(model, [state], [token])
    return state


def traced(state: State) -> Trace:
    assert state.trace is not None
    return state.trace


def test_one_entry_per_layer_and_chunk() -> None:
    trace = traced(run(EVERYTHING))
    chunks = [*range(0, 400, 32), 400, 401]
    assert sorted((read.at, read.layer) for read in trace.reads) == [(at, n) for at in chunks for n in range(3)]
    assert sorted((ran.at, ran.layer) for ran in trace.neurons) == [(at, n) for at in chunks for n in range(3)]
    assert sorted((e.at, e.layer) for e in trace.evictions) == [(at, n) for at in chunks[1:] for n in range(3)]


def test_replaying_the_trace_gives_the_cache() -> None:
    """Every token is read, evicted or held as the trace says, in every KV head; nothing read had been evicted."""
    state = run(EVERYTHING)
    trace, chunks = traced(state), [*((at, min(32, 400 - at)) for at in range(0, 400, 32)), (400, 1), (401, 1)]
    for n in range(3):
        held = [set[int](), set[int]()]
        for at, tokens in chunks:
            (read,) = [r for r in trace.reads if (r.layer, r.at) == (n, at)]
            gone = [e for e in trace.evictions if (e.layer, e.at) == (n, at)]
            for kv in range(2):
                if read.positions is None:
                    assert len(held[kv]) <= 24
                else:
                    assert read.positions.shape == (2, 24)
                    assert set(read.positions[kv].tolist()) <= held[kv]
                    assert 0 in read.positions[kv] or 0 not in held[kv]  # the sink
                held[kv] |= set(range(at, at + tokens))
                if gone:
                    forgotten = set(gone[0].positions[kv].tolist())
                    assert forgotten <= held[kv]
                    held[kv] -= forgotten
        np.testing.assert_array_equal(state.cache.layers[n].positions, [sorted(held[0]), sorted(held[1])])


def test_the_scores_are_those_that_tokens_were_forgotten_for() -> None:
    seen: list[np.ndarray] = []

    class Watched(KeyDiff):
        def scores(self, seen_now: Seen) -> np.ndarray:
            seen.append(np.stack([keydiff_scores(seen_now.cache.k), seen_now.cache.positions]))
            return super().scores(seen_now)

    trace = traced(run(Policy(evict=Watched(60))))
    assert len(seen) == len(trace.evictions)
    for (scores, positions), evicted in zip(seen, trace.evictions, strict=True):
        for kv in range(2):
            score_of = dict(zip(positions[kv].astype(int).tolist(), scores[kv].tolist(), strict=True))
            wanted = [score_of[p] for p in evicted.positions[kv].tolist()]
            np.testing.assert_allclose(evicted.scores[kv], wanted)
            assert max(wanted) <= min(s for p, s in score_of.items() if p not in evicted.positions[kv])


def test_counts_add_up_the_trace() -> None:
    state = run(EVERYTHING)
    trace = traced(state)
    for n in range(3):
        evicted = sum(e.positions.shape[1] for e in trace.evictions if e.layer == n)
        assert state.counts.keys_evicted[n] == evicted == 402 - 60
        ran = [64 if r.neurons is None else len(r.neurons) for r in trace.neurons if r.layer == n]
        sizes = [*[32] * 12, 16, 1, 1]
        assert state.counts.neurons_run[n] == sum(t * k for t, k in zip(sizes, ran, strict=True))
        assert state.counts.neurons_total[n] == 402 * 64


def test_nothing_is_traced_unless_asked_for() -> None:
    model = small_model()
    state = reference.new_state(model, EVERYTHING)
    prefill(model, state, IDS)
    assert state.trace is None


@pytest.mark.parametrize(
    "policy",
    [
        None,
        EVERYTHING,
        Policy(Quoka(0.25, of="past")),
        Policy(evict=Caote(1)),
        Policy(ffn=FastForward(neurons="random")),
    ],
)
def test_flat_arrays_and_back(policy: Policy | None) -> None:
    trace = traced(run(policy))
    arrays = trace.to_arrays()
    back = Trace.from_arrays(arrays)
    for name in ("reads", "evictions", "neurons"):
        before, after = getattr(trace, name), getattr(back, name)
        assert len(before) == len(after)
        for one, other in zip(before, after, strict=True):
            assert type(one) is type(other)
            for x, y in zip(one, other, strict=True):
                assert (x is None) == (y is None)
                if x is not None:
                    np.testing.assert_array_equal(x, y)
                    assert np.asarray(x).dtype == np.asarray(y).dtype
    assert all(array.ndim in (1, 2) for array in arrays.values())


def test_a_trace_is_small() -> None:
    """A dense run is a line per choice; a selection adds the kept positions alone, four bytes each."""
    dense = sum(array.nbytes for array in traced(run(None)).to_arrays().values())
    assert dense == 2 * 3 * 15 * 16
    chosen = sum(array.nbytes for array in traced(run(Policy(Quoka(24)))).to_arrays().values())
    assert chosen == dense + 3 * 14 * 2 * 24 * 4


def test_damaged_arrays() -> None:
    arrays = traced(run(EVERYTHING)).to_arrays()
    with pytest.raises(ValueError, match=r"trace: got no array scores\.table"):
        Trace.from_arrays({})
    with pytest.raises(ValueError, match=r"evictions\.values: got 3 values, wanted at least"):
        Trace.from_arrays({**arrays, "evictions.values": arrays["evictions.values"][:3]})
    with pytest.raises(ValueError, match=r"neurons\.table: got shape \(5,\), wanted \(n, 4\)"):
        Trace.from_arrays({**arrays, "neurons.table": np.zeros(5, np.int32)})
    with pytest.raises(ValueError, match=r"scores: got 2 entries, wanted 42"):
        Trace.from_arrays({**arrays, "scores.table": arrays["scores.table"][:2]})


def test_an_evictor_without_scores_is_no_evictor() -> None:
    with pytest.raises(NotImplementedError):
        run(Policy(evict=Evictor(10)))
