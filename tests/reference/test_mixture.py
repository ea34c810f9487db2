"""A mixture of experts against its formulas, token by token and expert by expert."""

from __future__ import annotations

import math
from types import ModuleType

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import reference
from accel import cpu
from reference import (
    H2O,
    Caote,
    Expert,
    FastForward,
    KeyDiff,
    Mixture,
    Model,
    Policy,
    Quoka,
    decode,
    mixture_ffn,
    new_state,
    prefill,
    route,
)
from tests.small import small_model

KINDS = {
    "softmax": Mixture((True, True), 5, 2, 12),
    "not normalised": Mixture((True, True), 6, 3, 12, normalised=False, scale=1.5),
    "sigmoid": Mixture((False, True), 8, 3, 12, 20, score="sigmoid", groups=4, groups_chosen=2, scale=2.5),
}
POLICIES = {
    "quoka": lambda budget: Policy(select=Quoka(budget)),
    "keydiff": lambda budget: Policy(evict=KeyDiff(budget)),
    "caote": lambda budget: Policy(evict=Caote(budget, base="h2o")),
    "h2o and quoka": lambda budget: Policy(select=Quoka(budget), evict=H2O(budget)),
}
IDS = np.random.default_rng(5).integers(0, 50, 90)


def routed(logits: list[float], bias: list[float], m: Mixture) -> dict[int, float]:
    """Expert -> share of one token, by the formulas."""
    if m.score == "sigmoid":
        scores = [1 / (1 + math.exp(-x)) for x in logits]
    else:
        scores = [math.exp(x) / sum(math.exp(other) for other in logits) for x in logits]
    ranked = [s + b for s, b in zip(scores, bias, strict=True)]
    size = m.experts // m.groups
    groups = [list(range(g * size, (g + 1) * size)) for g in range(m.groups)]
    weighs = [sum(sorted((ranked[e] for e in group), reverse=True)[:2]) for group in groups]
    best = sorted(range(m.groups), key=lambda g: (-weighs[g], g))[: m.groups_chosen]
    open_to_choice = [e for g in best for e in groups[g]]
    chosen = sorted(sorted(open_to_choice, key=lambda e: (-ranked[e], e))[: m.chosen])
    total = sum(scores[e] for e in chosen) if m.normalised else 1.0
    return {e: m.scale * scores[e] / total for e in chosen}


@st.composite
def mixtures(draw: st.DrawFn) -> Mixture:
    groups, size = draw(st.integers(1, 4)), draw(st.integers(1, 4))
    kept = draw(st.integers(1, groups))
    return Mixture(
        (True,),
        groups * size,
        draw(st.integers(1, kept * size)),
        3,
        score=draw(st.sampled_from(["softmax", "sigmoid"])),
        groups=groups,
        groups_chosen=kept,
        normalised=draw(st.booleans()),
        scale=draw(st.sampled_from([1.0, 2.5])),
    )


@given(mixtures(), st.integers(0, 2**31), st.booleans())
def test_routing_is_its_formula(mixture: Mixture, seed: int, ties: bool) -> None:
    rng = np.random.default_rng(seed)
    logits = rng.integers(-1, 2, (4, mixture.experts)) * 1.0 if ties else rng.standard_normal((4, mixture.experts))
    # beside a tie a bias would make sums that are equal but for the order in which they are added up
    bias = np.zeros(mixture.experts) if ties else rng.standard_normal(mixture.experts) / 4
    chosen, shares = route(logits, bias, mixture=mixture)
    assert chosen.dtype == np.int64
    for row, experts, given_shares in zip(logits, chosen, shares, strict=True):
        wanted = routed(row.tolist(), bias.tolist(), mixture)
        assert experts.tolist() == list(wanted)
        np.testing.assert_allclose(given_shares, list(wanted.values()), rtol=1e-12)


def test_a_bias_moves_the_choice_and_not_the_shares() -> None:
    logits, bias = np.array([[2.0, 1.0, 0.0]]), np.array([0.0, 0.0, 5.0])
    mixture = Mixture((True,), 3, 2, 1, score="sigmoid", normalised=False)
    chosen, shares = route(logits, bias, mixture=mixture)
    assert chosen.tolist() == [[0, 2]]
    np.testing.assert_allclose(shares, [[1 / (1 + math.exp(-2)), 0.5]])


def test_a_token_without_numbers_spoils_itself_alone() -> None:
    logits = np.array([[0.0, np.nan, 1.0, 2.0], [0.0, 3.0, 1.0, 2.0]])
    chosen, shares = route(logits, mixture=Mixture((True,), 4, 2, 1, groups=2, groups_chosen=2))
    assert chosen.tolist()[1] == [1, 3]
    assert np.isnan(shares[0]).all()
    assert np.isfinite(shares[1]).all()


