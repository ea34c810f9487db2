"""The simulation of sources: what it draws, and that the page tells what was recorded."""

from __future__ import annotations

import json

import numpy as np
import pytest

voting = pytest.importorskip("benchmarks.voting")


def test_sources_answer_as_the_priors_say() -> None:
    reliability = np.array([0.1, 0.5, 0.9])
    drawn = voting.answers(np.random.default_rng(0), reliability, 20_000)
    known = drawn >= 0
    np.testing.assert_allclose(known.mean(), voting.COVERAGE, atol=0.01)
    np.testing.assert_allclose((drawn == 0).sum(axis=1) / known.sum(axis=1), reliability, atol=0.02)
    wrong = np.bincount(drawn[drawn > 0], minlength=voting.WRONG + 1)[1:]
    np.testing.assert_allclose(wrong / wrong.sum(), 1 / voting.WRONG, atol=0.01)
    rng = np.random.default_rng(0)
    assert np.isclose(voting.PRIORS["Beta(3, 2)"](rng, 50_000).mean(), 3 / 5, atol=0.01)
    assert set(voting.PRIORS["adversaries and hammers"](rng, 100)) == {0.1, 0.9}


def test_a_repeat_follows_from_its_seed_and_reads_four_sources() -> None:
    found = voting.simulate("adversaries and hammers", 40, 3)
    assert found == voting.simulate("adversaries and hammers", 40, 3)
    assert found["majority"] <= found["true"]
    # four answers are found after 4 / 0.6 sources in the mean
    assert found["fewer reads"] == pytest.approx(1 - voting.KAPPA / voting.COVERAGE / 40, abs=0.01)


def test_sources_that_are_all_alike_have_no_correlation() -> None:
    told = voting.told([{name: float("nan") for name in voting.COLUMNS}])
    assert told["correlation"] == {"mean": None, "low": None, "high": None, "n": 0}
    row = {"prior": "Beta(3, 2)", "sources": 3, **told}
    assert "| 3 |  |  |  |  |  |  |" in voting.table({"rows": [row]})


def test_the_record_has_every_prior_and_number_of_sources() -> None:
    record = json.loads((voting.RECORDS / "voting-simulated.json").read_text(encoding="utf-8"))
    assert {(row["prior"], row["sources"]) for row in record["rows"]} == {
        (prior, n) for prior in voting.PRIORS for n in voting.SOURCES
    }
