"""Scorers on known traps. What is wanted is written by hand from the definitions; the figures of ROUGE-L and of the
code similarity were worked out by hand too."""

from __future__ import annotations

import pytest

from thresher.evaluation.scorers import longbench, maths, summaries, words


@pytest.mark.parametrize(
    ("text", "found"),
    [
        (r"so \boxed{\frac{1}{2}}.", r"\frac{1}{2}"),
        (r"\boxed{1} and then \boxed{\text{a } \{x, \frac{a}{b}\}} end", r"\text{a } \{x, \frac{a}{b}\}"),
        (r"\fbox{7}", "7"),
        (r"it is \boxed 5.", "5"),
        (r"\boxed{\sqrt{2", ""),
        (r"\boxed", ""),
        (r"\boxed{}", ""),
        ("nothing", ""),
    ],
)
def test_the_last_box_is_found_with_its_inner_braces(text: str, found: str) -> None:
    assert maths.boxed(text) == found


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("9 + 9 = 18\n#### 18\nmore", "18"),
        ("####", ""),
        (r"first 3, then \boxed{4} of 5", "4"),
        ("She makes $1,800 a day. Then 2.50", "2.50"),
        ("It is -3", "-3"),
        ("", ""),
    ],
)
def test_the_final_answer_of_a_solution(text: str, found: str) -> None:
    assert maths.final_answer(text) == found


SAME = [
    (r"\frac{1}{2}", "0.5"),
    (r"\dfrac{1}{2}", r"\tfrac12"),
    ("1/2", ".5"),
    (r"\frac{2}{4}", r"\frac12"),
    (r"-\frac{1}{2}", r"\frac{-1}{2}"),
    (r"1\frac{1}{2}", "3/2"),
    (r"2\sqrt{3}", r"\sqrt{12}"),
    (r"\frac{\pi}{2}", r"\frac{1}{2}\pi"),
    ("1,000", "1000"),
    ("1,234,567", "1234567"),
    (r"10,\!000", "10000"),
    (r"\$18", "18"),
    ("18 dollars", "18"),
    (r"5\text{ cm}^2", "5"),
    (r"90^\circ", "90"),
    (r"25\%", "25"),
    ("x = 5", "5"),
    (r"$\left( 3, \frac{\pi}{2} \right)$", r"(3,\pi/2)"),
    ("(0.5, 2)", r"\left(\frac12,2\right)"),
    (r"\text{Evelyn}", "evelyn"),
    (r"$\text{(C)}$", "C"),
    (r"\begin{pmatrix} 1 \\ 2 \end{pmatrix}", r"\begin{pmatrix}1\\2\end{pmatrix}"),
    ("2^{10}", "1024"),
    ("−3", "-3"),
    ("18.0", "18"),
    ("18.", "18"),
]
DIFFERENT = [
    ("", ""),
    ("", "0"),
    ("1,2", "12"),
    ("(1,2)", "[1,2]"),
    ("(1,2)", "(2,1)"),
    ("(1,2)", "(1,2,3)"),
    ("1000", "1001"),
    ("0.333", r"\frac13"),
    ("x+1", "x-1"),
    (r"\frac{1}{0}", "1"),
    ("-3", "3"),
    ("2^3", "23"),
    (r"\begin{pmatrix} 1 \\ 2 \end{pmatrix}", r"\begin{pmatrix}12\end{pmatrix}"),
    ("9^{9^{9^{9}}}", "9"),
    ("(" * 3000, ")" * 3000),
]


@pytest.mark.parametrize(("a", "b"), SAME)
def test_equal_formulas_are_the_same_either_way(a: str, b: str) -> None:
    assert maths.same_answer(a, b)
    assert maths.same_answer(b, a)


@pytest.mark.parametrize(("a", "b"), DIFFERENT)
def test_other_formulas_are_not(a: str, b: str) -> None:
    assert not maths.same_answer(a, b)
    assert not maths.same_answer(b, a)


def test_words_of_an_answer() -> None:
    assert words.normalise("The  Eiffel-Tower, in a   BOX!") == "eiffeltower in box"
    assert words.normalise("an theme a-b") == "theme ab"
    assert words.qa_f1("the cat sat", "A cat.") == pytest.approx(2 / 3)  # precision 1/2, recall 1
    assert words.qa_f1("cat cat cat", "cat") == pytest.approx(0.5)  # a word counts as often as it was wanted
    assert words.qa_f1("", "cat") == words.qa_f1("the", "the") == 0
    assert words.contains_all("It is 7421, and 99.", ["7421", "100"]) == 0.5
    assert words.contains_all("", ["7421"]) == 0
    assert words.contains_any("in PARIS", ["Lyon", "Paris"]) == 1
    assert words.says("Yes, they do. No doubt.", ["Yes"]) == 1
    assert words.says("Nothing, yesterday", ["yes"]) == words.says("", ["no"]) == 0


def test_rouge_l() -> None:
    assert summaries.rouge_l("a b c", "a b c") == pytest.approx(1)
    assert summaries.rouge_l("c b a", "a b c") == pytest.approx(1 / 3)  # one word in order: P = R = 1/3
    assert summaries.rouge_l("a x. b y", "a b c d") == pytest.approx(0.5)  # a by one sentence, b by the other: 2/4, 2/4
    assert summaries.rouge_l("", "a") == summaries.rouge_l("...", "a") == 0
    assert summaries.rouge_l("word " * 1100, "word " * 1100) == pytest.approx(1)  # no recursion
    assert summaries.common_subsequence("abcbdab", "bdcaba") in (list("bcba"), list("bdab"), list("bcab"))


def test_longbench() -> None:
    assert longbench.score("passage_count", "3 or 4", ["4"]) == 0.5
    assert longbench.score("passage_count", "none", ["4"]) == 0
    assert longbench.score("passage_retrieval_en", "Paragraph 12", ["Paragraph 12"]) == 1
    assert longbench.score("passage_retrieval_zh", "段落3", ["段落3"]) == 1
    assert longbench.score("qasper", "A neural net", ["rules", "the neural net"]) == 1
    assert longbench.score("triviaqa", "\nParis\nPassage: next", ["Paris"]) == 1
    assert longbench.score("trec", "Type: Food", ["Food"], ["Food", "Date"]) == 1
    assert longbench.score("trec", "Food or Date", ["Food"], ["Food", "Date"]) == 0.5
    assert longbench.score("trec", "City or town", ["City or town"], ["City", "City or town"]) == 1
    assert longbench.score("trec", "", ["Food"], ["Food"]) == 0
    assert longbench.score("lcc", "```\n# comment\nreturn x", ["return y"]) == 0.88  # 2 · 7 of 16 characters
    assert longbench.score("lcc", "", ["return y"]) == 0
    with pytest.raises(ValueError, match="qasper: got no answers"):
        longbench.score("qasper", "x", [])


def test_chinese_words_count_without_their_punctuation() -> None:
    pytest.importorskip("jieba")
    assert longbench.score("multifieldqa_zh", "北京。", ["北京"]) == 1
    assert longbench.score("multifieldqa_zh", "。！", ["北京"]) == 0
    assert longbench.score("dureader", "今天天气很好", ["今天天气很好"]) == pytest.approx(1)
