"""ROUGE-L of a summary: how much of the reference its words cover, in the reference's order.

Source: C.-Y. Lin, ROUGE (2004), the summary-level form, as the package `rouge` computes it, which LongBench calls: a
sentence ends at a full stop, and every word counts once however often it stands there.
"""

from __future__ import annotations

from collections.abc import Sequence

TINY = 1e-8  # keeps the F score of nothing in common from being 0 / 0; part of the figures that are published


def rouge_l(answer: str, wanted: str) -> float:
    """F = 2PR / (P + R) with R, P = |words of the wanted sentences that the answer's cover in order| / |words|.

    0 where either has no word.
    """
    ours, theirs = _sentences(answer), _sentences(wanted)
    if not ours or not theirs:
        return 0.0
    covered = {word for sentence in theirs for other in ours for word in common_subsequence(sentence, other)}
    recall = len(covered) / len({word for sentence in theirs for word in sentence})
    precision = len(covered) / len({word for sentence in ours for word in sentence})
    return 2 * precision * recall / (precision + recall + TINY)


def _sentences(text: str) -> list[list[str]]:
    """The words of each sentence; one of blanks alone has the word ""."""
    return [sentence.split() or [""] for sentence in text.split(".") if sentence]


def common_subsequence(a: Sequence[str], b: Sequence[str]) -> list[str]:
    """The longest common subsequence; of several, the one that reading from the end prefers to keep in `a`."""
    table = [[0] * (len(b) + 1) for _ in range(len(a) + 1)]
    for i, x in enumerate(a):
        row, above = table[i + 1], table[i]
        for j, y in enumerate(b):
            row[j + 1] = above[j] + 1 if x == y else max(above[j + 1], row[j])
    found, i, j = [], len(a), len(b)
    while i and j:
        if a[i - 1] == b[j - 1]:
            found.append(a[i - 1])
            i, j = i - 1, j - 1
        elif table[i - 1][j] > table[i][j - 1]:
            i -= 1
        else:
            j -= 1
    return found[::-1]
