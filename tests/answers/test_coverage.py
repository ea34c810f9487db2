"""pass@k of methods and their mix against a count by hand."""

from __future__ import annotations

from itertools import product

import pytest

from thresher.answers.coverage import coverage, majority


def test_curves_order_and_what_is_saved() -> None:
    right, wrong = "2", "5"
    answers = {
        "text": [[right, wrong, wrong, wrong], [wrong] * 4],
        "code": [[wrong] * 4, [right, right, wrong, wrong]],
    }
    told = coverage(answers, [("2",), ("2.0",)])
    assert told["order"] == ["code", "text"]  # 2 of 8 are right, and 1 of 8
    text, code, mix = (told["methods"][name] for name in ("text", "code", "mix"))
    assert [each["mean"] for each in text["pass"]] == pytest.approx([1 / 8, 2 / 8, 3 / 8, 4 / 8])
    assert [each["mean"] for each in code["pass"]] == pytest.approx([2 / 8, (5 / 6) / 2, 1 / 2, 1 / 2])
    # the mix: code, text, code, text; the first problem needs text, the second code
    wanted = [(0 + 1 / 2) / 2, (1 / 4 + 1 / 2) / 2, (1 / 4 + 5 / 6) / 2, (1 / 2 + 5 / 6) / 2]
    assert [each["mean"] for each in mix["pass"]] == pytest.approx(wanted)
    assert (text["reached"], text["saved"]) == (3, pytest.approx(1 / 4))
    assert (code["reached"], code["saved"]) == (3, pytest.approx(1 / 4))
    assert "reached" not in mix
    assert told["methods"]["text"]["majority"]["mean"] == 0
    assert all(0 <= each["low"] <= each["mean"] <= each["high"] <= 1 for each in mix["pass"])


def test_a_ceiling_that_the_mix_does_not_reach() -> None:
    told = coverage({"a": [["1", "0"]], "b": [["0", "0"]]}, [("1",)])
    assert told["methods"]["a"]["reached"] is None
    assert told["methods"]["a"]["saved"] is None
    assert told["methods"]["b"]["reached"] is None  # there is nothing to reach


def test_pass_at_k_is_the_share_of_choices_of_runs() -> None:
    table = {"a": [["1", "0", "1"], ["0", "0", "0"]], "b": [["0", "1", "0"], ["0", "1", "1"]]}
    told = coverage(table, [("1",), ("1",)])
    choices = list(product(range(3), repeat=2))  # a mix of two runs: one of each method
    hits = [any(table[m][p][i] == "1" for m, i in zip("ab", pair, strict=True)) for p in range(2) for pair in choices]
    assert told["methods"]["mix"]["pass"][1]["mean"] == pytest.approx(sum(hits) / len(hits))


def test_majority_counts_what_is_the_same_and_not_what_is_empty() -> None:
    assert majority(["", "", "", "1/2", "3", "0.5"]) == "1/2"
    assert majority(["", ""]) == ""
    assert {majority(["1", "2"], seed) for seed in range(10)} == {"1", "2"}


def test_rows_of_other_lengths_are_refused() -> None:
    with pytest.raises(ValueError, match="answers: got rows of other lengths, wanted 2 runs of 1 problems"):
        coverage({"a": [["1", "2"]], "b": [["1"]]}, [("1",)])


def test_the_mix_votes_with_the_first_runs_of_its_methods_in_turn() -> None:
    told = coverage({"a": [["0", "1", "1"]]}, [("1",)])
    assert told["methods"]["mix"]["majority"]["mean"] == told["methods"]["a"]["majority"]["mean"] == 1
    told = coverage({"a": [["1", "2", "0"]], "b": [["1", "0", "0"]]}, [("1",)])
    assert told["methods"]["mix"]["majority"]["mean"] == 1  # a, b, a: 1, 1, 2
