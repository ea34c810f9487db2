"""Specs and policies turn into each other, and a bad spec says what is wrong with it."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import thresher
from reference.specs import METHODS, parse, spec

BUDGETS = st.one_of(st.integers(8, 10**6), st.floats(0.01, 1.0))
SELECTS = st.builds(
    thresher.Quoka, budget=BUDGETS, n_queries=st.integers(1, 128), of=st.sampled_from(["prompt", "past"])
)
EVICTS = st.one_of(
    st.builds(thresher.KeyDiff, budget=BUDGETS, sinks=st.integers(0, 4), anchor=st.sampled_from(["normalised", "raw"])),
    st.builds(thresher.H2O, budget=BUDGETS, recent=st.integers(0, 4)),
    st.builds(thresher.SnapKV, budget=BUDGETS, kernel=st.sampled_from([3, 5, 7])),
    st.builds(thresher.Recent, budget=BUDGETS, sinks=st.integers(0, 4)),
    st.builds(thresher.Random, budget=BUDGETS, seed=st.integers(0, 9)),
    st.builds(thresher.Caote, budget=BUDGETS, base=st.sampled_from(["h2o", "tova", "snapkv"]), fast=st.booleans()),
)
PATHS = st.text(st.sampled_from('ab ,=":\\é'), min_size=1) | st.sampled_from(
    ["none", "true", "1", '"none"', "a,density=1", "/data/runs, old/ff,v2.safetensors", '"a,b"', "caf\udce9"]
)
FFNS = st.builds(
    thresher.FastForward, density=st.floats(0.05, 1.0), neurons=st.sampled_from(["griffin", "oracle"])
) | st.builds(thresher.FastForward, weights=PATHS, decode=st.booleans(), seed=st.integers(0, 5))
POLICIES = st.builds(thresher.Policy, select=st.none() | SELECTS, evict=st.none() | EVICTS, ffn=st.none() | FFNS)


@given(POLICIES, st.dictionaries(st.integers(0, 40), POLICIES, max_size=3))
def test_specs_and_policies_undo_each_other(policy: thresher.Policy, overrides: dict[int, thresher.Policy]) -> None:
    whole = thresher.Policy(policy.select, policy.evict, policy.ffn, overrides)
    assert thresher.Policy(**json.loads(json.dumps(whole.specs))) == whole


def test_the_readme_spellings() -> None:
    assert parse("select", "quoka:budget=1024") == thresher.Quoka(budget=1024)
    assert parse("evict", "caote:base=h2o,budget=2048") == thresher.Caote(budget=2048, base="h2o")
    assert parse("evict", "keydiff:budget=0.5") == thresher.KeyDiff(budget=0.5)
    assert spec(thresher.KeyDiff(budget=2048)) == "keydiff:budget=2048"
    assert {name for part in METHODS.values() for name in part} == {
        "quoka", "keydiff", "h2o", "tova", "snapkv", "caote", "recent", "random", "fastforward",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("text", "path"),
    [
        ("weights=a,b/c,d.bin", "a,b/c,d.bin"),
        ("weights=a,b,density=0.25", "a,b"),
        ("density=0.25,weights=./none", "./none"),
        ('weights="none",density=0.25', "none"),
        ('weights="x,density=1",density=0.25', "x,density=1"),
        ("density=0.25,weights=x=1", "x=1"),
    ],
)
def test_paths_may_be_called_anything(text: str, path: str) -> None:
    found = parse("ffn", f"fastforward:{text}")
    assert found.weights == path
    assert found.density == (0.25 if "density=0.25" in text else 0.5)


@pytest.mark.parametrize(
    ("part", "text", "message"),
    [
        ("select", "quokka:budget=4", "select: got 'quokka', wanted one of quoka"),
        ("evict", "quoka:budget=4", "evict: got 'quoka', wanted one of keydiff, h2o, tova, snapkv, caote"),
        ("evict", "keydiff", "evict: keydiff got no budget, wanted keydiff:budget="),
        ("evict", "keydiff:budgit=4", "evict: keydiff got the parameter 'budgit', wanted one of budget"),
        ("evict", "keydiff:budget", "evict: keydiff got 'budget', wanted budget=VALUE"),
        ("evict", "keydiff:budget=many", "evict: keydiff budget: got 'many', wanted int or float"),
        ("evict", "keydiff:budget=0", "budget: got 0"),
        ("evict", "keydiff:budget=4,sink=2", "keydiff got the parameter 'sink', wanted one of budget"),
        ("ffn", 'fastforward:weights="a,b', 'fastforward weights: got "a,b, wanted text that ends'),
        ("evict", "keydiff:budget=1.5", "budget: got 1.5"),
        ("evict", "caote:budget=4,fast=perhaps", "evict: caote fast: got 'perhaps', wanted bool"),
    ],
)
def test_bad_specs(part: str, text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        parse(part, text)


def test_a_policy_takes_specs_and_methods_alike() -> None:
    written = thresher.Policy(
        select="quoka:budget=64", evict="keydiff:budget=32", overrides={"2": {"evict": "h2o:budget=8"}}
    )
    meant = thresher.Policy(
        thresher.Quoka(budget=64),
        thresher.KeyDiff(budget=32),
        overrides={2: thresher.Policy(evict=thresher.H2O(budget=8))},
    )
    assert written == meant
    assert thresher.Policy(select="") == thresher.Policy()


@pytest.mark.parametrize(
    ("parts", "name"),
    [
        ({"select": thresher.KeyDiff(budget=8)}, "select"),  # an evictor does not select
        ({"evict": thresher.Quoka(budget=8)}, "evict"),
        ({"evict": thresher.KeyDiff}, "evict"),  # the class, not made
        ({"evict": 1024}, "evict"),
        ({"ffn": thresher.Tova(budget=8)}, "ffn"),
        ({"select": "keydiff:budget=8"}, "select"),
        ({"overrides": {0: thresher.KeyDiff(budget=8)}}, "overrides"),
        ({"overrides": {"first": thresher.Policy()}}, "overrides"),
        ({"overrides": {-1: thresher.Policy()}}, "overrides"),
        ({"overrides": [thresher.Policy()]}, "overrides"),
    ],
)
def test_a_part_that_cannot_serve_is_refused_when_the_policy_is_made(parts: dict[str, Any], name: str) -> None:
    with pytest.raises(ValueError, match=f"^{name}: got"):
        thresher.Policy(**parts)