@given(st.integers(1, 6), st.integers(1, 9), st.integers(0, 2**31))
def test_the_output_is_the_sum_of_shares(experts: int, tokens: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((tokens, 5))
    ffns = [Expert(*rng.standard_normal((2, 4, 5)), rng.standard_normal((5, 4))) for _ in range(experts)]
    k = rng.integers(1, experts + 1)
    chosen = np.sort(np.argsort(rng.random((tokens, experts)), axis=1)[:, :k], axis=1)
    shares = rng.standard_normal((tokens, k))
    wanted = np.zeros((tokens, 5))
    for t in range(tokens):
        for e, share in zip(chosen[t], shares[t], strict=True):
            gate, up = ffns[e].w_gate @ x[t], ffns[e].w_up @ x[t]
            wanted[t] += share * (ffns[e].w_down @ (gate / (1 + np.exp(-gate)) * up))
    np.testing.assert_allclose(mixture_ffn(x, ffns, chosen, shares), wanted, rtol=1e-10, atol=1e-10)


def logits_of(
    backend: ModuleType, mixture: Mixture, policy: Policy, chunk: int = 16
) -> tuple[np.ndarray, reference.State]:
    """Logits after every token of a prompt and of three that are decoded, and the state."""
    model = small_model(mixture=mixture, biases=True)
    model = Model(model.config, backend.prepare_weights(model.weights), backend)
    state = new_state(model, policy)
    rows = [prefill(model, state, IDS, chunk=chunk, every=True)]
    for token in (3, 1, 4):
        decode(model, [state], [token])
        rows.append(np.asarray(state.logits)[None])
    return np.concatenate(rows), state


@pytest.mark.parametrize("kind", KINDS)
def test_whole_models(kind: str) -> None:
    """In chunks and not, on the reference and on the CPU; every method with room for all is dense, and else keeps its
    budget."""
    dense, state = logits_of(reference, KINDS[kind], Policy())
    np.testing.assert_allclose(logits_of(reference, KINDS[kind], Policy(), chunk=128)[0], dense, rtol=0, atol=1e-9)
    np.testing.assert_allclose(logits_of(cpu, KINDS[kind], Policy())[0], dense, rtol=0, atol=2e-5)
    neurons = [KINDS[kind].neurons if mixed else 64 for mixed in KINDS[kind].layers]
    assert state.counts.neurons_run.tolist() == [93 * n for n in neurons]
    for make in POLICIES.values():
        np.testing.assert_allclose(logits_of(reference, KINDS[kind], make(93))[0], dense, rtol=0, atol=1e-9)
        wanted, meant = logits_of(reference, KINDS[kind], make(30))
        got, held = logits_of(cpu, KINDS[kind], make(30))
        np.testing.assert_allclose(got, wanted, rtol=0, atol=2e-5)
        assert held.cache.sizes == meant.cache.sizes
        assert make(30).evict is None or max(held.cache.sizes) <= 30


def test_sequences_that_decode_together_get_their_own_bits() -> None:
    model = small_model(mixture=KINDS["sigmoid"], dtype="float32")
    model = Model(model.config, cpu.prepare_weights(model.weights), cpu)
    together, alone = [], []
    for start, token in enumerate((7, 8, 9)):
        for states in (together, alone):
            states.append(new_state(model))
            prefill(model, states[-1], IDS[start : start + 20])
        decode(model, [alone[-1]], [token])
    decode(model, together, [7, 8, 9])
    for state, single in zip(together, alone, strict=True):
        np.testing.assert_array_equal(np.asarray(state.logits), np.asarray(single.logits))


def test_what_cannot_be_is_one_line() -> None:
    for fields, message in [
        ({"groups": 3}, "groups: got 3, wanted a number that divides 4 experts"),
        ({"groups": 2, "groups_chosen": 3}, "groups_chosen: got 3, wanted at most the 2 groups"),
        (
            {"groups": 4, "groups_chosen": 1},
            "chosen: got 2 experts per token, wanted at most the 1 in the chosen groups",
        ),
        ({"score": "relu"}, "score: got 'relu', wanted one of softmax, sigmoid"),
    ]:
        with pytest.raises(ValueError, match=message):
            Mixture((True,), 4, 2, 3, **fields)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="mixture: got 1 layers, wanted 2"):
        small_model(mixture=Mixture((True,), 4, 2, 3))
    model = small_model(mixture=KINDS["softmax"])
    for policy in (
        Policy(ffn=FastForward(0.5, neurons="griffin")),
        Policy(overrides={0: Policy(ffn=FastForward(0.5, neurons="random"))}),
    ):
        with pytest.raises(ValueError, match=r"^ffn: got FastForward for a mixture of experts, wanted .*$"):
            new_state(model, policy)
