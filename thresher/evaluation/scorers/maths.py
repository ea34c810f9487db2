"""Answers that are formulas: where they stand in a solution, and whether two of them are the same.

Formulas without letters are compared by value (`\\frac{1}{2}`, `1/2`, `.5` and `50\\%` of nothing else), all others by
how they are written, once what does not change the meaning is gone. Lists, tuples and intervals are compared part by
part, with their brackets.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence

BOX = re.compile(r"\\(?:boxed|fbox)\s*")
NUMBER = re.compile(r"-?\$?\d[\d,]*(?:\.\d+)?|-?\.\d+")
THOUSANDS = re.compile(r"(?<![\d.])(\d{1,3})((?:,\d{3})+)(?!\d)")
UNIT = re.compile(r"\\(?:text|mbox|textrm|mathrm)\s*\{([^{}]*)\}(?:\^\{?\d\}?)?")
UNIT_WORD = re.compile(
    r"(?<=\d)(?:dollars?|cents?|degrees?|percent|units?|hours?|minutes?|cm|inches|feet)(?:\^\{?\d\}?)?$"
)
NAME = re.compile(r"^[a-zA-Z](?:\([a-z]\))?(?:=|\\in)")
SPACING = re.compile(r"(?<!\\)\\[!,;: ]|\\q?quad|~|\s")
NO_MEANING = re.compile(r"\\left(?![a-z])|\\right(?![a-z])|\\displaystyle|\^\{?\\circ\}?|\\degree|°|\\?%|\\?\$")
FRACTION = re.compile(r"\\[dt]?frac")
SHORT_FRACTION = re.compile(r"\\frac(\d|\{[^{}]*\})(\d|\{[^{}]*\}|[a-z])")
BRACKETS = {"(": ")", "[": "]", "{": "}"}
CLOSE = 1e-9  # relative difference of two values that are the same number


def boxed(text: str) -> str:
    r"""What the last \boxed{…} (or \fbox) of a text holds, with all the braces inside it; "" where there is none."""
    found = list(BOX.finditer(text))
    if not found:
        return ""
    rest = text[found[-1].end() :]
    if not rest.startswith("{"):
        return rest.split()[0].rstrip("$.") if rest.split() else ""
    depth = 0
    for n, c in enumerate(rest):
        depth += (c == "{" and rest[n - 1 : n] != "\\") - (c == "}" and rest[n - 1] != "\\")
        if depth == 0:
            return rest[1:n].strip()
    return ""


def final_answer(text: str) -> str:
    """What a solution ends with: what follows the last ####, or else its last box, or else its last number."""
    if "####" in text:
        after = text.rsplit("####", 1)[1].strip()
        return after.splitlines()[0].strip() if after else ""
    numbers = NUMBER.findall(text)
    return boxed(text) or (numbers[-1] if numbers else "")


def solves(answer: str, wanted: Sequence[str]) -> float:
    """1 where the answer that a solution ends with is the same as one of the wanted ones."""
    found = final_answer(answer)
    return float(any(same_answer(found, text) for text in wanted))


def same_answer(answer: str, wanted: str) -> bool:
    """Whether two formulas are the same answer; an empty one is the same as none."""
    a, b = plain(answer), plain(wanted)
    if not a or not b:
        return False
    if a == b:
        return True
    parts_a, parts_b = _parts(a), _parts(b)
    if len(parts_a) > 1 or len(parts_b) > 1:
        if len(parts_a) != len(parts_b) or _brackets(a) != _brackets(b):
            return False
        return all(same_answer(x, y) for x, y in zip(parts_a, parts_b, strict=True))
    value_a, value_b = value(a), value(b)
    if value_a is None or value_b is None:
        return False
    return math.isclose(value_a, value_b, rel_tol=CLOSE, abs_tol=1e-12)


