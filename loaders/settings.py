"""Values of a config.json, asked for by key and kind. A missing or wrong one is a ValueError naming file and key."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from reference.checks import require


@dataclass(frozen=True)
class Settings:
    """Some JSON object: its `values`, and `where` it stands, for error lines."""

    values: Mapping[str, Any]
    where: str

    def get(self, key: str, default: Any = None) -> Any:
        """The value as it is; a JSON null counts as left out."""
        value = self.values.get(key)
        return default if value is None else value

    def whole(self, key: str) -> int:
        """A whole number of at least 1."""
        value = self.get(key)
        self.require(key, type(value) is int and value >= 1, "a whole number of at least 1")
        return int(value)

    def number(self, key: str, default: float | None = None) -> float:
        """A finite number."""
        value = self.get(key, default)
        self.require(key, type(value) in (int, float) and math.isfinite(value), "a finite number")
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
        got = repr(self.values[key]) if key in self.values else "nothing"
        require(holds, f"{self.where}: {key}: got {got}, wanted {wanted}")
