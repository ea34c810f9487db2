"""LongBench's own measures, and which of its tasks uses what. Several references count by the best of them.

Source: Bai et al., LongBench (2024), and the metrics that its authors published with it. Chinese text is cut into words
by the package jieba, as there.
"""

from __future__ import annotations

import re
import string
from collections.abc import Callable, Sequence
from difflib import SequenceMatcher

from reference.checks import require
from thresher.evaluation.scorers.summaries import rouge_l
from thresher.evaluation.scorers.words import qa_f1, token_f1

CHINESE = (
    "！？｡。＂＃＄％＆＇（）＊＋，－／：；＜＝＞＠［＼］＾＿｀｛｜｝～｟｠｢｣"
    "､、〃》「」『』【】〔〕〖〗〘〙〚〛〜〝〞〟〰〾〿–—‘’‛“”„‟…‧﹏."
)
SPARE = str.maketrans("", "", CHINESE + string.punctuation)
FIRST_LINE = ("trec", "triviaqa", "samsum", "lsht")  # tasks in which the model goes on with the next example


def words(text: str) -> list[str]:
    """Chinese text as words. FileNotFoundError where jieba is not installed."""
    try:
        import jieba
    except ModuleNotFoundError:
        raise FileNotFoundError("longbench: Chinese tasks need jieba: pip install 'thresher[eval]'") from None
    jieba.setLogLevel("ERROR")
    return list(jieba.cut(text, cut_all=False))


def qa_f1_chinese(answer: str, wanted: str) -> float:
    """`token_f1` of the words, without punctuation and white space."""
    cut = [["".join(word.lower().translate(SPARE).split()) for word in words(text)] for text in (answer, wanted)]
    return token_f1(*([word for word in tokens if word] for tokens in cut))


def rouge_l_chinese(answer: str, wanted: str) -> float:
    """`rouge_l` of the words."""
    return rouge_l(" ".join(words(answer)), " ".join(words(wanted)))


def share_of_numbers(answer: str, wanted: str) -> float:
    """The share of the answer's numbers that are the wanted one; 0 for an answer without any."""
    numbers = re.findall(r"\d+", answer)
    return sum(number == wanted for number in numbers) / len(numbers) if numbers else 0.0


def paragraph_found(answer: str, wanted: str) -> float:
    """`share_of_numbers` for the number in "Paragraph 7" or "段落7"."""
    return share_of_numbers(answer, re.findall(r"\d+", wanted)[0])


def classified(answer: str, wanted: str, classes: Sequence[str]) -> float:
    """1 over the number of classes that the answer names where the wanted one is among them; a class whose name is a
    part of the wanted one's does not count."""
    named = [name for name in classes if name in answer and not (name in wanted and name != wanted)]
    return 1 / len(named) if wanted in named else 0.0


def code_similarity(answer: str, wanted: str) -> float:
    """How alike the wanted line and the answer's first line of code are, in whole hundredths."""
    lines = answer.lstrip("\n").split("\n")
    line = next((line for line in lines if not any(mark in line for mark in ("`", "#", "//"))), "")
    return round(100 * SequenceMatcher(None, line, wanted).ratio()) / 100


PAIRWISE: dict[str, Callable[[str, str], float]] = {
    **dict.fromkeys(["narrativeqa", "qasper", "multifieldqa_en", "hotpotqa", "2wikimqa", "musique", "triviaqa"], qa_f1),
    **dict.fromkeys(["gov_report", "qmsum", "multi_news", "samsum"], rouge_l),
    **dict.fromkeys(["dureader", "vcsum"], rouge_l_chinese),
    **dict.fromkeys(["passage_retrieval_en", "passage_retrieval_zh"], paragraph_found),
    **dict.fromkeys(["lcc", "repobench-p"], code_similarity),
    "multifieldqa_zh": qa_f1_chinese,
    "passage_count": share_of_numbers,
}
BY_CLASS = ("trec", "lsht")


def score(dataset: str, answer: str, wanted: Sequence[str], classes: Sequence[str] | None = None) -> float:
    """The score of an answer in one of LongBench's 21 tasks: that for the wanted text that it is closest to."""
    require(bool(wanted), f"{dataset}: got no answers to compare with, wanted at least one")
    if dataset in FIRST_LINE:
        answer = answer.lstrip("\n").split("\n")[0]
    if dataset in BY_CLASS:
        return max(classified(answer, text, classes or ()) for text in wanted)
    return max(PAIRWISE[dataset](answer, text) for text in wanted)