def plain(text: str) -> str:
    """A formula without what does not change its meaning: spaces, units, signs of money, `x =`, thousands' commas."""
    text = text.replace("−", "-").strip().strip("$").strip()
    text = UNIT.sub(lambda found: found[1] if text.startswith(found[0]) else "", text)
    text = SPACING.sub("", text)
    text = FRACTION.sub(r"\\frac", NO_MEANING.sub("", text))
    text = re.sub(r"\\[()\[\]]", "", text)
    if "(" not in text and "[" not in text:
        text = THOUSANDS.sub(lambda found: found[0].replace(",", ""), text)
    text = SHORT_FRACTION.sub(lambda found: f"\\frac{_braced(found[1])}{_braced(found[2])}", text)
    text = re.sub(r"\\sqrt(\d|[a-z])", r"\\sqrt{\1}", text)
    text = UNIT_WORD.sub("", NAME.sub("", text).rstrip("."))
    text = re.sub(r"^\(([A-Z])\)$", r"\1", text)  # a choice
    return text.lower() if text.isalpha() else text


def _braced(part: str) -> str:
    return part if part.startswith("{") else f"{{{part}}}"


def _brackets(text: str) -> str:
    """The pair of brackets that encloses a list, "" where none does."""
    return text[0] + text[-1] if text[0] in "([" and text[-1] in ")]" else ""


def _parts(text: str) -> list[str]:
    """A list cut at the commas that stand in no inner bracket."""
    inner = text[1:-1] if _brackets(text) else text
    parts, depth, start = [], 0, 0
    for n, c in enumerate(inner):
        depth += (c in BRACKETS) - (c in BRACKETS.values())
        if c == "," and depth == 0:
            parts.append(inner[start:n])
            start = n + 1
    return [*parts, inner[start:]]


def value(text: str) -> float | None:
    """The value of a formula of numbers, + − · / ^, fractions, roots and π; None where it is anything else."""
    try:
        found, rest = _sum(re.sub(r"\\(?:cdot|times)", "*", text.replace("\\pi", "π").replace("\\div", "/")))
    except (ValueError, ZeroDivisionError, OverflowError, RecursionError):
        return None
    good = not rest and isinstance(found, (int, float)) and math.isfinite(found)
    return float(found) if good else None


def _sum(text: str) -> tuple[float, str]:
    total, text = _product(text)
    while text[:1] in ("+", "-"):
        sign = text[0]
        term, text = _product(text[1:])
        total += term if sign == "+" else -term
    return total, text


def _product(text: str) -> tuple[float, str]:
    if text[:1] in ("-", "+"):
        factor, rest = _product(text[1:])
        return (-factor if text[0] == "-" else factor), rest
    mixed = re.match(r"\d+(?=\\frac)", text)  # 1\frac{1}{2} is a sum, where a factor before a root is a product
    total, text = _power(text)
    if mixed:
        part, text = _power(text)
        total += part
    while text and text[0] not in "+-)}":
        divides = text[0] == "/"
        factor, text = _power(text[1:] if text[0] in "*/" else text)
        total = total / factor if divides else total * factor
    return total, text


def _power(text: str) -> tuple[float, str]:
    base, text = _atom(text)
    if text.startswith("^"):
        exponent, text = _group(text[1:]) if text[1:2] == "{" else _atom(text[1:])
        base = base**exponent
    return base, text


def _atom(text: str) -> tuple[float, str]:
    if found := re.match(r"\d+(?:\.\d*)?|\.\d+", text):
        return float(found[0]), text[found.end() :]
    if text.startswith("π"):
        return math.pi, text[1:]
    if text.startswith("\\frac{"):
        above, text = _group(text[5:])
        below, text = _group(text)
        return above / below, text
    if text.startswith("\\sqrt{"):
        inside, text = _group(text[5:])
        return math.sqrt(inside), text
    if text[:1] in ("(", "{"):
        return _group(text)
    raise ValueError(text)


def _group(text: str) -> tuple[float, str]:
    """What stands in the brackets that the text starts with."""
    if text[:1] not in ("(", "{"):
        raise ValueError(text)
    inside, rest = _sum(text[1:])
    if rest[:1] != BRACKETS[text[0]]:
        raise ValueError(text)
    return inside, rest[1:]
