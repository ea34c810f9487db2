"""A run is a folder.

    meta.json           what was asked for, and with what it is computed
    predictions.jsonl   a line per question and method, written as soon as it is known
    metrics.json        the summary, once all lines are there

A run that was interrupted goes on in its folder. A line that was being written when it stopped is written again.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from loaders.settings import json_object, shown
from reference.checks import require
from thresher.evaluation.cells import Row
from thresher.state import write_atomically

FORMAT = "thresher-run-1"
KEY = ("task", "length", "document", "ask", "question", "method")
Key = tuple[Any, ...]


def key(row: Row, names: Sequence[str] = KEY) -> Key:
    """What a line is about; no two lines of a run share it."""
    return tuple(row[name] for name in names)


class Folder:
    """The folder of one run: `rows` are its lines so far."""

    def __init__(
        self,
        path: str | os.PathLike[str],
        request: dict[str, Any],
        surroundings: dict[str, Any],
        names: Sequence[str] = KEY,
    ) -> None:
        """Begin the run that `request` describes, or go on with it.

        surroundings: what is worth knowing, but may differ when a run goes on. names: the fields that tell what a line
        is about. ValueError for a folder of another run
        and for one that holds anything else; nothing in it is touched then.
        """
        self.path, self.names = Path(path), names
        meta = self.path / "meta.json"
        request = json.loads(json.dumps(request))  # as it will be read again
        if meta.exists():
            self._check(json_object(meta.read_text(encoding="utf-8"), str(meta)), request)
        else:
            empty = not self.path.exists() or not any(self.path.iterdir())
            require(empty, f"{self.path}: got a folder with other files in it, wanted an empty or a new one")
            self.path.mkdir(parents=True, exist_ok=True)
            write_json(meta, {"format": FORMAT, "request": request, **surroundings})
        self.rows = self._read()

    def _check(self, meta: dict[str, Any], request: dict[str, Any]) -> None:
        require(meta.get("format") == FORMAT, f"{self.path}: got a meta.json of another kind, wanted {FORMAT}")
        theirs = meta["request"]
        for name in dict.fromkeys([*request, *theirs]):
            require(
                theirs.get(name) == request.get(name),
                f"{self.path}: got a folder of another run, whose {name} is {shown(theirs.get(name))}, wanted "
                f"{shown(request.get(name))}: choose another folder",
            )

    @property
    def predictions(self) -> Path:
        """The file of the lines."""
        return self.path / "predictions.jsonl"

    def _read(self) -> list[Row]:
        """The lines that are whole; what follows the last line end is cut off."""
        if not self.predictions.exists():
            return []
        data = self.predictions.read_bytes()
        whole = data[: data.rfind(b"\n") + 1]
        rows = read_rows(whole, self.predictions, self.names)
        if len(whole) < len(data):
            os.truncate(self.predictions, len(whole))
        return rows

    def add(self, rows: Sequence[Row]) -> None:
        """Write lines down, at once."""
        with self.predictions.open("ab") as file:
            file.write(b"".join(_line(row) for row in rows))
        self.rows += rows

    def finish(self, metrics: dict[str, Any]) -> None:
        """Write all lines in the order that they have now, whichever came first, and the summary."""
        data = b"".join(map(_line, self.rows))
        write_atomically(self.predictions, lambda temporary: Path(temporary).write_bytes(data))
        write_json(self.path / "metrics.json", metrics)


def _line(row: Row) -> bytes:
    return json.dumps(row, ensure_ascii=False).encode("utf-8", errors="backslashreplace") + b"\n"


def read_rows(data: bytes, where: Path, names: Sequence[str] = KEY) -> list[Row]:
    """The rows of a file of lines. ValueError names a line that is none."""
    lines = data.decode("utf-8").split("\n")
    rows = [json_object(line, f"{where}: line {n}") for n, line in enumerate(lines, start=1) if line]
    for n, row in enumerate(rows, start=1):
        missing = [name for name in names if name not in row]
        require(not missing, f"{where}: line {n}: got no {', '.join(missing)}, wanted a prediction")
    return rows


def write_json(path: Path, value: Any) -> None:
    """An indented JSON file; what stood there stays until the new one is complete."""
    text = json.dumps(value, ensure_ascii=False, indent=2) + "\n"
    write_atomically(path, lambda temporary: Path(temporary).write_text(text, encoding="utf-8"))


def load(path: str | os.PathLike[str], names: Sequence[str] = KEY) -> tuple[dict[str, Any], list[Row]]:
    """The meta data and the lines of a run, which `names` tell apart. FileNotFoundError for a folder that is none."""
    folder = Path(path)
    for name in ("meta.json", "predictions.jsonl"):
        if not (folder / name).exists():
            raise FileNotFoundError(f"{folder}: got no {name}, wanted the folder of a run (thresher eval … --out DIR)")
    meta = json_object((folder / "meta.json").read_text(encoding="utf-8"), str(folder / "meta.json"))
    require(meta.get("format") == FORMAT, f"{folder}: got a meta.json of another kind, wanted {FORMAT}")
    data = (folder / "predictions.jsonl").read_bytes()
    rows = read_rows(data[: data.rfind(b"\n") + 1], folder / "predictions.jsonl", names)
    require(bool(rows), f"{folder}: got a run without a prediction, wanted at least one")
    return meta, rows
