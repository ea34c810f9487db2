"""Whether the sums that a text does are true: "4 trays hold 4 * 5 = 20 rolls" is, and "3 + 4 = 9" is not."""

from __future__ import annotations

import re

from thresher.evaluation.scorers.maths import value

NUMBER = r"\d+(?:\.\d+)?|\.\d+"
SUM = re.compile(
    r"(?<![\w.+\-*/^(%])"  # numbers and signs from their first one on
    rf"((?:\(\s*)*(?:{NUMBER})(?:[\s()]*[-+*/^][\s()]*(?:{NUMBER}))+[\s)]*)"
    rf"=\s*(-?(?:{NUMBER}))"
    r"(?!\w|\.\d|\s*[-+*/^%])"  # what goes on is another sum
)
SIGNS = str.maketrans({"×": "*", "·": "*", "÷": "/", "−": "-", "$": None})
THOUSANDS = re.compile(r"(?<=\d),(?=\d{3})")


def sums_are_true(text: str) -> bool:
    """False where the text says that a sum of numbers is another number. A result may be rounded to the digits that it
    has; what is no sum of plain numbers, such as 2x + 1 = 7 or 25% of 80 = 20, is not looked at."""
    plain = THOUSANDS.sub("", text.translate(SIGNS))
    return all(_true(left, right) for left, right in SUM.findall(re.sub(r"\s*([-+*/^=()])\s*", r"\1", plain)))


def _true(left: str, right: str) -> bool:
    found = value(left)
    last = 10.0 ** -len(right.partition(".")[2])  # what the last digit counts
    return found is None or abs(found - float(right)) < last * (1 - 1e-4)
