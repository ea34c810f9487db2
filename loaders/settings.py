"""Values of a config.json, asked for by key and kind. A missing or wrong one is a ValueError naming file and key."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from reference.checks import require

LONGEST = 200  # characters of a wrong value that an error line shows
MOST = 2**53  # larger whole numbers have no exact float, and no model has one


def json_object(text: str | bytes, where: str, what: str = "a JSON object") -> dict[str, Any]:
    """The object that `text` is the JSON of. ValueError naming `where` it stands for anything else, and for one that is
    nested deeper than Python can follow."""
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{where}: got text that is not JSON ({error}), wanted {what}") from None
    require(isinstance(value, dict), f"{where}: got a JSON {type(value).__name__}, wanted an object")
    return value


def shown(value: Any) -> str:
    """The value as an error line shows it: its repr, cut where it would not fit a line."""
    try:
        text = repr(value)
    except RecursionError:
        return "something nested without end"
    return text if len(text) <= LONGEST else text[:LONGEST] + "…"


@dataclass(frozen=True)
class Settings:
    """Some JSON object: its `values`, and `where` it stands, for error lines."""

    values: Mapping[str, Any]
    where: str

    def get(self, key: str, default: Any = None) -> Any:
        """The value as it is; a JSON null counts as left out."""
        value = self.values.get(key)
        return default if value is None else value

    def whole(self, key: str, most: int = MOST) -> int:
        """A whole number from 1 to `most`."""
        value = self.get(key)
        self.require(key, type(value) is int and value >= 1, "a whole number of at least 1")
        self.require(key, value <= most, f"a whole number of at most {most}")
        return int(value)

    def number(self, key: str, default: float | None = None) -> float:
        """A finite number."""
        value = self.get(key, default)
        good = type(value) in (int, float) and abs(value) <= sys.float_info.max
        self.require(key, good, "a finite number")
        return float(value)

    def flag(self, key: str, default: bool = False) -> bool:
        """True or false."""
        value = self.get(key, default)
        self.require(key, isinstance(value, bool), "true or false")
        return bool(value)

    def choice(self, key: str, options: Mapping[str, str]) -> str:
        """What `options` makes of the value."""
        value = self.get(key)
        self.require(key, isinstance(value, str) and value in options, f"one of {', '.join(options)}")
        return options[value]

    def part(self, key: str) -> Settings:
        """The object under this key, empty where it is left out."""
        value = self.get(key, {})
        self.require(key, isinstance(value, dict), "an object")
        return Settings(value, f"{self.where}: {key}")

    def require(self, key: str, holds: bool, wanted: str) -> None:
        """ValueError naming the key, what it holds and what was wanted, unless `holds`."""
        got = shown(self.values[key]) if key in self.values else "nothing"
        require(holds, f"{self.where}: {key}: got {got}, wanted {wanted}")
